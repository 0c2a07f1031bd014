package tidemark

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
	"github.com/tidemark-sync/tidemark/stages"
)

// Restored says what a restore brought back.
type Restored struct {
	Generation string            `json:"generation"`
	DeviceID   string            `json:"deviceId"`
	Bytes      int64             `json:"bytes"`
	Store      messages.StoreUse `json:"store"`
}

type restoreSettings struct {
	driver     string
	generation string
	asOf       time.Time
	progress   func(done, total int64)
}

// RestoreOption changes a default of Restore.
type RestoreOption func(*restoreSettings)

// RestoreDriver names the database/sql driver to check the file with; it is given
// the plain path. The default is the one that the program has registered as "sqlite"
// (modernc.org/sqlite) or "sqlite3" (mattn/go-sqlite3), with the path as a URI.
func RestoreDriver(name string) RestoreOption {
	return func(s *restoreSettings) { s.driver = name }
}

// RestoreProgress is called with the bytes downloaded so far, and all.
func RestoreProgress(f func(done, total int64)) RestoreOption {
	return func(s *restoreSettings) { s.progress = f }
}

// Restore puts the newest snapshot in place of the file at path: a new login, or a
// lost device. It is checked first (checksum, integrity, foreign keys, version) and
// gets an installation id of its own; until then nothing at path is touched. A file
// there with rows that were never uploaded is refused with ErrUnsynced. The next
// Sync downloads what came after the snapshot.
func Restore(ctx context.Context, path string, store SnapshotStore, opts ...RestoreOption) (Restored, error) {
	s := restoreSettings{progress: func(int64, int64) {}}
	for _, o := range opts {
		o(&s)
	}
	var out Restored
	open, err := s.opener()
	if err != nil {
		return out, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return out, err
	}
	if err := persistence.CheckDestination(ctx, path, open); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	lock := flock.New(path + ".tidemark-lock")
	if ok, err := lock.TryLock(); err != nil {
		return out, fmt.Errorf("restore: %s cannot be written: %w", path, errors.Join(ErrReadOnly, err))
	} else if !ok {
		return out, fmt.Errorf("restore: %s is being synced or restored by another program: %w", path, ErrLocked)
	}
	defer lock.Unlock() //nolint:errcheck // the process's end releases it too
	if err := persistence.RemoveTemporary(path); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	m, _, err := stages.ReadManifest(ctx, store, &out.Store)
	if errors.Is(err, messages.ErrNotFound) {
		return out, fmt.Errorf("restore: there is no snapshot in this store yet: sync a device with it first, or check the URL: %w", err)
	}
	if err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	snap, err := s.choose(m)
	if err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	out.Store.Gets++
	body, _, err := store.Get(ctx, snap.Key, 0)
	if err != nil {
		return out, fmt.Errorf("restore: download snapshot %s: %w", snap.Generation, err)
	}
	defer body.Close()
	in := &metered{r: body, total: snap.Size, tell: s.progress}
	out.DeviceID, err = persistence.Install(ctx, path, open, snap, in)
	out.Store.BytesDown += in.n
	if err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	out.Generation, out.Bytes = snap.Generation, snap.RawSize
	return out, nil
}

func (s restoreSettings) opener() (persistence.Opener, error) {
	driver := s.driver
	for _, known := range []string{"sqlite", "sqlite3"} {
		if driver == "" && slices.Contains(sql.Drivers(), known) {
			driver = known
		}
	}
	if driver == "" {
		return nil, fmt.Errorf("%w: Restore finds no SQLite driver: import one, or name it with RestoreDriver", ErrInvalidOption)
	}
	return func(path string) (*sql.DB, error) {
		if s.driver == "" {
			path = fileURI(path)
		}
		return sql.Open(driver, path)
	}, nil
}

// fileURI spells an absolute path so that drivers take no part of it for options.
func fileURI(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a Windows drive
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

type metered struct {
	r        interface{ Read([]byte) (int, error) }
	n, total int64
	tell     func(done, total int64)
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	m.tell(m.n, m.total)
	return n, err
}
