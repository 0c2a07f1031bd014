package persistence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/uptrace/bun"
)

// Local is the application's database as the engine sees it. It is safe for
// concurrent use; its writes take their turn.
type Local struct {
	db   *bun.DB
	info DeviceInfo

	scope string     // that snapshots are bound to
	enc   Encryption // of snapshots; nil is none
	store string     // that snapshots are in; "" when it does not tell
	look  bool       // into the store, in any case

	mu        sync.Mutex // guards what follows
	resolvers map[string]Resolver
	guard     DeleteGuard
	list      newList
	schema    *Schema
	plans     map[string]*plan
	version   int64
}

// DeviceInfo describes this installation to people, in its Devices record.
type DeviceInfo struct{ Name, Platform, Version string }

// View is the engine's side of an attached database for reading.
func View(db *bun.DB) *Local { return &Local{db: db} }

// Open prepares the engine's side of an attached (or not yet attached) database:
// it creates the bookkeeping tables where they are missing and mints an
// installation id for a file that has none, which is a new or a restored one.
func Open(ctx context.Context, db *bun.DB, info DeviceInfo) (*Local, error) {
	l := &Local{db: db, info: info}
	err := l.write(ctx, func(tx *tx) error {
		var id string
		if err := tx.row(`SELECT installationId FROM tidemark_state`).Scan(&id); err != nil {
			return err
		}
		if id != "" {
			return nil
		}
		return tx.exec(`UPDATE tidemark_state SET installationId = ?`, newID())
	}, createBookkeeping)
	if err != nil {
		return nil, fmt.Errorf("open the database for sync: %w", explain(err))
	}
	return l, nil
}

// queryer is what database/sql's DB, Conn and Tx have in common. Application data
// goes through it and is always bound: bun inlines literals, and a NUL in a text
// would end the statement.
type queryer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// tx is one transaction of the engine: immediate, on a connection of its own,
// with the triggers silenced and foreign keys not enforced. Not enforced, because
// the engine decides itself what refers to what and a cascade would delete rows
// that nobody deleted; it never commits a reference to nothing.
type tx struct {
	ctx   context.Context //nolint:containedctx // a tx lives inside one call and has its context
	quiet context.Context //nolint:containedctx // ctx without its end, see run
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	// The keys of parents, by table and document id: those that were looked up, until
	// any row is deleted or changes its key, and those that were promised to rows of a
	// circle that are about to go in.
	keys, promised map[string][]any
	reacts         bool // the application has triggers, see listen
	enforced       bool // the application enforces foreign keys on this connection
}

// write runs fn in one transaction. Whatever fn returns as an error undoes it all.
func (l *Local) write(ctx context.Context, fn func(*tx) error, before ...func(context.Context, queryer) error) error {
	return l.transact(ctx, prepareConn, fn, before...)
}

// writePage is write for a page of downloaded documents, see preparePage.
func (l *Local) writePage(ctx context.Context, fn func(*tx) error) error {
	return l.transact(ctx, preparePage, fn)
}

func (l *Local) transact(ctx context.Context, prepare func(context.Context, *sql.Conn) (func(), error), fn func(*tx) error,
	before ...func(context.Context, queryer) error,
) (err error) {
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("get a database connection: %w", err)
	}
	var enforced bool
	if err := conn.Conn.QueryRowContext(ctx, "PRAGMA foreign_keys").Scan(&enforced); err != nil {
		return errors.Join(fmt.Errorf("prepare a database connection: %w", explain(err)), conn.Close())
	}
	restore, err := prepare(ctx, conn.Conn)
	defer func() {
		restore()
		err = errors.Join(err, conn.Close())
	}()
	if err != nil {
		return err
	}
	if _, err := conn.Conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		// A driver may answer with the context's error although the transaction began.
		_, _ = conn.Conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		return fmt.Errorf("begin a transaction: %w", explain(err))
	}
	t := &tx{ctx: ctx, quiet: context.WithoutCancel(ctx), conn: conn.Conn, stmts: map[string]*sql.Stmt{}, keys: map[string][]any{}, promised: map[string][]any{}, enforced: enforced}
	committed := false
	defer func() {
		t.closeStatements()
		if !committed {
			_, _ = conn.Conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK") // fails when SQLite rolled back already
		}
	}()
	for _, b := range before {
		if err := b(ctx, conn.Conn); err != nil {
			return err
		}
	}
	if err := t.exec(`UPDATE tidemark_state SET applying = 1`); err != nil {
		return err
	}
	if err := fn(t); err != nil {
		return err
	}
	if err := t.exec(`UPDATE tidemark_state SET applying = 0`); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	t.closeStatements()
	if _, err := conn.Conn.ExecContext(context.WithoutCancel(ctx), "COMMIT"); err != nil {
		return fmt.Errorf("commit: %w", explain(err))
	}
	committed = true
	return nil
}

// minBusyTimeout in ms: the application's own transactions are short, ours too.
const minBusyTimeout = 10_000

// prepareConn turns off foreign-key enforcement and makes the connection wait for
// the application's writes; the returned function puts back what was there.
func prepareConn(ctx context.Context, conn *sql.Conn) (restore func(), err error) {
	var fk, busy int
	undo := []string{}
	restore = func() {
		for _, q := range undo {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), q)
		}
	}
	if err := conn.QueryRowContext(ctx, "PRAGMA busy_timeout").Scan(&busy); err != nil {
		return restore, fmt.Errorf("prepare a database connection: %w", explain(err))
	}
	if busy < minBusyTimeout {
		undo = append(undo, fmt.Sprintf("PRAGMA busy_timeout = %d", busy))
		if err := drain(ctx, conn, fmt.Sprintf("PRAGMA busy_timeout = %d", minBusyTimeout)); err != nil {
			return restore, fmt.Errorf("prepare a database connection: %w", explain(err))
		}
	}
	if err := conn.QueryRowContext(ctx, "PRAGMA foreign_keys").Scan(&fk); err != nil {
		return restore, fmt.Errorf("prepare a database connection: %w", explain(err))
	}
	if fk != 0 {
		undo = append(undo, "PRAGMA foreign_keys = ON")
		if _, err := conn.ExecContext(ctx, "PRAGMA foreign_keys = OFF"); err != nil {
			return restore, fmt.Errorf("prepare a database connection: %w", explain(err))
		}
	}
	return restore, nil
}

// The pages of a download have their ids in order, but not their rows: a thousand
// rows change a thousand pages of the file. With less cache SQLite writes many of
// them twice, with a shorter log it checkpoints after every transaction.
const (
	pageCacheKiB   = 16 << 10
	pageCheckpoint = 32_000 // pages of the file, usually of 4 KiB
)

// preparePage prepares a connection for a page of a download. What a power cut
// takes of it, it takes together with the download's position, so in a write-ahead
// log it need not be on the disk at once: the transaction that ends the download
// takes all before it along.
func preparePage(ctx context.Context, conn *sql.Conn) (func(), error) {
	restore, err := prepareConn(ctx, conn)
	if err != nil {
		return restore, err
	}
	var journal string
	if err := conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return restore, fmt.Errorf("prepare a database connection: %w", explain(err))
	}
	if journal != "wal" {
		return restore, nil
	}
	// While there are temporary tables, SQLite would drop them with the change.
	var temporaries int
	if err := conn.QueryRowContext(ctx, "SELECT count(*) FROM pragma_database_list WHERE name = 'temp'").Scan(&temporaries); err != nil {
		return restore, fmt.Errorf("prepare a database connection: %w", explain(err))
	}
	undo := []string{}
	back := func() {
		for _, q := range undo {
			_ = drain(context.WithoutCancel(ctx), conn, q)
		}
		restore()
	}
	const synchronousFull, inMemory = 2, 2
	for _, s := range []struct {
		pragma string
		want   int
		better func(was int) bool
	}{
		{"synchronous", 1, func(was int) bool { return was >= synchronousFull }},
		{"cache_size", -pageCacheKiB, func(was int) bool { return was < 0 && was > -pageCacheKiB || was >= 0 && was < pageCacheKiB/4 }},
		// What undoes a single statement; every row has triggers and so needs one.
		{"temp_store", inMemory, func(was int) bool { return was != inMemory && temporaries == 0 }},
		{"wal_autocheckpoint", pageCheckpoint, func(was int) bool { return was > 0 && was < pageCheckpoint }},
	} {
		var was int
		if err := conn.QueryRowContext(ctx, "PRAGMA "+s.pragma).Scan(&was); err != nil {
			return back, fmt.Errorf("prepare a database connection: %w", explain(err))
		}
		if !s.better(was) {
			continue
		}
		undo = append(undo, fmt.Sprintf("PRAGMA %s = %d", s.pragma, was))
		if err := drain(ctx, conn, fmt.Sprintf("PRAGMA %s = %d", s.pragma, s.want)); err != nil {
			return back, fmt.Errorf("prepare a database connection: %w", explain(err))
		}
	}
	return back, nil
}

// drain runs a statement that may answer with rows.
func drain(ctx context.Context, q queryer, query string) error {
	rows, err := q.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	for rows.Next() {
	}
	return errors.Join(rows.Err(), rows.Close())
}

// prepare returns the statement for a query, prepared once a transaction.
func (t *tx) prepare(query string) (*sql.Stmt, error) {
	if s := t.stmts[query]; s != nil {
		return s, nil
	}
	s, err := t.conn.PrepareContext(t.ctx, query)
	if err != nil {
		return nil, fmt.Errorf("prepare %.80q: %w", query, explain(err))
	}
	t.stmts[query] = s
	return s, nil
}

func (t *tx) closeStatements() {
	for q, s := range t.stmts {
		_ = s.Close()
		delete(t.stmts, q)
	}
}

// run executes a prepared statement and says how many rows it changed. A context
// that can end costs the driver a goroutine a statement; so it is asked before.
func (t *tx) run(query string, args ...any) (int64, error) {
	s, err := t.prepare(query)
	if err == nil {
		err = t.ctx.Err()
	}
	if err != nil {
		return 0, err
	}
	res, err := s.ExecContext(t.quiet, args...)
	if rowsFault(err) {
		return 0, refusedError{err}
	}
	if err != nil {
		return 0, explain(err)
	}
	return res.RowsAffected()
}

func (t *tx) exec(query string, args ...any) error {
	_, err := t.run(query, args...)
	return err
}

func (t *tx) row(query string, args ...any) scanner {
	s, err := t.prepare(query)
	if err == nil {
		err = t.ctx.Err()
	}
	if err != nil {
		return failed{err}
	}
	return s.QueryRowContext(t.quiet, args...)
}

// each calls fn for every row of a query; scan reads the current one.
func (t *tx) each(query string, args []any, fn func(scan func(...any) error) error) error {
	s, err := t.prepare(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(t.ctx, args...)
	if err != nil {
		return explain(err)
	}
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

type scanner interface{ Scan(dest ...any) error }

type failed struct{ err error }

func (f failed) Scan(...any) error { return f.err }

// found turns sql.ErrNoRows into false.
func found(err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
