package persistence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// keptInfix is between a database's name and the moment when a restore kept it.
const keptInfix = ".unsynced-"

// DownloadFolder is where a restore of the file at path keeps what it has downloaded.
func DownloadFolder(path string) string { return path + ".tidemark-download" }

// KeptName is the name that a file gets which a restore keeps.
func KeptName(path, moment string) string { return path + keptInfix + moment }

// CheckWipe refuses to remove a database, or one that a restore kept beside it, whose
// rows are nowhere else.
func CheckWipe(ctx context.Context, path string, open Opener) error {
	files, err := filepath.Glob(globEscape(path) + keptInfix + "*Z") // the databases alone
	if err != nil {
		return err
	}
	for _, f := range append(files, path) {
		if _, err := os.Lstat(f); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := CheckDestination(ctx, f, open); err != nil {
			return err
		}
	}
	return nil
}

// Wipe removes the database at path and every file of ours beside it. It fails with
// ErrLocked while a program has the database open; damaged files go too. Call it only
// while holding the lock of the file's cycle, whose file stays.
func Wipe(ctx context.Context, path string, open Opener) error {
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	// Without its journal first: a new file of this name must not inherit it.
	if err := retire(ctx, path, open); err != nil && !errors.Is(err, ErrNotDatabase) {
		return err
	}
	gone := []string{path, path + "-wal", path + "-shm", path + "-journal", path + pagesSuffix, DownloadFolder(path)}
	for _, pattern := range []string{temporary + "*", keptInfix + "*"} {
		more, err := filepath.Glob(globEscape(path) + pattern)
		if err != nil {
			return err
		}
		gone = append(gone, more...)
	}
	var errs []error
	for _, f := range gone {
		errs = append(errs, os.RemoveAll(f))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the local copy: %w", err)
	}
	return syncDir(filepath.Dir(path))
}
