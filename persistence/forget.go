package persistence

import (
	"context"
	"fmt"
	"time"
)

// OnlyHere is what would be gone with the database file: dirty rows and deletes that
// the server has not, rows of tables that are not synced at all, and versions that lost
// a conflict.
func (l *Local) OnlyHere(ctx context.Context) (dirty int64, unsynced map[string]int64, conflicts int64, err error) {
	if _, err := l.Standing(ctx); err != nil { // finds what INSERT OR REPLACE deleted
		return 0, nil, 0, err
	}
	if dirty, err = l.dirtyCount(ctx); err != nil {
		return 0, nil, 0, err
	}
	schema, err := l.Schema(ctx)
	if err != nil {
		return 0, nil, 0, err
	}
	all, err := Reflect(ctx, l.db.DB)
	if err != nil {
		return 0, nil, 0, err
	}
	unsynced = map[string]int64{}
	for _, t := range all.Tables {
		if schema.Table(t.Name) != nil {
			continue
		}
		var n int64
		if err := l.db.DB.QueryRowContext(ctx, `SELECT count(*) FROM `+quote(t.Name)).Scan(&n); err != nil {
			return 0, nil, 0, fmt.Errorf("count the rows of table %q: %w", t.Name, explain(err))
		}
		if n > 0 {
			unsynced[t.Name] = n
		}
	}
	if err := l.db.DB.QueryRowContext(ctx, `SELECT count(*) FROM tidemark_conflicts`).Scan(&conflicts); err != nil {
		return 0, nil, 0, fmt.Errorf("count the conflicts: %w", explain(err))
	}
	return dirty, unsynced, conflicts, nil
}

// Forgotten marks the database: it is not synced any more, until a Reset.
func (l *Local) Forgotten(ctx context.Context) error {
	if err := l.write(ctx, func(tx *tx) error {
		return tx.exec(`UPDATE tidemark_state SET forgottenOn = ? WHERE forgottenOn = 0`, time.Now().UnixMilli())
	}); err != nil {
		return fmt.Errorf("mark the database as forgotten: %w", err)
	}
	return nil
}
