package integration

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"modernc.org/sqlite"
)

// The simulation's SQLite: modernc's, with a clock and random ids that a running
// simulation or a bubble decides, and in openSim with local commits around which a process
// can die. The other tests have SQLite's own clock: it tells the same time throughout a
// statement, which this one does where time stands still meanwhile.
var simSQLite = func() *sqlite.Driver {
	d := new(sqlite.Driver)
	err := errors.Join(
		d.RegisterScalarFunction("randomblob", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
			n, _ := args[0].(int64)
			b := make([]byte, max(n, 1))
			if w := simRunning.Load(); w != nil {
				_, _ = w.ids.Read(b) // never fails
			} else {
				_, _ = rand.Read(b) // never fails
			}
			return b, nil
		}),
		d.RegisterScalarFunction("julianday", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
			if args[0] != "now" {
				return nil, errors.New("the simulation's julianday knows 'now' only")
			}
			now := time.Now()
			if w := simRunning.Load(); w != nil {
				now = now.Add(w.skew())
			}
			return float64(now.UnixMilli())/86400000 + 2440587.5, nil
		}))
	if err != nil {
		panic(err)
	}
	return d
}()

func init() { sql.Register("simulation", simSQLite) }

// simRunning is the simulation that runs; there is one at a time in a process.
var simRunning atomic.Pointer[simWorld]

var errDied = errors.New("this process has died")

// simDisk is a device's process as its database sees it.
type simDisk struct {
	commits int    // so far
	dieAt   int    // around which commit; 0: none
	after   bool   // it still took effect
	dead    bool   // nothing is written any more
	died    func() // called at that moment
}

func (d *simDisk) die() {
	if d.dead {
		return
	}
	d.dead = true
	if d.died != nil {
		d.died()
	}
}

// around runs a statement, if the process lives to see it.
func (d *simDisk) around(query string, run func() error) error {
	if d.dead {
		return errDied
	}
	if query != "COMMIT" {
		return run()
	}
	d.commits++
	if d.commits == d.dieAt && !d.after {
		d.die()
		return errDied
	}
	err := run()
	if d.commits == d.dieAt {
		d.die()
		return errDied
	}
	return err
}

type simConnector struct {
	dsn  string
	disk *simDisk
}

func (c *simConnector) Driver() driver.Driver { return simSQLite }

func (c *simConnector) Connect(context.Context) (driver.Conn, error) {
	if c.disk.dead {
		return nil, errDied
	}
	conn, err := simSQLite.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	return &simConn{Conn: conn, disk: c.disk, cache: map[string]*simStmt{}}, nil
}

func openSim(dsn string, disk *simDisk) *sql.DB {
	return sql.OpenDB(&simConnector{dsn, disk})
}

// simConn keeps statements prepared: most of a small fleet's time goes into parsing.
type simConn struct {
	driver.Conn
	disk  *simDisk
	cache map[string]*simStmt
}

func (c *simConn) Close() error {
	for _, s := range c.cache {
		_ = s.inner.Close()
	}
	return c.Conn.Close()
}

// prepared returns a statement that nobody uses at the moment. What acts while it is
// prepared, or changes the schema, is not kept.
func (c *simConn) prepared(query string) (*simStmt, error) {
	if s := c.cache[query]; s != nil && !s.busy {
		s.busy = true
		return s, nil
	}
	inner, err := c.Prepare(query)
	if err != nil {
		return nil, err
	}
	s := &simStmt{conn: c, query: query, inner: inner, busy: true}
	word, _, _ := strings.Cut(strings.TrimSpace(query), " ")
	switch strings.ToUpper(word) {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE":
		if c.cache[query] == nil && !strings.Contains(query, ";") {
			c.cache[query] = s
			s.kept = true
		}
	}
	return s, nil
}

func (c *simConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	return c.prepared(query)
}

func (c *simConn) usable(ctx context.Context) error {
	if c.disk.dead {
		return errDied
	}
	return ctx.Err()
}

func (c *simConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	s, err := c.prepared(query)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.ExecContext(ctx, args)
}

func (c *simConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	s, err := c.prepared(query)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(ctx, args)
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return &simRows{rows, s}, nil
}

type simStmt struct {
	conn  *simConn
	query string
	inner driver.Stmt
	busy  bool
	kept  bool
}

func (s *simStmt) Close() error {
	s.busy = false
	if s.kept {
		return nil
	}
	return s.inner.Close()
}

func (s *simStmt) NumInput() int { return s.inner.NumInput() }

// Exec and Query without a context are what database/sql no longer calls.
func (s *simStmt) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }

func (s *simStmt) Query([]driver.Value) (driver.Rows, error) { return nil, driver.ErrSkip }

// A context that can end costs the driver a goroutine a statement, whose end is the
// scheduler's: here a context ends between statements.
func (s *simStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (r driver.Result, err error) {
	if err := s.conn.usable(ctx); err != nil {
		return nil, err
	}
	err = s.conn.disk.around(s.query, func() (err error) {
		r, err = s.inner.(driver.StmtExecContext).ExecContext(context.Background(), args)
		return err
	})
	return r, err
}

func (s *simStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.conn.usable(ctx); err != nil {
		return nil, err
	}
	return s.inner.(driver.StmtQueryContext).QueryContext(context.Background(), args)
}

type simRows struct {
	driver.Rows
	stmt *simStmt
}

func (r *simRows) Close() error {
	return errors.Join(r.Rows.Close(), r.stmt.Close())
}
