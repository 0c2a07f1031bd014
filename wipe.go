package tidemark

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/tidemark-sync/tidemark/persistence"
)

// WipeOption changes a default of Wipe.
type WipeOption func(*wipeSettings)

type wipeSettings struct {
	driver    string
	unsynced  bool
	spareKept bool
}

// WipeDriver names the database/sql driver to look into the file with; see
// RestoreDriver.
func WipeDriver(name string) WipeOption {
	return func(s *wipeSettings) { s.driver = name }
}

// WipeUnsynced removes rows, too, that are nowhere else, and a file that is damaged.
func WipeUnsynced() WipeOption {
	return func(s *wipeSettings) { s.unsynced = true }
}

// WipeSpareKept leaves the databases that restores kept beside the file
// (RestoreKeepUnsynced): each is a device of its own.
func WipeSpareKept() WipeOption {
	return func(s *wipeSettings) { s.spareKept = true }
}

// Wipe removes the local copy after a sign-out: the database at path, its journal, and
// every file of ours beside it, also those that a restore kept. Nothing on the server
// or in the store changes. It refuses with ErrUnsynced while there are rows that no
// other device has, at a symbolic link, and with ErrLocked while a program, this one too, has the database
// open or syncs it. When it is cut off, calling it again goes on. What is not there is
// no error. The disk may keep the bytes until it writes over them.
func Wipe(ctx context.Context, path string, opts ...WipeOption) error {
	var s wipeSettings
	for _, o := range opts {
		o(&s)
	}
	open, err := restoreSettings{driver: s.driver}.opener()
	if err != nil {
		return err
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := persistence.CheckWipe(path); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	lock := flock.New(lockName(path))
	if ok, err := lock.TryLock(); err != nil {
		return fmt.Errorf("wipe: %s cannot be written: %w", path, errors.Join(ErrReadOnly, err))
	} else if !ok {
		return fmt.Errorf("wipe: %s is being synced or restored by another program: %w", path, ErrLocked)
	}
	defer lock.Unlock() //nolint:errcheck // the process's end releases it too
	w := persistence.Wiping{Open: open, Unsynced: s.unsynced, SpareKept: s.spareKept}
	if err := w.Wipe(ctx, path); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	// While it is held: a moment later it may be somebody's who begins anew.
	if err := os.Remove(lock.Path()); err == nil {
		return lock.Unlock()
	}
	return errors.Join(lock.Unlock(), os.Remove(lock.Path())) // Windows removes no open file
}

// lockName is the file whose lock a cycle, a restore and a wipe hold.
func lockName(path string) string { return path + ".tidemark-lock" }
