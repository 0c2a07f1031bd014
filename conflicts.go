package tidemark

import (
	"context"
	"iter"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/persistence"
)

// Conflict is two versions of one row that could not both stay, with who won and why.
// It is kept until it is discarded.
type Conflict = persistence.Conflict

// RowVersion is a row, or its document, as it was at one time.
type RowVersion = persistence.RowVersion

// Parent is a row that a RowVersion refers to.
type Parent = persistence.Parent

// Values are a row's values by column, in JSON without loss.
type Values = persistence.Values

// ConflictFilter chooses conflicts; the zero filter chooses all.
type ConflictFilter = persistence.ConflictFilter

// Side is one of the two versions of a conflict; the empty Side is the one that lost.
type Side = persistence.Side

// The sides.
const (
	LocalSide  = persistence.LocalSide
	ServerSide = persistence.ServerSide
)

// RestoredConflict says what RestoreConflict did.
type RestoredConflict = persistence.RestoredConflict

// Conflicts lists the conflicts of an attached database, the newest first. It uses no
// network, writes nothing, and takes the same memory however many there are. The first
// error ends it.
func Conflicts(ctx context.Context, db *bun.DB, f ConflictFilter) iter.Seq2[Conflict, error] {
	return persistence.View(db).Conflicts(ctx, f)
}

// ReadConflict reads one conflict; ErrNotFound when there is none of that id.
func ReadConflict(ctx context.Context, db *bun.DB, id int64) (Conflict, error) {
	return persistence.View(db).Conflict(ctx, id)
}

// RestoreConflict makes one side of a conflict – by default the one that lost – an
// ordinary edit that this device makes now, as if the application had written it: its
// triggers fire, and the next Sync uploads it. A row that is gone is inserted again.
// What was there before is kept as a conflict in its turn. Doing it twice does nothing
// more. ErrParentMissing, ErrInTheWay and ErrDoesNotFit name what has to be done first.
func RestoreConflict(ctx context.Context, db *bun.DB, id int64, side Side) (RestoredConflict, error) {
	local, err := openCurrent(ctx, db)
	if err != nil {
		return RestoredConflict{}, err
	}
	return local.RestoreConflict(ctx, id, side)
}

// DiscardConflicts forgets conflicts and says how many; what lost is gone then.
func DiscardConflicts(ctx context.Context, db *bun.DB, f ConflictFilter) (int64, error) {
	local, err := openCurrent(ctx, db)
	if err != nil {
		return 0, err
	}
	return local.DiscardConflicts(ctx, f)
}

// openCurrent is the engine's side of an attached database, attached again when the
// application changed its schema.
func openCurrent(ctx context.Context, db *bun.DB) (*persistence.Local, error) {
	if err := current(ctx, db); err != nil {
		return nil, err
	}
	return persistence.Open(ctx, db, persistence.DeviceInfo{})
}
