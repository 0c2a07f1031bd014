package persistence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/tidemark-sync/tidemark/messages"
)

// carry copies the conflicts of the file at path into the database that takes its
// place: they are kept until somebody discards them, and the snapshot may be another
// device's, or older. It says how many it added, and how many it did not: those of
// another scope are somebody else's rows and stay in their file, which then has to be
// kept.
func (r Restoration) carry(ctx context.Context, db *sql.DB, path string) (added, left int64, err error) {
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		return 0, 0, nil
	}
	// On a connection of its own: the two files may have different text encodings.
	old, err := r.Open(path)
	if err != nil {
		return 0, 0, err
	}
	old.SetMaxOpenConns(1)
	defer func() { err = errors.Join(explain(err), old.Close()) }()
	var ours bool
	if err := old.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tidemark_conflicts')`).Scan(&ours); err != nil || !ours {
		return 0, 0, err
	}
	var scope, into string
	if err := old.QueryRowContext(ctx, `SELECT scope, (SELECT count(*) FROM tidemark_conflicts) FROM tidemark_state`).Scan(&scope, &left); err != nil || left == 0 {
		return 0, 0, err
	}
	if err := db.QueryRowContext(ctx, `SELECT scope FROM tidemark_state`).Scan(&into); err != nil {
		return 0, 0, err
	}
	if scope != into && into != "" { // one without a scope was reset, and has them from before
		if r.Keep != "" {
			return 0, left, nil
		}
		return 0, left, messages.Saying(ErrUnsynced, "its conflicts (%d) are of another scope than the snapshot: discard them (pipeline conflicts), or move the file away", left)
	}
	restoredOn := "NULL"
	var there bool
	if err := old.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pragma_table_info('tidemark_conflicts') WHERE name = 'restoredOn')`).Scan(&there); err != nil {
		return 0, 0, err
	}
	if there {
		restoredOn = "restoredOn"
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	// To find those that the snapshot has already; it goes with the transaction's end.
	const index = `tidemark_carried`
	if _, err := tx.ExecContext(ctx, `CREATE INDEX `+index+` ON tidemark_conflicts (detectedOn, tableName)`); err != nil {
		return 0, 0, err
	}
	ids := map[int64]int64{} // there and here
	err = eachRow(ctx, old, `SELECT tableName, documentId, winner, reason, localVersion, serverVersion, detectedOn, `+restoredOn+`, id FROM tidemark_conflicts ORDER BY id`, func(scan func(...any) error) error {
		c := make([]any, 8)
		dest := make([]any, len(c), len(c)+1)
		for i := range c {
			dest[i] = &c[i]
		}
		var was, is int64
		if err := scan(append(dest, &was)...); err != nil {
			return err
		}
		c[3] = renamed(c[3], ids)
		// The versions say which document they are of; documentId may be another one since
		// it was restored.
		has, err := found(tx.QueryRowContext(ctx, `SELECT id FROM tidemark_conflicts WHERE detectedOn = ?5 AND tableName = ?1
			AND winner = ?2 AND reason = ?3 AND localVersion IS ?4 AND serverVersion IS ?6`, c[0], c[2], c[3], c[4], c[6], c[5]).Scan(&is))
		if err == nil && has {
			_, err = tx.ExecContext(ctx, `UPDATE tidemark_conflicts SET restoredOn = ?1, documentId = ?2 WHERE id = ?3 AND restoredOn IS NULL AND ?1 IS NOT NULL`, c[7], c[1], is)
		} else if err == nil {
			added++
			var res sql.Result
			if res, err = tx.ExecContext(ctx, `INSERT INTO tidemark_conflicts (tableName, documentId, winner, reason, localVersion, serverVersion, detectedOn, restoredOn) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, c...); err == nil {
				is, err = res.LastInsertId()
			}
		}
		ids[was] = is
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	if _, err := tx.ExecContext(ctx, `DROP INDEX `+index); err != nil {
		return 0, 0, err
	}
	return added, 0, tx.Commit()
}

// restoredReason is that of winnerRestored, with the number of the conflict.
const restoredReason = "what was there before conflict %d was restored"

// renamed is a reason that names a conflict by its number, with the number it has here.
func renamed(reason any, ids map[int64]int64) any {
	var was int64
	if s, ok := reason.(string); ok {
		if n, _ := fmt.Sscanf(s, restoredReason, &was); n == 1 {
			if is, ok := ids[was]; ok {
				return fmt.Sprintf(restoredReason, is)
			}
			return "what was there before a conflict was restored that is discarded"
		}
	}
	return reason
}
