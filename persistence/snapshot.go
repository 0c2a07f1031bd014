package persistence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

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
	return os.MkdirTemp(filepath.Dir(file), filepath.Base(file)+temporary+"*") // the last * is the random one
}

// Temporary makes a file beside the database that RemoveTemporary knows.
func Temporary(file string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(file), filepath.Base(file)+temporary+"*")
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

// ForSnapshots says what every snapshot is bound to and how it is encrypted; nil is
// not at all.
func (l *Local) ForSnapshots(scope string, enc Encryption) { l.scope, l.enc = scope, enc }

// InStore says which store the snapshots are in, "" when that is not known, and whether
// to look there for the newest one although none is due.
func (l *Local) InStore(store string, look bool) { l.store, l.look = store, look }

// A restore reads a whole snapshot and what changed since, at most so often. Much
// fewer, and whole ones are uploaded for nothing; many more, and one damaged object
// takes too many snapshots with it.
const maxChanges = 20

// Snapshot copies the database while the application goes on: one consistent state
// with its vector, without what belongs to this installation. When current is the
// last one that was made of this file, the body is only what changed since; else it
// is the whole copy. It is compressed, and encrypted when there is a key. It streams,
// and closing it removes the copy. The copy is checked while it streams: whoever has
// read the end has a sound one.
func (l *Local) Snapshot(ctx context.Context, generation string, madeOn int64, current messages.Snapshot) (messages.Snapshot, io.ReadCloser, error) {
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
	m := &making{dir: dir, path: filepath.Join(dir, "snapshot.db"), enc: l.enc}
	m.snap.Generation, m.snap.MadeOn, m.snap.Scope = generation, madeOn, l.scope
	body, err := l.make(ctx, m, file+pagesSuffix, current)
	if err != nil {
		return m.snap, nil, fmt.Errorf("make a snapshot: %w", explain(errors.Join(err, m.end())))
	}
	l.mu.Lock()
	l.list = newList{generation, filepath.Join(dir, "pages"), file + pagesSuffix}
	l.mu.Unlock()
	return m.snap, body, nil
}

func (l *Local) make(ctx context.Context, m *making, list string, current messages.Snapshot) (io.ReadCloser, error) {
	ctx, m.stop = context.WithCancel(ctx)
	if err := l.copyTo(ctx, m); err != nil {
		return nil, err
	}
	if err := m.compare(ctx, list, current); err != nil {
		return nil, err
	}
	return m.body()
}

// newList is the list of pages of a snapshot on its way; BackedUp puts it in place.
type newList struct{ generation, from, to string }

// keepList makes the list of pages of a snapshot that is the current one now the one
// to compare with. Without it the next snapshot is whole, so a failure is none.
func (l *Local) keepList(generation string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list.generation == generation && generation != "" {
		_ = os.Rename(l.list.from, l.list.to)
	}
	l.list = newList{}
}

// copyTo makes the cleaned copy on a connection of its own. The copy is reached by
// ATTACH: no driver has to be known, and the live file is never opened a second
// time.
func (l *Local) copyTo(ctx context.Context, m *making) (err error) {
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("get a database connection: %w", err)
	}
	c := conn.Conn
	restore, err := prepareConn(ctx, c)
	end := func(err error) error {
		restore()
		return errors.Join(err, conn.Close())
	}
	defer func() {
		if err != nil {
			err = end(err)
		}
	}()
	if err != nil {
		return err
	}
	if m.pages, err = copyPages(ctx, c, m.path); err != nil {
		return fmt.Errorf("copy the database: %w", explain(err))
	}
	if !m.pages {
		if _, err := c.ExecContext(ctx, `VACUUM main INTO ?`, m.path); err != nil {
			return fmt.Errorf("copy the database: %w", explain(err))
		}
		if err := os.Chmod(m.path, 0o600); err != nil {
			return err
		}
	}
	if _, err := c.ExecContext(ctx, `ATTACH DATABASE ? AS tidemark_snapshot`, m.path); err != nil {
		return fmt.Errorf("open the copy: %w", explain(err))
	}
	closeConn := end
	end = func(err error) error {
		_, derr := c.ExecContext(context.WithoutCancel(ctx), `DETACH DATABASE tidemark_snapshot`)
		return closeConn(errors.Join(err, explain(derr)))
	}
	// Nothing of what is removed may be left in free pages.
	if err := drain(ctx, c, `PRAGMA tidemark_snapshot.secure_delete = ON`); err != nil {
		return explain(err)
	}
	if err := drain(ctx, c, `PRAGMA tidemark_snapshot.journal_mode = MEMORY`); err != nil { // a crash discards the copy anyway
		return explain(err)
	}
	if err := describe(ctx, c, &m.snap); err != nil {
		return err
	}
	if err := clean(ctx, c, m.snap.Scope, m.enc != nil); err != nil {
		return err
	}
	m.aside(func() error { return end(checkCopy(ctx, c)) })
	return nil
}

// checkCopy: a damaged database must not take the place of one that restores.
func checkCopy(ctx context.Context, c queryer) error {
	var verdict string
	if err := c.QueryRowContext(ctx, `PRAGMA tidemark_snapshot.quick_check(1)`).Scan(&verdict); err != nil {
		return fmt.Errorf("check the copy: %w", explain(err))
	}
	if verdict != "ok" {
		return fmt.Errorf("%w; the snapshots in the store stay as they are (SQLite's check: %s)", ErrNotDatabase, verdict)
	}
	return nil
}

// clean takes out of the copy what belongs to this installation.
func clean(ctx context.Context, c queryer, scope string, encrypted bool) error {
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
			generation = '', maker = '', snapshotSize = 0, changedRows = 0, store = ''`,
		`DELETE FROM tidemark_snapshot.sqlite_sequence WHERE name LIKE 'tidemark\_%' ESCAPE '\'`,
	} {
		if _, err := c.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("clean the copy: %w", explain(err))
		}
	}
	if _, err := c.ExecContext(ctx, `UPDATE tidemark_snapshot.tidemark_state SET scope = ?, snapshotEncrypted = ?`, scope, encrypted); err != nil {
		return fmt.Errorf("clean the copy: %w", explain(err))
	}
	return nil
}

// describe reads from the copy itself what the manifest says of it.
func describe(ctx context.Context, q queryer, s *messages.Snapshot) error {
	s.Format, s.Bookkeeping = messages.ManifestFormat, formatVersion
	s.Seen, s.DownloadedTill = messages.Vector{}, map[string]int64{}
	var seq int64
	var scope string
	if err := q.QueryRowContext(ctx, `SELECT installationId, seq, scope FROM tidemark_snapshot.tidemark_state`).Scan(&s.Device, &seq, &scope); err != nil {
		return fmt.Errorf("read the copy: %w", explain(err))
	}
	if s.Scope == "" {
		s.Scope = scope
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
		return fmt.Errorf("read the copy: %w", explain(err))
	}
	if err := eachRow(ctx, q, `SELECT tableName, coalesce(downloadedTill, 0) FROM tidemark_snapshot.tidemark_DownloadedTracker`, func(scan func(...any) error) error {
		var t string
		var n int64
		err := scan(&t, &n)
		s.DownloadedTill[t] = n
		return err
	}); err != nil {
		return fmt.Errorf("read the copy: %w", explain(err))
	}
	if err := countRows(ctx, q, "tidemark_snapshot", s); err != nil {
		return fmt.Errorf("count the rows of the copy: %w", explain(err))
	}
	if err := q.QueryRowContext(ctx, `PRAGMA tidemark_snapshot.user_version`).Scan(&s.UserVersion); err != nil {
		return fmt.Errorf("read the copy: %w", explain(err))
	}
	err := eachRow(ctx, q, `PRAGMA tidemark_snapshot.foreign_key_check`, func(func(...any) error) error {
		s.Dangling++
		return nil
	})
	if err != nil && !mismatch(err) {
		return fmt.Errorf("check the copy: %w", explain(err))
	}
	return nil
}
