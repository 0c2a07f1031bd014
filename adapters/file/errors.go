package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/tidemark-sync/tidemark/messages"
)

// classed reports whether an error has its class already.
func classed(err error) bool { return messages.Class(err) != "bug" }

// classify gives an error of the file system or of SQLite its class and, where
// there is one, its remedy. A cancelled context has none: it is the caller's wish.
func classify(ctx context.Context, err error) error {
	if err == nil || classed(err) {
		return err
	}
	if cause := ctx.Err(); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return fmt.Errorf("%w: %w", cause, messages.ErrUnavailable)
		}
		return cause
	}
	if sq, ok := errors.AsType[*sqlite.Error](err); ok {
		switch sq.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return messages.Saying(messages.ErrUnavailable, "the disk is full, make room on it: %w", err)
		case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN:
			return messages.Saying(messages.ErrUnauthorized, "make the folder and its files writable for this user: %w", err)
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return messages.Saying(messages.ErrNotFound, "the file is damaged or no remote, put back a copy of it or name another folder: %w", err)
		case sqlite3.SQLITE_TOOBIG:
			return fmt.Errorf("%w: %w", err, messages.ErrRejected)
		default:
			return fmt.Errorf("%w: %w", err, messages.ErrUnavailable)
		}
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return messages.Saying(messages.ErrUnavailable, "the disk is full, make room on it: %w", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return messages.Saying(messages.ErrUnauthorized, "make the folder and its files writable for this user: %w", err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrNotExist):
		return messages.Saying(messages.ErrNotFound, "%w", err)
	default:
		return fmt.Errorf("%w: %w", err, messages.ErrUnavailable)
	}
}

// busy reports whether another connection holds the lock.
func busy(err error) bool {
	sq, ok := errors.AsType[*sqlite.Error](err)
	return ok && sq.Code()&0xff == sqlite3.SQLITE_BUSY
}

// Exists fails with messages.ErrNotFound when there is no folder. It makes none, as
// OpenRemote and OpenStore do.
func Exists(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return messages.Saying(messages.ErrNotFound, "there is no folder %q", dir)
	case err != nil:
		return classify(context.Background(), err)
	case !info.IsDir():
		return messages.Saying(messages.ErrNotFound, "%q is not a folder, name one", dir)
	}
	return nil
}

// StoreExists fails with messages.ErrNotFound when there is no folder, or one that was
// never opened as a store. It makes none.
func StoreExists(dir string) error {
	if err := Exists(dir); errors.Is(err, messages.ErrNotFound) {
		return fmt.Errorf("%w; correct its name", err)
	} else if err != nil {
		return err
	}
	switch err := Exists(filepath.Join(dir, "objects")); {
	case errors.Is(err, messages.ErrNotFound):
		return fmt.Errorf("the folder %q is no store: correct its name, or sync a device with it first: %w", dir, messages.ErrNotFound)
	default:
		return err
	}
}

// openFolder makes the folder when only it is missing. Its parent must exist: a
// disk that is not mounted must not look like an empty remote.
func openFolder(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(abs, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		if errors.Is(err, fs.ErrNotExist) {
			if _, perr := os.Stat(filepath.Dir(abs)); perr == nil {
				return "", messages.Saying(messages.ErrNotFound, "no folder can be made there, name another one: %w", err)
			}
			return "", messages.Saying(messages.ErrNotFound, "the folder's parent does not exist, create it or mount its disk: %w", err)
		}
		return "", err
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", messages.Saying(messages.ErrNotFound, "it is not a folder, name one")
	}
	return abs, nil
}
