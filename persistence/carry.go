package persistence

import (
	"context"
	"database/sql"
	"errors"
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
	if _, err := tx.ExecContext(ctx, `CREATE INDEX `+index+` ON tidemark_conflicts (detectedOn, documentId)`); err != nil {
		return 0, 0, err
	}
	err = eachRow(ctx, old, `SELECT tableName, documentId, winner, reason, localVersion, serverVersion, detectedOn, `+restoredOn+` FROM tidemark_conflicts ORDER BY id`, func(scan func(...any) error) error {
		c := make([]any, 8)
		dest := make([]any, len(c))
		for i := range c {
			dest[i] = &c[i]
		}
		if err := scan(dest...); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `UPDATE tidemark_conflicts SET restoredOn = coalesce(restoredOn, ?8) WHERE detectedOn = ?7 AND documentId = ?2 AND tableName = ?1
			AND winner = ?3 AND reason = ?4 AND localVersion IS ?5 AND serverVersion IS ?6`, c...)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return err
		}
		added++
		_, err = tx.ExecContext(ctx, `INSERT INTO tidemark_conflicts (tableName, documentId, winner, reason, localVersion, serverVersion, detectedOn, restoredOn) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, c...)
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
