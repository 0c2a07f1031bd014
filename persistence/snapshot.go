package persistence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tidemark-sync/tidemark/messages"
)

// Path is the database's file; "" for one in memory.
func (l *Local) Path(ctx context.Context) (string, error) {
	var seq int
	var name, file string
	err := l.db.DB.QueryRowContext(ctx, `SELECT seq, name, file FROM pragma_database_list WHERE name = 'main'`).Scan(&seq, &name, &file)
	if err != nil {
		return "", fmt.Errorf("find the database's file: %w", explain(err))
	}
	return file, nil
}

// temporary is what the names of our temporary files beside a database start with.
const temporary = ".tidemark-tmp-"

// tempBeside makes an empty folder for temporary files beside the database, on the
// same disk and with nobody else's rights.
func tempBeside(file string) (string, error) {
	return os.MkdirTemp(filepath.Dir(file), filepath.Base(file)+temporary)
}

// RemoveTemporary removes what a crashed program left beside the database. Call it
// only while holding the lock of the file's cycle.
func RemoveTemporary(file string) error {
	left, err := filepath.Glob(globEscape(file) + temporary + "*")
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range left {
		errs = append(errs, os.RemoveAll(f))
	}
	return errors.Join(errs...)
}

func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// Snapshot copies the database while the application goes on: one consistent state
// with its vector, without what belongs to this installation. The body is the copy,
// compressed; it streams, and closing it removes the copy.
func (l *Local) Snapshot(ctx context.Context) (messages.Snapshot, io.ReadCloser, error) {
	file, err := l.Path(ctx)
	if err != nil {
		return messages.Snapshot{}, nil, err
	}
	if file == "" {
		return messages.Snapshot{}, nil, errors.New("a database in memory cannot be backed up: use a file")
	}
	dir, err := tempBeside(file)
	if err != nil {
		return messages.Snapshot{}, nil, fmt.Errorf("make room for a snapshot: %w", explain(err))
	}
	path := filepath.Join(dir, "snapshot.db")
	snap, err := l.copyTo(ctx, path)
	if err != nil {
		return snap, nil, errors.Join(fmt.Errorf("make a snapshot: %w", err), os.RemoveAll(dir))
	}
	body, err := compressed(path, dir)
	if err != nil {
		return snap, nil, errors.Join(fmt.Errorf("make a snapshot: %w", err), os.RemoveAll(dir))
	}
	return snap, body, nil
}

// copyTo makes the cleaned copy on a connection of its own. The copy is reached by
// ATTACH: no driver has to be known, and the live file is never opened a second
// time.
func (l *Local) copyTo(ctx context.Context, path string) (snap messages.Snapshot, err error) {
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return snap, fmt.Errorf("get a database connection: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	c := conn.Conn
	restore, err := prepareConn(ctx, c)
	defer restore()
	if err != nil {
		return snap, err
	}
	if _, err := c.ExecContext(ctx, `VACUUM main INTO ?`, path); err != nil {
		return snap, fmt.Errorf("copy the database: %w", explain(err))
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return snap, err
	}
	if _, err := c.ExecContext(ctx, `ATTACH DATABASE ? AS tidemark_snapshot`, path); err != nil {
		return snap, fmt.Errorf("open the copy: %w", explain(err))
	}
	defer func() {
		_, derr := c.ExecContext(context.WithoutCancel(ctx), `DETACH DATABASE tidemark_snapshot`)
		err = errors.Join(err, explain(derr))
	}()
	// Nothing of what is removed may be left in free pages.
	if err := drain(ctx, c, `PRAGMA tidemark_snapshot.secure_delete = ON`); err != nil {
		return snap, explain(err)
	}
	if err := drain(ctx, c, `PRAGMA tidemark_snapshot.journal_mode = MEMORY`); err != nil { // a crash discards the copy anyway
		return snap, explain(err)
	}
	snap, err = describe(ctx, c)
	if err != nil {
		return snap, err
	}
	for _, q := range []string{
		`INSERT INTO tidemark_snapshot.tidemark_seen (device, seq) SELECT installationId, seq FROM tidemark_snapshot.tidemark_state WHERE seq > 0
			ON CONFLICT (device) DO UPDATE SET seq = max(seq, excluded.seq)`,
		// A document that did not fit here may fit there, and was counted as seen.
		`INSERT OR IGNORE INTO tidemark_snapshot.tidemark_inbox (tableName, documentId, kind, updateTime, reason, document)
			SELECT tableName, documentId, 'waiting', updatedOn, reason, payload FROM tidemark_snapshot.tidemark_dead_letters
			WHERE handler = 'download' AND documentId <> ''`,
		`DELETE FROM tidemark_snapshot.tidemark_dead_letters`,
		`DELETE FROM tidemark_snapshot.tidemark_ledger`,
		`DELETE FROM tidemark_snapshot.tidemark_cost`,
		`DELETE FROM tidemark_snapshot.tidemark_tokens`,
		`DELETE FROM tidemark_snapshot.tidemark_targets`,
		`DELETE FROM tidemark_snapshot.tidemark_replaced`,
		`DELETE FROM tidemark_snapshot.tidemark_turn`,
		`UPDATE tidemark_snapshot.tidemark_state SET applying = 0, clockOffset = 0, installationId = '', seq = 0, recordVersion = 0,
			recordTables = '{}', registeredOn = 0, checkedAt = 0, firstAt = 0, cutBroken = 0, schemaVersion = -1, backedUp = '{}', backedUpOn = 0,
			generation = '', maker = '', snapshotSize = 0, changedRows = 0`,
		`DELETE FROM tidemark_snapshot.sqlite_sequence WHERE name LIKE 'tidemark\_%' ESCAPE '\'`,
	} {
		if _, err := c.ExecContext(ctx, q); err != nil {
			return snap, fmt.Errorf("clean the copy: %w", explain(err))
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return snap, err
	}
	snap.RawSize = st.Size()
	return snap, nil
}

// describe reads from the copy itself what the manifest says of it.
func describe(ctx context.Context, q queryer) (messages.Snapshot, error) {
	s := messages.Snapshot{Seen: messages.Vector{}, DownloadedTill: map[string]int64{}, MadeOn: time.Now().UnixMilli(), Bookkeeping: formatVersion}
	var seq int64
	if err := q.QueryRowContext(ctx, `SELECT installationId, seq FROM tidemark_snapshot.tidemark_state`).Scan(&s.Device, &seq); err != nil {
		return s, fmt.Errorf("read the copy: %w", explain(err))
	}
	if seq > 0 {
		s.Seen[s.Device] = seq
	}
	if err := eachRow(ctx, q, `SELECT device, seq FROM tidemark_snapshot.tidemark_seen`, func(scan func(...any) error) error {
		var d string
		var n int64
		err := scan(&d, &n)
		s.Seen.Raise(d, n)
		return err
	}); err != nil {
		return s, fmt.Errorf("read the copy: %w", explain(err))
	}
	if err := eachRow(ctx, q, `SELECT tableName, coalesce(downloadedTill, 0) FROM tidemark_snapshot.tidemark_DownloadedTracker`, func(scan func(...any) error) error {
		var t string
		var n int64
		err := scan(&t, &n)
		s.DownloadedTill[t] = n
		return err
	}); err != nil {
		return s, fmt.Errorf("read the copy: %w", explain(err))
	}
	if err := countRows(ctx, q, "tidemark_snapshot", &s); err != nil {
		return s, fmt.Errorf("count the rows of the copy: %w", explain(err))
	}
	if err := q.QueryRowContext(ctx, `PRAGMA tidemark_snapshot.user_version`).Scan(&s.UserVersion); err != nil {
		return s, fmt.Errorf("read the copy: %w", explain(err))
	}
	err := eachRow(ctx, q, `PRAGMA tidemark_snapshot.foreign_key_check`, func(func(...any) error) error {
		s.Dangling++
		return nil
	})
	if err != nil && strings.Contains(err.Error(), "foreign key mismatch") {
		err = nil // the schema declares a key onto no key: SQLite cannot check it, here or there
	}
	if err != nil {
		return s, fmt.Errorf("check the copy: %w", explain(err))
	}
	return s, nil
}

// compressed streams a file through zstd; closing removes dir.
func compressed(path, dir string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		enc, err := zstd.NewWriter(pw, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(4<<20))
		if err == nil {
			_, err = io.Copy(enc, f)
			err = errors.Join(err, enc.Close())
		}
		pw.CloseWithError(err)
	}()
	return &snapshotBody{pr, f, dir, done}, nil
}

type snapshotBody struct {
	*io.PipeReader
	file *os.File
	dir  string
	done chan struct{}
}

func (b *snapshotBody) Close() error {
	err := b.PipeReader.Close()
	<-b.done
	return errors.Join(err, b.file.Close(), os.RemoveAll(b.dir))
}
