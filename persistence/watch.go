package persistence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Watch notices that somebody wrote to the database, by SQLite's own counters: it polls
// no table.
type Watch struct {
	q    queryer
	conn *sql.Conn // nil: the pool has too few to keep one
	last counters
}

// counters: version moves when another connection has committed, own with every row
// that this one changes, which counts when there is no other.
type counters struct{ version, own int64 }

// Watch keeps a connection of its own, where the application's pool has one to spare.
// Close gives it back.
func (l *Local) Watch(ctx context.Context) (*Watch, error) {
	w := &Watch{q: l.db.DB}
	// With one or two the application, or the engine, could not go on.
	if most := l.db.DB.Stats().MaxOpenConnections; most == 0 || most > 2 {
		conn, err := l.db.DB.Conn(ctx)
		if err != nil {
			return nil, fmt.Errorf("watch the database: %w", explain(err))
		}
		w.q, w.conn = conn, conn
	}
	var err error
	if w.last, err = w.read(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *Watch) read(ctx context.Context) (counters, error) {
	var c counters
	err := w.q.QueryRowContext(ctx, `SELECT data_version, total_changes() FROM pragma_data_version`).Scan(&c.version, &c.own)
	if err != nil {
		return c, fmt.Errorf("watch the database: %w", explain(err))
	}
	return c, nil
}

// Changed reports whether something was written since it was asked last.
func (w *Watch) Changed(ctx context.Context) (bool, error) {
	c, err := w.read(ctx)
	if err != nil {
		return false, err
	}
	changed := c != w.last
	w.last = c
	return changed, nil
}

// Close gives the connection back.
func (w *Watch) Close() error {
	if w.conn == nil {
		return nil
	}
	return w.conn.Close()
}

// Unsent says what there is to upload. Two that are equal hold the same edits.
type Unsent struct {
	// Rows and tombstones that have to go up, Newest their greatest updatedOn.
	Rows, Newest int64
	// Held of them stayed behind in the last upload.
	Held int64
	// Replays are dead letters that somebody wants to be tried again.
	Replays int64
}

// Unsent looks what there is to upload, by the indexes of dirty rows.
func (l *Local) Unsent(ctx context.Context) (Unsent, error) {
	var u Unsent
	plans, err := l.allPlans(ctx)
	if err != nil {
		return u, err
	}
	add := func(query string, args ...any) error {
		var rows, newest int64
		if err := l.db.DB.QueryRowContext(ctx, query, args...).Scan(&rows, &newest); err != nil {
			return fmt.Errorf("look for what is to be uploaded: %w", explain(err))
		}
		u.Rows, u.Newest = u.Rows+rows, max(u.Newest, newest)
		return nil
	}
	for _, p := range plans {
		if err := add(`SELECT count(*), coalesce(max(updatedOn), 0) FROM ` + p.name + ` WHERE isDirty = 1`); err != nil {
			return u, err
		}
		if err := add(`SELECT count(*), coalesce(max(updatedOn), 0) FROM tidemark_tombstones WHERE isDirty = 1 AND tableName = ?`, p.t.Name); err != nil {
			return u, err
		}
	}
	err = l.db.DB.QueryRowContext(ctx, `SELECT heldRows, (SELECT count(*) FROM tidemark_dead_letters WHERE state = 'dead' AND updatedOn = 0
		AND (handler = 'upload' OR `+isStage+`)) FROM tidemark_state`).Scan(&u.Held, &u.Replays)
	if err != nil {
		return u, fmt.Errorf("look for what is to be uploaded: %w", explain(err))
	}
	return u, nil
}
