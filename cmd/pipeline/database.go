package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/tidemark-sync/tidemark"
)

// fileDriver is modernc's driver for plain paths: "?", "#" and "%" in a name stand
// for themselves, and a file that does not exist is not created.
const fileDriver = "tidemark-file"

type plainPaths struct{ driver.Driver }

func (p plainPaths) Open(path string) (driver.Conn, error) { return p.Driver.Open(dsn(path, "rw")) }

func init() {
	db, err := sql.Open("sqlite", "")
	if err != nil {
		panic(err) // the driver is not linked in
	}
	sql.Register(fileDriver, plainPaths{db.Driver()})
	_ = db.Close() // it has opened nothing
}

// dsn spells an absolute path as SQLite's URI. SQLite waits ten seconds for another
// program's transaction.
func dsn(path, mode string, pragmas ...string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a Windows drive
	}
	q := url.Values{"mode": {mode}, "_pragma": append(pragmas, "busy_timeout(10000)")}
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}
	return u.String()
}

// database is an open database file.
type database struct {
	*bun.DB
	path string // as the user named it
}

// openDatabase opens an existing file and looks whether it is a database at all.
func (a *app) openDatabase(ctx context.Context, name setting) (*database, error) {
	a.progress.begin("opening "+name.text, nil) // somebody may hold it
	defer a.progress.end()
	path, err := checkPath(name.text)
	if err != nil {
		return nil, err
	}
	sqldb, err := sql.Open(fileDriver, path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name.text, err)
	}
	db := &database{bun.NewDB(sqldb, sqlitedialect.New()), name.text}
	var n int
	if err := db.DB.DB.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_master`).Scan(&n); err != nil {
		return nil, errors.Join(db.failed(explain(err)), db.Close())
	}
	return db, nil
}

func checkPath(path string) (string, error) {
	if strings.ContainsRune(path, 0) {
		return "", misuse("the database's name holds a NUL character")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("there is no file %s: check the name; the application creates its database, or `pipeline restore` brings one back", path)
	case err != nil:
		return "", fmt.Errorf("open the database: %w", err)
	case !st.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a file: name the database file itself", path)
	}
	return abs, nil
}

// failed says which database an error is about.
func (db *database) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", db.path, err)
}

// attached fails when `pipeline attach` was never run on the file.
func (db *database) attached(ctx context.Context) error {
	var yes bool
	err := db.DB.DB.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tidemark_tables')`).Scan(&yes)
	if err == nil && yes {
		err = db.DB.DB.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM tidemark_tables WHERE excluded = 0)`).Scan(&yes)
	}
	if err == nil && !yes {
		err = fmt.Errorf("%w: run `pipeline attach --db %s` first", tidemark.ErrNotAttached, shell(db.path))
	}
	return db.failed(explain(err))
}

// stuck is a stage that panicked over a message, and the table it was about, if any.
type stuck struct{ stage, table string }

// stuckStages lists the dead letters of whole messages.
func (db *database) stuckStages(ctx context.Context) ([]stuck, error) {
	rows, err := db.DB.DB.QueryContext(ctx, `SELECT handler, tableName FROM tidemark_dead_letters WHERE documentId = '' AND topic <> '' AND state = 'dead' ORDER BY id`)
	if err != nil {
		return nil, db.failed(explain(err))
	}
	defer rows.Close()
	var out []stuck
	for rows.Next() {
		var s stuck
		if err := rows.Scan(&s.stage, &s.table); err != nil {
			return nil, db.failed(err)
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// heldRows is how many dirty rows the last upload had to leave behind.
func (db *database) heldRows(ctx context.Context) (n int64, err error) {
	err = db.DB.DB.QueryRowContext(ctx, `SELECT heldRows FROM tidemark_state`).Scan(&n)
	return n, db.failed(explain(err))
}

// aside is why rows or documents of a table were set aside; dirty counts those that
// would have to be uploaded. reason is empty for those that the owner has given up.
type aside struct {
	table, reason string
	rows, dirty   int64
}

// setAside lists the reasons of the dead letters, the most frequent first, and then
// those that were discarded.
func (db *database) setAside(ctx context.Context) ([]aside, error) {
	rows, err := db.DB.DB.QueryContext(ctx, `SELECT tableName, iif(state = 'dead', reason, '') AS why, count(*), sum(handler = 'upload') FROM tidemark_dead_letters
		WHERE documentId <> '' OR topic = '' GROUP BY tableName, why ORDER BY why = '', count(*) DESC, tableName, why`)
	if err != nil {
		return nil, db.failed(explain(err))
	}
	defer rows.Close()
	var out []aside
	for rows.Next() {
		var a aside
		if err := rows.Scan(&a.table, &a.reason, &a.rows, &a.dirty); err != nil {
			return nil, db.failed(err)
		}
		out = append(out, a)
	}
	return out, rows.Err()
}

// failedDisk reports whether SQLite could not read or write its file, for no reason
// that it has a name for.
func failedDisk(err error) bool {
	sq, ok := errors.AsType[*sqlite.Error](err)
	return ok && sq.Code()&0xff == sqlite3.SQLITE_IOERR
}

// explain gives what SQLite says its class, and with it the remedy.
func explain(err error) error {
	sq, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	class := map[int]error{
		sqlite3.SQLITE_NOTADB:   tidemark.ErrNotDatabase,
		sqlite3.SQLITE_CORRUPT:  tidemark.ErrNotDatabase,
		sqlite3.SQLITE_BUSY:     tidemark.ErrLocked,
		sqlite3.SQLITE_LOCKED:   tidemark.ErrLocked,
		sqlite3.SQLITE_FULL:     tidemark.ErrDiskFull,
		sqlite3.SQLITE_READONLY: tidemark.ErrReadOnly,
		sqlite3.SQLITE_CANTOPEN: tidemark.ErrReadOnly,
		sqlite3.SQLITE_PERM:     tidemark.ErrReadOnly,
	}[sq.Code()&0xff]
	if class == nil || errors.Is(err, class) {
		return err
	}
	return fmt.Errorf("%w (%w)", class, err)
}
