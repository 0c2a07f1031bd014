package persistence

import (
	"context"
	"fmt"

	"github.com/tidemark-sync/tidemark/messages"
)

// CheckScope refuses another remote than the one the database is bound to with
// ErrOtherScope: what was seen of that, and the versions of the rows, mean nothing
// here. A database whose device was forgotten is refused with messages.ErrForgotten.
func (l *Local) CheckScope(ctx context.Context, scope string) error {
	var was string
	var forgottenOn int64
	if err := l.db.DB.QueryRowContext(ctx, `SELECT scope, forgottenOn FROM tidemark_state`).Scan(&was, &forgottenOn); err != nil {
		return fmt.Errorf("read the remote's scope: %w", explain(err))
	}
	if scope != "" && was != "" && was != scope {
		return fmt.Errorf("%w; go back to it, or reset the database to start over with this one (pipeline attach --reset)", messages.OtherScope(was, scope))
	}
	if forgottenOn != 0 {
		return messages.Saying(messages.ErrForgotten, "this device was forgotten and syncs no more: remove its database (`pipeline forget` does), or start over with it (`pipeline attach --reset`)")
	}
	return nil
}

// Bind ties the database to a scope, if it is not yet.
func (l *Local) Bind(ctx context.Context, scope string) error {
	var was string
	if err := l.db.DB.QueryRowContext(ctx, `SELECT scope FROM tidemark_state`).Scan(&was); err != nil {
		return fmt.Errorf("read the remote's scope: %w", explain(err))
	}
	if was != "" || scope == "" {
		return nil
	}
	return l.write(ctx, func(tx *tx) error { return tx.exec(`UPDATE tidemark_state SET scope = ?`, scope) })
}

// Reset makes an attached database one that has never met a server: every row is
// dirty, nothing is downloaded, deletes and waiting documents are forgotten. Rows
// keep their clientId, so that one that reaches the same server again is the same.
// Conflicts are kept.
func (l *Local) Reset(ctx context.Context) error {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return err
	}
	err = l.write(ctx, func(tx *tx) error {
		if err := tx.sweepAll(plans); err != nil {
			return err
		}
		for _, p := range plans {
			if err := tx.exec(`UPDATE ` + p.name + ` SET serverId = NULL, serverVersion = NULL, isDirty = 1`); err != nil {
				return fmt.Errorf("table %q: %w", p.t.Name, err)
			}
		}
		for _, table := range []string{"seen", "targets", "positions", "tombstones", "left", "inbox", "dead_letters", "tokens", "touched", "renumbered", "bases", "absent", "revivals"} {
			if err := tx.exec(`DELETE FROM tidemark_` + table); err != nil {
				return err
			}
		}
		if err := tx.exec(`UPDATE tidemark_DownloadedTracker SET downloadedTill = NULL, scannedTo = '', gained = '[]', rebuilt = 0, completeTill = 0`); err != nil {
			return err
		}
		return tx.exec(`UPDATE tidemark_state SET installationId = ?, scope = '', seq = 0, recordVersion = 0, recordTables = '{}', registeredOn = 0, checkedAt = 0,
			firstAt = 0, cutBroken = 0, backedUp = '{}', backedUpOn = 0, generation = '', maker = '', changedRows = 0, store = '', clockOffset = 0, fence = '{}', purgedOn = 0, deletesAllowed = 0, forgottenOn = 0`, newID())
	})
	if err != nil {
		return fmt.Errorf("reset the database: %w", err)
	}
	return nil
}
