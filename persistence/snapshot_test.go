package persistence

import (
	"bufio"
	"bytes"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"modernc.org/sqlite"

	"github.com/tidemark-sync/tidemark/messages"
)

// A SQLite that lets nobody read its pages still makes snapshots; they are whole.
func TestSnapshotWithoutThePages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := openTestDB(t, filepath.Join(dir, "app.db"))
	db.SetMaxOpenConns(1)
	mustExec(t, db, `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT)`)
	mustExec(t, db, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO note (title) SELECT 'note ' || i FROM n`)
	mustAttach(t, db, AttachOptions{})
	local, err := Open(t.Context(), db, DeviceInfo{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.DB.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = conn.Raw(func(c any) error {
		return c.(sqlite.AuthorizerRegisterer).RegisterAuthorizer(func(action sqlite.AuthorizerActionCode, table, _, _, _ string) sqlite.AuthorizerReturnCode {
			if action == sqlite.AuthRead && table == "sqlite_dbpage" {
				return sqlite.AuthorizerDeny
			}
			return sqlite.AuthorizerOK
		})
	})
	if err = errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	var current messages.Snapshot
	for _, generation := range []string{"first", "second"} {
		snap, body, err := local.Snapshot(t.Context(), generation, 1, current)
		if err != nil {
			t.Fatal(err)
		}
		object := filepath.Join(dir, generation)
		f, err := os.Create(object)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(f, body)
		if err = errors.Join(err, f.Close(), body.Close()); err != nil {
			t.Fatal(err)
		}
		snap.Key, snap.Size = messages.SnapshotPrefix+generation, n
		if err := local.BackedUp(t.Context(), snap); err != nil {
			t.Fatal(err)
		}
		if len(snap.Parts) != 0 {
			t.Error("it is not whole")
		}
		open := func(path string) (*sql.DB, error) { return sql.Open("sqlite", path) }
		restored := filepath.Join(dir, generation+".db")
		if _, err := (Restoration{Snapshot: snap, Objects: []string{object}, Open: open}).Install(t.Context(), restored); err != nil {
			t.Fatal(err)
		}
		if got, want := contents(t, openTestDB(t, restored)), contents(t, db); got != want {
			t.Errorf("restored: %s", got)
		}
		current = snap
	}
}

// What a pages' list, or an object, says is not believed beyond what is there.
func FuzzApplyChanges(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte{1, 0, 3})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 1})
	f.Fuzz(func(t *testing.T, changes []byte) {
		out, err := os.Create(filepath.Join(t.TempDir(), "db"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		const pages, size = 4, 512
		_ = applyChanges(out, bufio.NewReader(bytes.NewReader(changes)), size, pages)
		if st, err := out.Stat(); err != nil || st.Size() > pages*size {
			t.Errorf("%d bytes were written of a file of %d, %v", st.Size(), pages*size, err)
		}
	})
}
