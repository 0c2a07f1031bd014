package integration

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
)

// A console's edit of a row that was changed here, too, refers to a parent that nobody has
// or has a key that another row has here. Nothing
// downloads what is no device's: the later edit here goes up at once.
func TestAnEditOverAConsolesDocumentThatDoesNotGoIn(t *testing.T) {
	t.Parallel()
	for name, fields := range map[string]map[string]any{
		"no parent": {"folder": "nowhere"},
		"taken":     {"title": "taken"},
	} {
		for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.MergeByField} {
			t.Run(name+" "+string(policy), func(t *testing.T) {
				f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), title TEXT UNIQUE, v TEXT)`)
				a := f.settling("a", policy, "note")
				a.exec(`INSERT INTO note (title, v) VALUES ('taken', '0'), ('mine', '1')`)
				rounds(2, a)
				id := a.value(`SELECT clientId FROM note WHERE title = 'mine'`)
				id = id[1 : len(id)-1]
				f.server.Edit("note", id, fields)
				later()
				a.exec(`UPDATE note SET v = '2' WHERE title = 'mine'`)
				a.sync()
				if got := a.value(`SELECT count(*) FROM note WHERE isDirty = 1`); got != "0" {
					t.Errorf("%s rows have not gone up", got)
				}
			})
		}
	}
}

// While a table is excluded it gains a column, with a value. What was edited elsewhere since
// then still wins: nobody edited it here.
func TestATableTakenBackWithAColumnThatCameWithValues(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (v) VALUES ('old')`)
	rounds(2, a, b)
	take(t, b, tidemark.Table{Name: "item", Exclude: true})
	b.sync()
	b.exec(`ALTER TABLE item ADD COLUMN x TEXT; UPDATE item SET x = 'b'`)
	later()
	a.exec(`UPDATE item SET v = 'new'`)
	a.sync()
	later()
	take(t, b, tidemark.Table{Name: "item", Include: true})
	rounds(2, b, a)
	told(t, a, b)
	if got := a.value(`SELECT v FROM item`); got != `"new"` {
		t.Errorf("the edit of a is lost: %s", got)
	}
	if got := b.value(`SELECT v || x FROM item`); got != `"newb"` {
		t.Errorf("b has %s", got)
	}
}

// What is deleted and made anew goes up once.
func TestParentsMadeAnewGoUpOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO folder (id, name) VALUES (1, 'one'), (2, 'two'); INSERT INTO note (folder, v) VALUES (1, 'x'), (2, 'y')`)
	rounds(2, a, b)
	a.exec(`PRAGMA foreign_keys = OFF; DELETE FROM folder; INSERT INTO folder (id, name) VALUES (1, 'uno'), (2, 'dos'); PRAGMA foreign_keys = ON`)
	rounds(3, a, b)
	same(t, a, b)
	quiet(t, a, b)
}

// An application that does not enforce foreign keys (SQLite's default) keeps what its local
// tables have of a deleted row. So does a device where the delete arrives: nobody else has it.
func TestAnExcludedChildWithoutEnforcedForeignKeys(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE draft (id INTEGER PRIMARY KEY, item INTEGER REFERENCES item (id) ON DELETE CASCADE, v TEXT)`)
	device := func(name string) *device {
		path := filepath.Join(f.dir, name+".db")
		raw, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
		if err != nil {
			t.Fatal(err)
		}
		db := bun.NewDB(raw, sqlitedialect.New())
		t.Cleanup(func() { _ = db.Close() })
		if _, err := raw.Exec(f.schema); err != nil {
			t.Fatal(err)
		}
		if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "draft", Exclude: true}); err != nil {
			t.Fatal(err)
		}
		return f.on(path, db)
	}
	a, b := device("a"), device("b")
	a.exec(`INSERT INTO item (id, v) VALUES (1, 'one')`)
	rounds(2, a, b)
	for _, d := range []interface{ exec(string, ...any) }{a, b} {
		d.exec(`INSERT INTO draft (item, v) VALUES (1, 'only here')`)
	}
	a.exec(`DELETE FROM item`)
	rounds(2, a, b)
	for name, n := range map[string]string{"a": a.value(`SELECT count(*) FROM draft`), "b": b.value(`SELECT count(*) FROM draft`)} {
		if n != "1" {
			t.Errorf("%s has %s drafts", name, n)
		}
	}
}
