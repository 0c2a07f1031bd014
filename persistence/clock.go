package persistence

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// localClock is SQLite's clock in Unix ms: the one that the triggers stamp rows by,
// see now.
const localClock = `CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER)`

// Clock is the local clock in Unix ms.
func (l *Local) Clock(ctx context.Context) (int64, error) {
	var ms int64
	if err := l.db.DB.QueryRowContext(ctx, `SELECT `+localClock).Scan(&ms); err != nil {
		return 0, fmt.Errorf("read the clock: %w", explain(err))
	}
	return ms, nil
}

// wrongBy is how far the clock has to have been wrong before stamps are corrected:
// less decides no conflict that anybody would notice.
const wrongBy = time.Minute

// setClock stores by how much the local clock differs from the server's, which read
// server (Unix ms) at some moment between the question and the answer. An offset that
// agrees with that stays as it is: it does not tremble with the network.
//
// When the clock turns out to have been wrong, what was stamped by it and is not
// uploaded is corrected: a device years ahead must not win every conflict, nor one
// years behind lose them all. Nothing is stamped later than the server's now.
func (t *tx) setClock(plans []*plan, server int64, c messages.ClockReading) error {
	var was, checkedOn int64
	if err := t.row(`SELECT clockOffset, clockCheckedOn FROM tidemark_state`).Scan(&was, &checkedOn); err != nil {
		return err
	}
	if server == checkedOn {
		return nil // the answer that we had before, once more: it says nothing about now
	}
	asked := min(c.Asked, c.Answered) // the clock may have been set back in between
	offset := min(max(was, server-c.Answered), server-asked)
	if err := t.exec(`UPDATE tidemark_state SET clockOffset = ?, clockCheckedOn = ?`, offset, server); err != nil {
		return err
	}
	shift := offset - was
	tables := []string{"tidemark_tombstones"}
	var callBack []schemaObject
	for _, p := range plans {
		tables, callBack = append(tables, p.name), append(callBack, p.onTracked...)
	}
	correct := func(by, most, after, upTo int64) error { // what is stamped after the one and up to the other
		return t.suspended(callBack, func() error {
			for _, table := range tables {
				floor := "1"
				if table == "tidemark_tombstones" {
					floor = "above + 1" // a device that has the deleted version unsent compares the two
				}
				if err := t.exec(`UPDATE `+table+` SET updatedOn = max(min(updatedOn + ?, ?), `+floor+`) WHERE isDirty = 1 AND updatedOn > ? AND updatedOn <= ?`, by, most, after, upTo); err != nil {
					return err
				}
			}
			return nil
		})
	}
	switch {
	case shift >= -wrongBy.Milliseconds() && shift <= wrongBy.Milliseconds():
	case checkedOn == 0 && shift < 0: // it was as wrong all the time, as far as we know
		return correct(shift, server, 0, math.MaxInt64)
	case shift < 0: // it has jumped ahead: what is stamped in the future was stamped since
		return correct(shift, server, server, math.MaxInt64)
	default: // it has fallen back, or is behind: what it stamped is not above what it says now
		since := int64(0) // and, if we could tell the time before, not before the fall
		if checkedOn > 0 {
			since = checkedOn - shift - wrongBy.Milliseconds()
		}
		if err := correct(shift, server, since, c.Answered+was); err != nil {
			return err
		}
	}
	// Something may be stamped by a clock that was ahead and has been set right since. What
	// it is on top of may be stamped as far ahead, see applier.one.
	ahead := server + wrongBy.Milliseconds()
	for _, table := range tables {
		var found bool
		if err := t.row(`SELECT EXISTS (SELECT 1 FROM `+table+` WHERE isDirty = 1 AND updatedOn > ?)`, ahead).Scan(&found); err != nil {
			return err
		}
		if found {
			return correct(0, ahead, ahead, math.MaxInt64)
		}
	}
	return nil
}
