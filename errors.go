package tidemark

import (
	"errors"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
	"github.com/tidemark-sync/tidemark/stages"
)

// What an application can branch on with errors.Is.
var (
	// ErrUnavailable: the server or the network is down; try again later.
	ErrUnavailable = messages.ErrUnavailable
	// ErrUnauthorized: no credentials, or they do not reach this scope.
	ErrUnauthorized = messages.ErrUnauthorized
	// ErrSignedOut: the user's token source says that nobody is signed in; it is an
	// ErrUnauthorized too. Edits wait in the database; see Wipe.
	ErrSignedOut = messages.ErrSignedOut
	// ErrNotFound: the project, the bucket or the snapshot does not exist.
	ErrNotFound = messages.ErrNotFound
	// ErrRejected: something can never be accepted as it is.
	ErrRejected = messages.ErrRejected
	// ErrNotAttached: call Attach first.
	ErrNotAttached = persistence.ErrNotAttached
	// ErrOtherScope: the database was synced with another remote; see Reset.
	ErrOtherScope = persistence.ErrOtherScope
	// ErrForgotten: this device was forgotten, or the whole scope was; it is ErrNotFound.
	ErrForgotten = messages.ErrForgotten
	// ErrLocked: another program holds a long transaction on the database.
	ErrLocked = persistence.ErrLocked
	// ErrDiskFull: there is no room; nothing was changed.
	ErrDiskFull = persistence.ErrDiskFull
	// ErrReadOnly: the file or its folder cannot be written.
	ErrReadOnly = persistence.ErrReadOnly
	// ErrNotDatabase: the file is something else, or damaged.
	ErrNotDatabase = persistence.ErrNotDatabase
	// ErrUnsynced: a restore would overwrite rows that no other device has.
	ErrUnsynced = persistence.ErrUnsynced
	// ErrInTheWay: other rows are in the way of a version that is to be restored.
	ErrInTheWay = persistence.ErrInTheWay
	// ErrParentMissing: a row that it refers to is not here.
	ErrParentMissing = persistence.ErrParentMissing
	// ErrDoesNotFit: the schema or a trigger of the application's refuses it.
	ErrDoesNotFit = persistence.ErrDoesNotFit
	// ErrWhichSide: both versions of a conflict went into the row.
	ErrWhichSide = persistence.ErrWhichSide
	// ErrDamaged: a snapshot is not what its maker uploaded.
	ErrDamaged = persistence.ErrDamaged
	// ErrMassDelete: a download would delete much of a table; see AllowDeletes.
	ErrMassDelete = persistence.ErrMassDelete
	// ErrNoResolver: a table's conflicts are decided by the application, see WithResolver.
	ErrNoResolver = persistence.ErrNoResolver
	// ErrNoConditions: the snapshot store ignores conditional writes; see
	// WithUnconditionalStore.
	ErrNoConditions = stages.ErrNoConditions
	// ErrRolledBack: the newest snapshot in the store is older than one that the file at
	// the destination knows; name it to restore it all the same.
	ErrRolledBack = persistence.ErrRolledBack
	// ErrNewer: a snapshot was made by a newer version.
	ErrNewer = persistence.ErrNewer
	// ErrNoKey: a snapshot is encrypted and no key was given; ErrWrongKey: none of
	// those that were given opens it.
	ErrNoKey    = persistence.ErrNoKey
	ErrWrongKey = messages.ErrWrongKey
	// ErrNotEncrypted: a snapshot is not encrypted although a key was given.
	ErrNotEncrypted = persistence.ErrNotEncrypted
	// ErrInvalidOption: an option was refused by New.
	ErrInvalidOption = errors.New("invalid option")
	// ErrClosed: the pipeline was closed.
	ErrClosed = errors.New("the pipeline is closed")
)
