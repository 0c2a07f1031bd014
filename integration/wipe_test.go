package integration

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/persistence"
)

// After a sign-out nothing of the user's stays beside the database; before that, what
// is nowhere else keeps it.
func TestWipe(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a", tidemark.WithBackup(1, time.Hour, 3))
	a.notes(1)
	wipe := func(want error, opts ...tidemark.WipeOption) {
		t.Helper()
		if err := tidemark.Wipe(t.Context(), a.path, opts...); !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
		if _, err := os.Stat(a.path); want != nil && err != nil {
			t.Fatal("it refused, and the database is gone: ", err)
		}
	}
	wipe(persistence.ErrUnsynced)
	a.sync()
	wipe(tidemark.ErrLocked) // the application has it open
	wipe(tidemark.ErrLocked, tidemark.WipeUnsynced())
	a.notes(1)
	wipe(tidemark.ErrUnsynced)
	a.sync()
	if err := a.db.Close(); err != nil {
		t.Fatal(err)
	}
	// What a restore may leave, and a file of somebody else's.
	for name, text := range map[string]string{".tidemark-tmp-x": "", ".tidemark-download": "", ".unsynced-20260101T000000.000Z": "", ".tidemark-pages": "p", ".bak": "theirs"} {
		if err := os.WriteFile(a.path+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A kept file of which nobody knows whether its rows are elsewhere.
	kept := a.path + ".unsynced-20260101T000000.000Z"
	if err := os.WriteFile(kept, []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	wipe(persistence.ErrNotDatabase)
	if err := os.Truncate(kept, 0); err != nil {
		t.Fatal(err)
	}
	wipe(nil)
	left, err := filepath.Glob(filepath.Join(f.dir, "*"))
	if err != nil || len(left) != 1 || left[0] != a.path+".bak" {
		t.Fatalf("left are %v, %v", left, err)
	}
	wipe(nil) // again
}

// A user's own copy of what a restore kept has another name, and is not ours. With the
// kept files spared, only the database goes. Behind a link everything would stay.
func TestWipeLeaves(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.sync()
	if err := a.db.Close(); err != nil {
		t.Fatal(err)
	}
	kept := a.path + ".unsynced-20260101T000000.000Z"
	mine := []string{kept + ".important.db", a.path + ".unsynced-mine", kept + "-old"}
	for _, name := range append(mine, kept, kept+".tidemark-lock", kept+".tidemark-pages") {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(f.dir, "link")
	if err := os.Symlink(a.path, link); err == nil {
		if err := tidemark.Wipe(t.Context(), link, tidemark.WipeUnsynced()); err == nil {
			t.Error("it says that it removed what is behind a link")
		}
		if err := os.Remove(link); err != nil {
			t.Error("a link was not left alone: ", err)
		}
	}
	left := func(want ...string) {
		t.Helper()
		got, err := filepath.Glob(filepath.Join(f.dir, "*"))
		if slices.Sort(want); err != nil || !slices.Equal(got, want) {
			t.Errorf("left are %v, %v, want %v", got, err, want)
		}
	}
	if err := tidemark.Wipe(t.Context(), a.path, tidemark.WipeSpareKept()); err != nil {
		t.Fatal(err)
	}
	left(append(slices.Clone(mine), kept, kept+".tidemark-lock", kept+".tidemark-pages")...)
	if err := tidemark.Wipe(t.Context(), a.path); err != nil {
		t.Fatal(err)
	}
	left(mine...)
}

// The application writes a row, and closes the file, after it was looked at.
func TestWipeLooksAgain(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(1)
	a.sync()
	if err := a.db.Close(); err != nil {
		t.Fatal(err)
	}
	opened := 0
	w := persistence.Wiping{Open: func(path string) (*sql.DB, error) {
		if opened++; opened == 2 {
			db := openDB(t, path)
			if _, err := db.DB.Exec(`UPDATE note SET title = 'late'`); err != nil {
				t.Error(err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
		return sql.Open("sqlite", path)
	}}
	if err := w.Wipe(t.Context(), a.path); !errors.Is(err, tidemark.ErrUnsynced) {
		t.Errorf("%v, want ErrUnsynced", err)
	}
	if _, err := os.Stat(a.path); err != nil || opened < 2 {
		t.Errorf("the row is lost: %v", err)
	}
}

func TestWipeOfWhatIsNowhereElse(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(3)
	if err := a.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tidemark.Wipe(t.Context(), a.path); !errors.Is(err, tidemark.ErrUnsynced) {
		t.Fatal(err)
	}
	if err := tidemark.Wipe(t.Context(), a.path, tidemark.WipeUnsynced()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.path, []byte("damaged beyond all help, but the user's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tidemark.Wipe(t.Context(), a.path, tidemark.WipeUnsynced()); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(f.dir, "*")); err != nil || len(left) > 0 {
		t.Fatalf("left are %v, %v", left, err)
	}
}
