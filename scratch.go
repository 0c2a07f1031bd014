package tidemark

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
)

// scratchName is what our folders among everybody's temporary files start with.
const scratchName = "tidemark-verify-"

// scratch makes a folder for a whole database among the temporary files, and removes
// those that crashed programs left there: they hold rows. A folder in use has a lock
// beside it, which is taken before the folder is there.
func scratch() (dir string, remove func() error, err error) {
	top := os.TempDir()
	clearScratch(top)
	dir = filepath.Join(top, scratchName+rand.Text())
	lock := flock.New(dir + ".lock")
	if err := lock.Lock(); err != nil {
		return "", nil, err
	}
	remove = func() error {
		return errors.Join(os.RemoveAll(dir), os.Remove(lock.Path()), lock.Close())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return dir, remove, nil
}

// clearScratch leaves alone what it may not remove: it may be another user's.
func clearScratch(top string) {
	left, err := filepath.Glob(filepath.Join(top, scratchName+"*"))
	if err != nil {
		return
	}
	for _, dir := range left {
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
			continue
		}
		// Whoever may write here could put anything in the place of the lock.
		if st, err := os.Lstat(dir + ".lock"); err == nil && !st.Mode().IsRegular() {
			continue
		}
		lock := flock.New(dir + ".lock")
		if free, err := lock.TryLock(); err != nil || !free {
			continue
		}
		if os.RemoveAll(dir) == nil {
			_ = os.Remove(lock.Path())
		}
		_ = lock.Close()
	}
}
