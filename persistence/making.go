package persistence

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/tidemark-sync/tidemark/messages"
)

// making is a snapshot that is being made.
type making struct {
	snap     messages.Snapshot
	dir      string
	path     string // of the cleaned copy
	pageSize int
	pages    bool // the copy has the pages of the database in their places
	delta    bool
	enc      Encryption
	stop     context.CancelFunc
	beside   sync.WaitGroup
	mu       sync.Mutex
	failed   error // of what runs beside
}

// aside does what has to be done when the object ends and not when it begins.
func (m *making) aside(do func() error) {
	m.beside.Go(func() {
		if err := do(); err != nil {
			m.mu.Lock()
			m.failed = errors.Join(m.failed, err)
			m.mu.Unlock()
		}
	})
}

// settled waits for what runs beside.
func (m *making) settled() error {
	m.beside.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

// end gives up what still runs, and removes what is on disk.
func (m *making) end() error {
	m.stop()
	m.beside.Wait()
	return os.RemoveAll(m.dir)
}

// compare reads the copy and decides whether the snapshot is whole or what
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
	old, oldHashes, err := m.comparable(listPath, current)
	if err != nil {
		return err
	}
	if oldHashes != nil {
		defer oldHashes.Close()
	}
	if m.snap.RawSHA256, err = sumFile(ctx, m.path); err != nil {
		return fmt.Errorf("read the copy: %w", err)
	}
	list := pageList{Generation: m.snap.Generation, RawSHA256: m.snap.RawSHA256, PageSize: m.pageSize, Salt: old.Salt, Key: old.Key}
	if oldHashes != nil {
		changed, err := m.list(ctx, list, old.Pages, oldHashes)
		if err == nil && m.worthwhile(changed, current) {
			m.delta, m.snap.Parts = true, current.Chain()
		}
		return err
	}
	if !m.pages {
		return nil // the next copy has its pages elsewhere
	}
	list.Salt = newSalt()
	if m.enc != nil { // not beside Seal: a passphrase takes much memory
		if list.Key, err = m.enc.Fingerprint(list.Salt); err != nil {
			return err
		}
	}
	m.aside(func() error {
		_, err := m.list(ctx, list, 0, nil)
		return err
	})
	return nil
}

// list writes the list of the copy's pages and, unless was is nil, what differs from
// the hashes there; that many bytes.
func (m *making) list(ctx context.Context, l pageList, oldPages int64, was io.Reader) (changed int64, err error) {
	db, err := os.Open(m.path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	hashes, err := createFile(filepath.Join(m.dir, "hashes"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, hashes.Close()) }()
	changes, err := createFile(filepath.Join(m.dir, "changes"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, changes.Close()) }()
	l.Pages, changed, err = scan(&live{ctx, bufio.NewReaderSize(db, 256<<10)}, m.pageSize, l.Salt, oldPages, was, hashes, changes)
	if err = errors.Join(err, hashes.Flush(), changes.Flush()); err != nil {
		return 0, fmt.Errorf("read the copy: %w", err)
	}
	if _, err := hashes.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	return changed, writePageList(filepath.Join(m.dir, "pages"), l, hashes.File)
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
	files := []*os.File{db}
	if m.delta {
		changes, err := os.Open(filepath.Join(m.dir, "changes"))
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
		files = append(files, changes)
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		out := bufio.NewWriterSize(pw, 256<<10)
		err := writeObject(out, m.snap.Header(m.pageSize), m.enc, func(w io.Writer) error {
			if m.delta {
				return writeChanges(w, bufio.NewReaderSize(files[1], 64<<10), db, m.pageSize)
			}
			_, err := io.CopyBuffer(struct{ io.Writer }{w}, db, make([]byte, 256<<10))
			return err
		})
		if serr := m.settled(); serr != nil {
			err = fmt.Errorf("make a snapshot: %w", explain(serr))
		}
		if err == nil {
			err = out.Flush()
		}
		pw.CloseWithError(err)
	}()
	return &snapshotBody{pr, files, m, done}, nil
}

type snapshotBody struct {
	*io.PipeReader
	files []*os.File
	m     *making
	done  chan struct{}
}

func (b *snapshotBody) Close() error {
	err := b.PipeReader.Close()
	b.m.stop()
	<-b.done
	for _, f := range b.files {
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, b.m.end())
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
