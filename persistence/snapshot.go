package persistence

import (
	"bufio"
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

// A restore reads a whole snapshot and what changed since, at most so often. Much
// fewer, and whole ones are uploaded for nothing; many more, and one damaged object
// takes too many snapshots with it.
const maxChanges = 20

// Snapshot copies the database while the application goes on: one consistent state
// with its vector, without what belongs to this installation. When current is the
// last one that was made of this file, the body is only what changed since; else it
// is the whole copy. It is compressed, and encrypted when there is a key. It streams,
// and closing it removes the copy.
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
	err = l.copyTo(ctx, m)
	if err == nil {
		err = m.compare(ctx, file+pagesSuffix, current)
	}
	if err != nil {
		return m.snap, nil, errors.Join(fmt.Errorf("make a snapshot: %w", explain(err)), os.RemoveAll(dir))
	}
	body, err := m.body()
	if err != nil {
		return m.snap, nil, errors.Join(fmt.Errorf("make a snapshot: %w", explain(err)), os.RemoveAll(dir))
	}
	l.mu.Lock()
	l.list = newList{generation, filepath.Join(dir, "pages"), file + pagesSuffix}
	l.mu.Unlock()
	return m.snap, body, nil
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

// making is a snapshot that is being made.
type making struct {
	snap     messages.Snapshot
	dir      string
	path     string // of the cleaned copy
	pageSize int
	pages    bool // the copy has the pages of the database in their places
	delta    bool
	enc      Encryption
}

// copyTo makes the cleaned copy on a connection of its own. The copy is reached by
// ATTACH: no driver has to be known, and the live file is never opened a second
// time.
func (l *Local) copyTo(ctx context.Context, m *making) (err error) {
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("get a database connection: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	c := conn.Conn
	restore, err := prepareConn(ctx, c)
	defer restore()
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
	defer func() {
		_, derr := c.ExecContext(context.WithoutCancel(ctx), `DETACH DATABASE tidemark_snapshot`)
		err = errors.Join(err, explain(derr))
	}()
	// Nothing of what is removed may be left in free pages.
	if err := drain(ctx, c, `PRAGMA tidemark_snapshot.secure_delete = ON`); err != nil {
		return explain(err)
	}
	if err := drain(ctx, c, `PRAGMA tidemark_snapshot.journal_mode = MEMORY`); err != nil { // a crash discards the copy anyway
		return explain(err)
	}
	// A damaged database must not take the place of one that restores.
	var verdict string
	if err := c.QueryRowContext(ctx, `PRAGMA tidemark_snapshot.quick_check(1)`).Scan(&verdict); err != nil {
		return fmt.Errorf("check the copy: %w", explain(err))
	}
	if verdict != "ok" {
		return fmt.Errorf("%w; the snapshots in the store stay as they are (SQLite's check: %s)", ErrNotDatabase, verdict)
	}
	if err := describe(ctx, c, &m.snap); err != nil {
		return err
	}
	return clean(ctx, c, m.snap.Scope)
}

// clean takes out of the copy what belongs to this installation.
func clean(ctx context.Context, c queryer, scope string) error {
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
			return fmt.Errorf("clean the copy: %w", explain(err))
		}
	}
	if _, err := c.ExecContext(ctx, `UPDATE tidemark_snapshot.tidemark_state SET scope = ?`, scope); err != nil {
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

// compare reads the copy once and decides whether the snapshot is whole or what
// changed since current, whose list of pages lies at listPath.
func (m *making) compare(ctx context.Context, listPath string, current messages.Snapshot) (err error) {
	db, err := os.Open(m.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	st, err := db.Stat()
	if err != nil {
		return err
	}
	m.snap.RawSize, m.snap.Encrypted = st.Size(), m.enc != nil
	if m.pageSize, err = readPageSize(db); err != nil {
		return err
	}
	hashesPath, changesPath := filepath.Join(m.dir, "hashes"), filepath.Join(m.dir, "changes")
	list := pageList{Generation: m.snap.Generation, PageSize: m.pageSize, Salt: newSalt()}
	old, oldHashes, err := m.comparable(listPath, current)
	if err != nil {
		return err
	}
	var was io.Reader // nil when there is nothing to compare with
	if oldHashes != nil {
		defer oldHashes.Close()
		was, list.Salt = oldHashes, old.Salt
	}
	hashes, err := createFile(hashesPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hashes.Close()) }()
	changes, err := createFile(changesPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, changes.Close()) }()
	found, err := scan(&live{ctx, bufio.NewReaderSize(db, 1<<20)}, m.pageSize, list.Salt, old.Pages, was, hashes, changes)
	if err = errors.Join(err, hashes.Flush(), changes.Flush()); err != nil {
		return fmt.Errorf("read the copy: %w", err)
	}
	m.snap.RawSHA256 = found.sha256
	if was != nil && m.worthwhile(found.changed, current) {
		m.delta, m.snap.Parts = true, current.Chain()
	}
	if !m.pages {
		return nil // the next copy has its pages elsewhere
	}
	list.RawSHA256, list.Pages = found.sha256, found.pages
	if m.enc != nil {
		if list.Key, err = m.enc.Fingerprint(list.Salt); err != nil {
			return err
		}
	}
	if _, err := hashes.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return writePageList(filepath.Join(m.dir, "pages"), list, hashes.File)
}

// comparable opens the list of pages of the current snapshot, if it is one of this
// file, in the same format and for the same key; nil when there is none.
func (m *making) comparable(path string, current messages.Snapshot) (pageList, io.ReadCloser, error) {
	if !m.pages || current.Format != m.snap.Format || current.Encrypted != m.snap.Encrypted || current.Scope != m.snap.Scope ||
		current.Bookkeeping != m.snap.Bookkeeping || len(current.Parts) >= maxChanges {
		return pageList{}, nil, nil
	}
	l, hashes, f, err := readPageList(path)
	if err != nil {
		return pageList{}, nil, nil //nolint:nilerr // then the snapshot is a whole one
	}
	fits := l.Generation == current.Generation && l.RawSHA256 == current.RawSHA256 && l.PageSize == m.pageSize
	if fits && m.enc != nil {
		key, err := m.enc.Fingerprint(l.Salt)
		if err != nil {
			return pageList{}, nil, errors.Join(err, f.Close())
		}
		fits = key == l.Key // else whoever has the new key could not read the old parts
	}
	if !fits {
		return pageList{}, nil, f.Close()
	}
	return l, &struct {
		io.Reader
		io.Closer
	}{hashes, f}, nil
}

// worthwhile: what changed is little beside the whole, and so is all that a restore
// would read more than a whole one.
func (m *making) worthwhile(changed int64, current messages.Snapshot) bool {
	whole := current.Chain()[0].Size
	more := current.Download() - whole + changed*whole/max(current.RawSize, 1)
	return changed <= m.snap.RawSize/2 && more <= whole/2
}

// body streams the object.
func (m *making) body() (io.ReadCloser, error) {
	db, err := os.Open(m.path)
	if err != nil {
		return nil, err
	}
	changes, err := os.Open(filepath.Join(m.dir, "changes"))
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		out := bufio.NewWriterSize(pw, 256<<10)
		err := writeObject(out, m.snap.Header(m.pageSize), m.enc, func(w io.Writer) error {
			if m.delta {
				return writeChanges(w, bufio.NewReaderSize(changes, 64<<10), db, m.pageSize)
			}
			_, err := io.CopyBuffer(struct{ io.Writer }{w}, db, make([]byte, 256<<10))
			return err
		})
		if err == nil {
			err = out.Flush()
		}
		pw.CloseWithError(err)
	}()
	return &snapshotBody{pr, []*os.File{db, changes}, m.dir, done}, nil
}

type snapshotBody struct {
	*io.PipeReader
	files []*os.File
	dir   string
	done  chan struct{}
}

func (b *snapshotBody) Close() error {
	err := b.PipeReader.Close()
	<-b.done
	for _, f := range b.files {
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// outFile is a new file, for us alone.
type outFile struct {
	*bufio.Writer
	*os.File
}

func (o *outFile) Write(p []byte) (int, error) { return o.Writer.Write(p) }

func createFile(path string) (*outFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &outFile{bufio.NewWriterSize(f, 256<<10), f}, nil
}

// live ends a reader with its context.
type live struct {
	ctx context.Context //nolint:containedctx // lives inside one call
	r   io.Reader
}

func (l *live) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, context.Cause(l.ctx)
	}
	return l.r.Read(p)
}
