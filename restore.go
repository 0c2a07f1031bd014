package tidemark

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
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
	Generation string `json:"generation"`
	DeviceID   string `json:"deviceId"`
	// Kept is the file that was there before, if it had rows that no other device has, or
	// conflicts of another scope; see RestoreKeepUnsynced.
	Kept string `json:"kept,omitempty"`
	// Conflicts counts those of the file that was there before which were carried over,
	// ConflictsLeft those of another scope, which only the kept file has.
	Conflicts     int64 `json:"conflicts"`
	ConflictsLeft int64 `json:"conflictsLeft,omitempty"`
	// Unsynced: the file was kept for rows that no other device has. NotUploaded: some of
	// them do not go up when it is synced, because their table is excluded, because the
	// server refuses them, or because it was never attached.
	Unsynced    bool `json:"unsynced,omitempty"`
	NotUploaded bool `json:"notUploaded,omitempty"`
	// Bytes is the size of the database, StoredBytes that of the snapshot's objects. What
	// of them was here already was not downloaded again, see Store.
	Bytes       int64             `json:"bytes"`
	StoredBytes int64             `json:"storedBytes"`
	Encrypted   bool              `json:"encrypted"`
	Store       messages.StoreUse `json:"store"`
}

type restoreSettings struct {
	driver     string
	generation string
	asOf       time.Time
	scope      string
	keep       bool
	encryption Encryption
	progress   func(phase Phase, done, total int64)
}

// Phase is what a restore is at: PhaseDownload, PhaseUnpack, PhaseCheck, PhaseInstall.
type Phase = string

// The phases of a restore, in their order.
const (
	PhaseDownload Phase = persistence.PhaseDownload
	PhaseUnpack   Phase = persistence.PhaseUnpack
	PhaseCheck    Phase = persistence.PhaseCheck
	PhaseInstall  Phase = persistence.PhaseInstall
)

// RestoreOption changes a default of Restore and Verify.
type RestoreOption func(*restoreSettings)

// RestoreDriver names the database/sql driver to check the file with; it is given
// the plain path. The default is the one that the program has registered as "sqlite"
// (modernc.org/sqlite) or "sqlite3" (mattn/go-sqlite3), with the path as a URI.
func RestoreDriver(name string) RestoreOption {
	return func(s *restoreSettings) { s.driver = name }
}

// RestoreKey gives the key of an encrypted snapshot. One that is not encrypted is then
// refused with ErrNotEncrypted.
func RestoreKey(e Encryption) RestoreOption {
	return func(s *restoreSettings) { s.encryption = e }
}

// RestoreScope refuses a snapshot of another remote's rows with ErrOtherScope; scope is
// what the remote's Scope says.
func RestoreScope(scope string) RestoreOption {
	return func(s *restoreSettings) { s.scope = scope }
}

// RestoreKeepUnsynced lets a restore go on where ErrUnsynced would refuse it: the file
// that is there is kept beside, under the name that Restored.Kept says. It stays a
// device of its own: one Sync of it uploads its rows by the normal rules, and then it
// may go, unless it has rows that no sync uploads (Restored.NotUploaded) or conflicts of
// another scope (Restored.ConflictsLeft): nothing else has those.
func RestoreKeepUnsynced() RestoreOption {
	return func(s *restoreSettings) { s.keep = true }
}

// RestoreProgress is called with how far the phase is: bytes while it downloads and
// unpacks.
func RestoreProgress(f func(phase Phase, done, total int64)) RestoreOption {
	return func(s *restoreSettings) { s.progress = f }
}

func restoring(opts []RestoreOption) (restoreSettings, persistence.Opener, error) {
	s := restoreSettings{progress: func(Phase, int64, int64) {}}
	for _, o := range opts {
		o(&s)
	}
	open, err := s.opener()
	return s, open, err
}

// Restore puts the newest snapshot in place of the file at path: a new login, or a
// lost device. It is checked first (checksum, integrity, foreign keys, version) and
// gets an installation id of its own; until then nothing at path is touched. A file
// there with rows that were never uploaded is refused with ErrUnsynced, and one that
// knows a newer snapshot than the store's newest with ErrRolledBack, or is of another
// scope with ErrOtherScope, unless a snapshot is named. Its conflicts are carried over;
// those of another scope are refused like rows. A download that was cut off goes on where
// it was, also in another process. The next Sync downloads what came after the snapshot.
func Restore(ctx context.Context, path string, store SnapshotStore, opts ...RestoreOption) (Restored, error) {
	var out Restored
	s, open, err := restoring(opts)
	if err != nil {
		return out, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return out, err
	}
	if err := persistence.CheckDestination(ctx, path, open); err != nil && !(s.keep && errors.Is(err, ErrUnsynced)) {
		return out, fmt.Errorf("restore: %w", err)
	}
	r, err := s.find(ctx, store, open, path, &out.Store)
	if err != nil { // before anything is made beside a file that may not even be there
		return out, fmt.Errorf("restore: %w", err)
	}
	lock := flock.New(lockName(path))
	if ok, err := lock.TryLock(); err != nil {
		return out, fmt.Errorf("restore: %s cannot be written: %w", path, errors.Join(ErrReadOnly, err))
	} else if !ok {
		return out, fmt.Errorf("restore: %s is being synced or restored by another program: %w", path, ErrLocked)
	}
	defer lock.Unlock() //nolint:errcheck // the process's end releases it too
	if err := persistence.RemoveTemporary(path); err != nil {
		return out, fmt.Errorf("restore: %w", err)
	}
	download := persistence.DownloadFolder(path)
	var in persistence.Installed
	if err = s.fetch(ctx, store, &r, download, &out.Store); err == nil {
		if s.keep {
			r.Keep = persistence.KeptName(path, time.Now().UTC().Format("20060102T150405.000Z"))
		}
		in, err = r.Install(ctx, path)
		out.Kept = in.Kept
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrWrongKey) {
			_ = os.RemoveAll(download) // the next one does not go on with it
		}
		return out, fmt.Errorf("restore: %w", err)
	}
	out.NotUploaded = in.NotUploaded
	out.DeviceID, out.Unsynced, out.Conflicts, out.ConflictsLeft = in.ID, in.Unsynced, in.Conflicts, in.ConflictsLeft
	out.Generation, out.Bytes, out.StoredBytes, out.Encrypted = r.Snapshot.Generation, r.Snapshot.RawSize, r.Snapshot.Download(), r.Snapshot.Encrypted
	_ = os.RemoveAll(download) // what stays is in nobody's way
	return out, nil
}

// Verified says what a snapshot was found to be.
type Verified struct {
	messages.Snapshot
	Store messages.StoreUse `json:"store"`
}

// Verify downloads, decrypts and checks a snapshot as a restore does, in the folder for
// temporary files, and installs nothing.
func Verify(ctx context.Context, store SnapshotStore, opts ...RestoreOption) (out Verified, err error) {
	s, open, err := restoring(opts)
	if err != nil {
		return out, err
	}
	dir, remove, err := scratch()
	if err != nil {
		return out, fmt.Errorf("verify: make room: %w", err)
	}
	defer func() { err = errors.Join(err, remove()) }()
	r, err := s.find(ctx, store, open, "", &out.Store)
	if err == nil {
		err = s.fetch(ctx, store, &r, filepath.Join(dir, "download"), &out.Store)
	}
	if err == nil {
		err = r.Verify(ctx, dir)
	}
	if err != nil {
		return out, fmt.Errorf("verify: %w", err)
	}
	out.Snapshot = r.Snapshot
	return out, nil
}

// find chooses a snapshot. path, unless empty, is the file that it would replace.
func (s restoreSettings) find(ctx context.Context, store SnapshotStore, open persistence.Opener, path string, use *messages.StoreUse) (persistence.Restoration, error) {
	r := persistence.Restoration{Open: open, Encryption: s.encryption, Scope: s.scope, Store: placeOf(store), Tell: s.progress}
	m, _, err := stages.ReadManifest(ctx, store, use)
	if noneYet(err) {
		return r, fmt.Errorf("there is no snapshot in this store yet: sync a device with it first, or check the URL: %w", err)
	}
	if err != nil {
		return r, err
	}
	if r.Snapshot, err = s.choose(m); err != nil {
		return r, err
	}
	if err := r.Acceptable(); err != nil {
		return r, err
	}
	if path != "" && s.generation == "" && s.asOf.IsZero() {
		if err := persistence.CheckNewest(ctx, path, r.Snapshot, open); err != nil {
			return r, err
		}
	}
	return r, nil
}

// fetch downloads the snapshot's objects into a folder.
func (s restoreSettings) fetch(ctx context.Context, store SnapshotStore, r *persistence.Restoration, dir string, use *messages.StoreUse) (err error) {
	r.Objects, err = persistence.Fetch(ctx, store, r.Snapshot, dir, use, func(done, total int64) { s.progress(PhaseDownload, done, total) })
	return err
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
