package persistence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
)

// carry copies the conflicts of the file at path into the database that takes its
// place: they are kept until somebody discards them, and the snapshot may be another
// device's, or older. It says how many it added. Those of another scope are somebody
// else's rows: they stay in their file, which then has to be kept.
func (r Restoration) carry(ctx context.Context, db *sql.DB, path string) (added int64, keep bool, err error) {
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		return 0, false, nil
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(explain(err), conn.Close()) }()
	if _, err := conn.ExecContext(ctx, `ATTACH DATABASE ? AS tidemark_old`, path); err != nil {
		return 0, false, err
	}
	defer func() {
		_, derr := conn.ExecContext(context.WithoutCancel(ctx), `DETACH DATABASE tidemark_old`)
		err = errors.Join(err, derr)
	}()
	var ours bool
	if err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM tidemark_old.sqlite_master WHERE type = 'table' AND name = 'tidemark_conflicts')`).Scan(&ours); err != nil || !ours {
		return 0, false, err
	}
	var n int64
	var scope string
	if err := conn.QueryRowContext(ctx, `SELECT scope, (SELECT count(*) FROM tidemark_old.tidemark_conflicts) FROM tidemark_old.tidemark_state`).Scan(&scope, &n); err != nil || n == 0 {
		return 0, false, err
	}
	if scope != "" && r.Snapshot.Scope != "" && scope != r.Snapshot.Scope {
		if r.Keep != "" {
			return 0, true, nil
		}
		return 0, false, fmt.Errorf("they are of another scope than the snapshot (%d): discard them (pipeline conflicts), or move the file away: %w", n, ErrUnsynced)
	}
	restoredOn := "NULL"
	var there bool
	if err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pragma_table_info('tidemark_conflicts', 'tidemark_old') WHERE name = 'restoredOn')`).Scan(&there); err != nil {
		return 0, false, err
	}
	if there {
		restoredOn = "o.restoredOn"
	}
	// A join, which SQLite makes an index for.
	res, err := conn.ExecContext(ctx, `INSERT INTO main.tidemark_conflicts (tableName, documentId, winner, reason, localVersion, serverVersion, detectedOn, restoredOn)
		SELECT o.tableName, o.documentId, o.winner, o.reason, o.localVersion, o.serverVersion, o.detectedOn, `+restoredOn+`
		FROM tidemark_old.tidemark_conflicts AS o LEFT JOIN main.tidemark_conflicts AS c ON c.detectedOn = o.detectedOn AND c.documentId = o.documentId AND c.tableName = o.tableName
			AND c.winner = o.winner AND c.reason = o.reason AND c.localVersion IS o.localVersion AND c.serverVersion IS o.serverVersion
		WHERE c.id IS NULL ORDER BY o.id`)
	if err != nil {
		return 0, false, err
	}
	added, err = res.RowsAffected()
	return added, false, err
}
