package persistence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// keptInfix is between a database's name and the moment when a restore kept it.
const keptInfix = ".unsynced-"

// DownloadFolder is where a restore of the file at path keeps what it has downloaded.
func DownloadFolder(path string) string { return path + ".tidemark-download" }

// KeptName is the name that a file gets which a restore keeps.
func KeptName(path, moment string) string { return path + keptInfix + moment }

// keptFile is what follows a database's name in that of one which a restore kept (then
// the second group is empty), or of what lies beside such a one. Other names, such as
// that of a user's own copy, are not ours.
var keptFile = regexp.MustCompile(`^` + regexp.QuoteMeta(keptInfix) + `\d{8}T\d{6}\.\d{3}Z(|-wal|-shm|-journal|\.tidemark-lock|` + regexp.QuoteMeta(pagesSuffix) + `)$`)

// keptFiles are the databases that restores kept beside the one at path, and the files
// beside those.
func keptFiles(path string) (databases, beside []string, err error) {
	files, err := filepath.Glob(globEscape(path) + keptInfix + "*")
	if err != nil {
		return nil, nil, err
	}
	for _, f := range files {
		switch m := keptFile.FindStringSubmatch(strings.TrimPrefix(f, path)); {
		case m == nil:
		case m[1] == "":
			databases = append(databases, f)
		default:
			beside = append(beside, f)
		}
	}
	return databases, beside, nil
}

// Wiping is how a database is removed.
type Wiping struct {
	Open Opener
	// Unsynced: rows go, too, that are nowhere else, and damaged files.
	Unsynced bool
	// SpareKept: the files stay that restores kept.
	SpareKept bool
}

// CheckWipe refuses what is not a file itself: behind a link there would be everything
// still.
func CheckWipe(path string) error {
	if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("%s is a link, or no file at all: name the database file itself", path)
	}
	return nil
}

// Wipe removes the database at path and every file of ours beside it. It fails with
// ErrLocked while a program has the database open, and with ErrUnsynced while there are
// rows that are nowhere else. Call it only while holding the lock of the file's cycle,
// whose file stays.
func (w Wiping) Wipe(ctx context.Context, path string) error {
	databases, gone, err := keptFiles(path)
	if err != nil {
		return err
	}
	if w.SpareKept {
		databases, gone = nil, nil
	}
	databases = append(databases, path)
	for _, f := range databases {
		if err := w.acceptable(ctx, f); err != nil {
			return err
		}
	}
	for _, f := range databases {
		// Without its journal first: a new file of this name must not inherit it.
		if err := retire(ctx, f, w.Open); err != nil && !errors.Is(err, ErrNotDatabase) {
			return err
		}
		if err := w.acceptable(ctx, f); err != nil { // somebody may have written meanwhile
			return err
		}
	}
	temps, err := filepath.Glob(globEscape(path) + temporary + "*")
	if err != nil {
		return err
	}
	gone = append(gone, path+"-wal", path+"-shm", path+"-journal", path+pagesSuffix, DownloadFolder(path))
	gone = append(append(gone, temps...), databases...) // as long as it is there, one sees that it is not done
	for _, f := range gone {
		if err := os.RemoveAll(f); err != nil {
			return fmt.Errorf("remove the local copy, run this again: %w", err)
		}
	}
	return syncDir(filepath.Dir(path))
}

func (w Wiping) acceptable(ctx context.Context, path string) error {
	if err := CheckWipe(path); err != nil {
		return err
	}
	if w.Unsynced {
		return nil
	}
	return CheckDestination(ctx, path, w.Open)
}
