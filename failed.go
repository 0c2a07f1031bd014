package tidemark

import (
	"context"
	"iter"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/persistence"
)

// DeadLetter is a row that the server does not take, or a document that does not fit
// here, set aside with what is needed to understand and replay it. It goes by itself
// when the row, or a newer version of the document, gets through.
type DeadLetter = persistence.DeadLetter

// DeadLetterFilter chooses dead letters; the zero filter chooses all that were not
// discarded.
type DeadLetterFilter = persistence.DeadLetterFilter

// Waiting is a document, or a row, that cannot be handled before something else is,
// usually its parent. Every cycle tries it again.
type Waiting = persistence.Waiting

// Replayed says what became of a dead letter that was replayed.
type Replayed = persistence.Replayed

// DeadLetters lists the dead letters of an attached database, the oldest first, without
// their versions. It uses no network, writes nothing, and takes the same memory however
// many there are. The first error ends it.
func DeadLetters(ctx context.Context, db *bun.DB, f DeadLetterFilter) iter.Seq2[DeadLetter, error] {
	return persistence.View(db).DeadLetters(ctx, f)
}

// ReadDeadLetter reads one dead letter with its version; ErrNotFound when there is none
// of that id.
func ReadDeadLetter(ctx context.Context, db *bun.DB, id int64) (DeadLetter, error) {
	return persistence.View(db).DeadLetter(ctx, id)
}

// ListWaiting lists what waits, of one table or (with "") of all. It is no failure: it
// ends by itself when what is waited for comes.
func ListWaiting(ctx context.Context, db *bun.DB, table string) iter.Seq2[Waiting, error] {
	return persistence.View(db).Waiting(ctx, table)
}

// ReplayDeadLetters hands dead letters once more to the stage that failed, and to no
// other. A row is tried by the next Sync although nobody edited it; its letter goes when
// the server has acknowledged it. A document is applied at once. Parents come before
// children, and doing it twice does no harm. tell hears what became of each, an error of
// its ends the replay. A dry run changes nothing, and looks at each letter by itself.
func ReplayDeadLetters(ctx context.Context, db *bun.DB, f DeadLetterFilter, dryRun bool, tell func(Replayed) error) error {
	local, err := openCurrent(ctx, db)
	if err != nil {
		return err
	}
	if tell == nil {
		tell = func(Replayed) error { return nil }
	}
	return local.ReplayDeadLetters(ctx, f, dryRun, tell)
}

// DiscardDeadLetters gives dead letters up and says how many: the row stays on this
// device only, the document is not applied here, and neither is counted or tried again
// until it changes, or is replayed.
func DiscardDeadLetters(ctx context.Context, db *bun.DB, f DeadLetterFilter) (int64, error) {
	local, err := openCurrent(ctx, db)
	if err != nil {
		return 0, err
	}
	return local.DiscardDeadLetters(ctx, f)
}
