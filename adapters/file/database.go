package file

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"github.com/tidemark-sync/tidemark/messages"
)

const (
	databaseName = "remote.sqlite"
	// applicationID marks the file as ours ("tdmk"), formatVersion says how it is
	// laid out.
	applicationID = 0x74646d6b
	formatVersion = 1
	// lockPatience is how long a call waits for other processes.
	lockPatience = 30 * time.Second
	lockRetry    = 2 * time.Millisecond
)

// A version holds from updateTime until until, which is NULL for what is there
// now. A purge ends the last version and adds none.
var schema = []string{
	`CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL, scope TEXT NOT NULL)`,
	`INSERT INTO clock (id, last, scope) VALUES (1, 0, 'file:' || lower(hex(randomblob(16))))`,
	`CREATE TABLE devices (
		id TEXT PRIMARY KEY,
		updateTime INTEGER NOT NULL,
		uploadedOn INTEGER NOT NULL,
		record TEXT NOT NULL
	) WITHOUT ROWID`,
	`CREATE TABLE versions (
		tableName TEXT NOT NULL,
		id TEXT NOT NULL,
		updateTime INTEGER NOT NULL,
		until INTEGER,
		device TEXT NOT NULL,
		seq INTEGER NOT NULL,
		createdOn INTEGER NOT NULL,
		updatedOn INTEGER NOT NULL,
		updatedBy TEXT NOT NULL,
		uploadedOn INTEGER NOT NULL,
		deleted INTEGER NOT NULL,
		survivor TEXT NOT NULL,
		fields BLOB NOT NULL,
		PRIMARY KEY (tableName, id, updateTime)
	) WITHOUT ROWID`,
	`CREATE INDEX versions_log ON versions (tableName, device, seq, id)`,
	`CREATE INDEX versions_old ON versions (until) WHERE until IS NOT NULL`,
}

// Remote is a remote in a folder.
type Remote struct {
	path string
	// opened is the file we opened: when another one is in its place, writes would
	// go nowhere.
	opened os.FileInfo
	// writer syncs every commit to the disk. clock moves the clock on, which need
	// not survive a power cut: the machine's own clock does. reader never writes.
	writer, clock, reader *sql.DB
	scope                 string
}

// Scope is minted with the remote and stays when its folder moves.
func (r *Remote) Scope() string { return r.scope }

// OpenRemote opens the remote in a folder, and makes the folder (not its parents)
// and the remote when they do not exist. Errors: messages.ErrNotFound when dir is
// no folder or holds something else, messages.ErrUnauthorized when it cannot be
// written, messages.ErrUnavailable when its disk is full or another process keeps
// it locked for 30 s.
func OpenRemote(dir string) (*Remote, error) {
	r, err := openRemote(dir)
	if err != nil {
		return nil, fmt.Errorf("open the remote in %q: %w", dir, classify(context.Background(), err))
	}
	return r, nil
}

func openRemote(dir string) (*Remote, error) {
	abs, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	// One process at a time creates the file and switches it to WAL.
	lock := flock.New(filepath.Join(abs, "remote.lock"))
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return nil, classify(ctx, err)
	}
	defer lock.Close()
	path := filepath.Join(abs, databaseName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	r := &Remote{path: path}
	if r.opened, err = os.Stat(path); err != nil {
		return nil, err
	}
	if !r.opened.Mode().IsRegular() {
		return nil, messages.Saying(messages.ErrNotFound, "%s is not a file", databaseName)
	}
	if r.writer, err = open(path, 1, "synchronous(FULL)"); err != nil {
		return nil, err
	}
	if r.clock, err = open(path, 1, "synchronous(NORMAL)"); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if r.reader, err = open(path, 4, "query_only(1)"); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := r.prepare(ctx); err != nil {
		return nil, errors.Join(classify(ctx, err), r.Close())
	}
	if err := r.reader.QueryRowContext(ctx, `SELECT scope FROM clock`).Scan(&r.scope); err != nil {
		return nil, errors.Join(classify(ctx, err), r.Close())
	}
	return r, nil
}

// open makes a pool. A writer's busy_timeout is short because SQLite's wait does
// not watch the context: begin tries again. Its cache and log are larger than the
// defaults because ids are random, so a commit touches about a page a document.
func open(path string, conns int, pragma string) (*sql.DB, error) {
	q := url.Values{
		"_pragma": {"busy_timeout(200)", "journal_mode(WAL)", "cache_size(-4000)", "wal_autocheckpoint(4000)", pragma},
		"_txlock": {"immediate"},
	}
	if conns > 1 {
		q = url.Values{"_pragma": {"busy_timeout(10000)", pragma}}
	}
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path), RawQuery: q.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// prepare creates the tables of a new file, or checks that it is ours.
func (r *Remote) prepare(ctx context.Context) error {
	tx, err := begin(ctx, r.writer)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // nothing is lost
	var id, version, tables int
	if err := tx.QueryRowContext(ctx, `SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
		(SELECT count(*) FROM sqlite_schema)`).Scan(&id, &version, &tables); err != nil {
		return err
	}
	switch {
	case tables == 0:
		for _, q := range append(schema, fmt.Sprintf(`PRAGMA application_id = %d`, applicationID), fmt.Sprintf(`PRAGMA user_version = %d`, formatVersion)) {
			if _, err := tx.ExecContext(ctx, q); err != nil {
				return err
			}
		}
		return tx.Commit()
	case id != applicationID:
		return messages.Saying(messages.ErrNotFound, "%s is a database of another program, name another folder", databaseName)
	case version > formatVersion:
		return messages.Saying(messages.ErrRejected, "a newer tidemark made it (format %d, this one knows %d), upgrade this program", version, formatVersion)
	}
	return nil
}

// begin waits for the write lock.
func begin(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	start := time.Now()
	for {
		tx, err := db.BeginTx(ctx, nil)
		if err == nil {
			return tx, nil
		}
		if !busy(err) || ctx.Err() != nil {
			return nil, err
		}
		if time.Since(start) > lockPatience {
			return nil, fmt.Errorf("another process holds the lock for %v: %w: %w", lockPatience, err, messages.ErrUnavailable)
		}
	}
}

// check fails when the file is no longer where it was opened.
func (r *Remote) check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := os.Stat(r.path)
	if err != nil {
		return err
	}
	if !os.SameFile(info, r.opened) {
		return messages.Saying(messages.ErrNotFound, "%s was replaced while it was in use, open it again", databaseName)
	}
	return nil
}

// Close ends all connections.
func (r *Remote) Close() error {
	var err error
	for _, db := range []*sql.DB{r.reader, r.clock, r.writer} {
		if db != nil {
			err = errors.Join(err, db.Close())
		}
	}
	return err
}
