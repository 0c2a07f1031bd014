package integration

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// A device whose table has no column x edits the row that a newer one edits, column x
// too: whoever wins, nobody else has edited x, all devices end with the same row, and
// what was lost is kept.
func TestAConflictWithADeviceThatLacksAColumn(t *testing.T) {
	t.Parallel()
	for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.ServerWins, tidemark.ClientWins, tidemark.MergeByField} {
		for _, edit := range []string{"x = 'mine'", "v = 'mine', x = 'mine'"} {
			t.Run(fmt.Sprint(policy, " ", edit), func(t *testing.T) {
				f := newFleet(t, "")
				open := func(name, column string) *device {
					path := filepath.Join(f.dir, name+".db")
					db := openDB(t, path)
					if _, err := db.DB.Exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT` + column + `)`); err != nil {
						t.Fatal(err)
					}
					if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "item", Policy: policy}); err != nil {
						t.Fatal(err)
					}
					return f.on(path, db)
				}
				old, a, b := open("old", ""), open("a", ", x TEXT"), open("b", ", x TEXT")
				old.exec(`INSERT INTO item (v) VALUES ('first')`)
				rounds(1, old, a)
				a.exec(`UPDATE item SET ` + edit)
				old.exec(`UPDATE item SET v = 'theirs'`)
				rounds(1, old)
				rounds(2, a, b, old)
				same(t, a, b)
				if a.value(`SELECT v FROM item`) != old.value(`SELECT v FROM item`) {
					t.Error("the old device has another row")
				}
				if x := a.value(`SELECT x FROM item`); x != `"mine"` {
					t.Errorf("of the edit that nobody else made, %s is left", x)
				}
				if kept := a.value(`SELECT count(*) FROM tidemark_conflicts WHERE CAST(localVersion AS TEXT) LIKE '%mine%'`); policy != tidemark.ClientWins && edit != "x = 'mine'" && kept == "0" {
					t.Error("what was lost is not kept")
				}
				for _, d := range []*device{a, b, old} {
					if r := d.sync(); r.Total().Uploaded+r.Total().Downloaded > 0 {
						t.Errorf("it does not come to rest: %+v", r.Total())
					}
				}
			})
		}
	}
}

// The application's answer holds for a column that the document does not have, too, and
// it is shown the local value there.
func TestTheApplicationDecidesAColumnThatADocumentLacks(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "")
	var seen any
	resolve := func(c tidemark.Contest) (map[string]any, error) {
		seen = c.Server["x"]
		return map[string]any{"v": "both", "x": "first"}, nil
	}
	old := f.on(filepath.Join(f.dir, "old.db"), openDB(t, filepath.Join(f.dir, "old.db")))
	old.exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`)
	a := f.on(filepath.Join(f.dir, "a.db"), openDB(t, filepath.Join(f.dir, "a.db")), tidemark.WithResolver("item", resolve))
	a.exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, x TEXT DEFAULT 'first')`)
	for d, p := range map[*device]tidemark.Policy{old: tidemark.LastWriterWins, a: tidemark.ByApplication} {
		if _, err := tidemark.Attach(t.Context(), d.db, tidemark.Table{Name: "item", Policy: p}); err != nil {
			t.Fatal(err)
		}
	}
	old.exec(`INSERT INTO item (v) VALUES ('first')`)
	rounds(1, old, a)
	a.exec(`UPDATE item SET v = 'mine', x = 'mine'`)
	old.exec(`UPDATE item SET v = 'theirs'`)
	rounds(2, old, a)
	if x := a.value(`SELECT x FROM item`); x != `"first"` {
		t.Errorf("x is %s, and the application said first", x)
	}
	if seen != "mine" {
		t.Errorf("the application saw %v", seen)
	}
}

// A column that was not changed here is not one that was changed on both sides after a
// conflict with a document that lacks it.
func TestTheBaseOfAColumnThatADocumentLacksStays(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "")
	server := f.refusing()
	open := func(name, column string, p tidemark.Policy) *device {
		path := filepath.Join(f.dir, name+".db")
		db := openDB(t, path)
		if _, err := db.DB.Exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, w TEXT` + column + `)`); err != nil {
			t.Fatal(err)
		}
		if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "item", Policy: p}); err != nil {
			t.Fatal(err)
		}
		return f.on(path, db)
	}
	old, a, b := open("old", "", tidemark.LastWriterWins), open("a", ", x TEXT", tidemark.MergeByField), open("b", ", x TEXT", tidemark.MergeByField)
	old.exec(`INSERT INTO item (v, w) VALUES ('first', 'w')`)
	rounds(2, old, a, b)
	old.exec(`UPDATE item SET v = 'theirs'`)
	a.exec(`UPDATE item SET v = 'mine'`)
	rounds(1, old)
	server.refuse = func(d messages.Document) bool { return d.Fields["v"] == "mine" }
	a.sync()
	b.exec(`UPDATE item SET x = 'b'`)
	b.sync()
	a.exec(`UPDATE item SET v = 'mine2'`)
	server.refuse = func(messages.Document) bool { return false }
	rounds(2, a, b)
	same(t, a, b)
	if x := a.value(`SELECT x FROM item`); x != `"b"` {
		t.Errorf("of the edit that nobody else made, %s is left", x)
	}
	if v := a.value(`SELECT v FROM item`); v != `"mine2"` {
		t.Errorf("v is %s", v)
	}
}

// A device edits a row, then its application is upgraded and gains a column that a newer
// device has filled meanwhile: nobody has emptied it.
func TestADirtyRowOfATableThatGainsAColumn(t *testing.T) {
	t.Parallel()
	for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.MergeByField, tidemark.ClientWins} {
		t.Run(string(policy), func(t *testing.T) {
			f := newFleet(t, "")
			open := func(name, column string) *device {
				path := filepath.Join(f.dir, name+".db")
				db := openDB(t, path)
				if _, err := db.DB.Exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT` + column + `)`); err != nil {
					t.Fatal(err)
				}
				if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "item", Policy: policy}); err != nil {
					t.Fatal(err)
				}
				return f.on(path, db)
			}
			old, a := open("old", ""), open("a", ", x TEXT")
			old.exec(`INSERT INTO item (v) VALUES ('first')`)
			rounds(1, old, a)
			a.exec(`UPDATE item SET x = 'mine'`)
			a.sync()
			for range 100 {
				old.exec(`UPDATE item SET v = v || '.'`)
			}
			old.exec(`UPDATE item SET v = 'theirs'; ALTER TABLE item ADD COLUMN x TEXT`)
			rounds(2, old, a)
			same(t, old, a)
			if got := a.value(`SELECT v || ' ' || coalesce(x, 'nothing') FROM item`); got != `"theirs mine"` {
				t.Errorf("the row is %s", got)
			}
		})
	}
}

// The application is upgraded before the first download has ended: what was applied
// without the new column gets it.
func TestATableThatGainsAColumnWhileItIsDownloaded(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, x TEXT, y TEXT); CREATE TABLE part (id INTEGER PRIMARY KEY, item INTEGER REFERENCES item (id))`)
	a := f.device("a")
	a.exec(`INSERT INTO item (v, x, y) VALUES ('first', 'x', 'y'); INSERT INTO part (item) VALUES (1)`)
	a.sync()
	var cut atomic.Bool
	f.faulty(func(c memory.Call) memory.Fault {
		if c.Op == memory.OpRead && c.Query.Table == "part" && cut.Load() {
			return memory.Fault{Before: messages.ErrUnauthorized}
		}
		return memory.Fault{}
	})
	f.schema = `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE part (id INTEGER PRIMARY KEY, item INTEGER REFERENCES item (id))`
	old := f.device("old")
	for _, upgrade := range []string{`SELECT 1`, `ALTER TABLE item ADD COLUMN x TEXT`, `ALTER TABLE item ADD COLUMN y TEXT`} {
		old.exec(upgrade)
		cut.Store(true)
		old.syncs(messages.ErrUnauthorized)
		if n := old.value(`SELECT count(*) FROM item`); n != "1" {
			t.Fatalf("the test is void: %s rows", n)
		}
	}
	cut.Store(false)
	rounds(2, old, a)
	same(t, old, a)
	if got := a.value(`SELECT v || x || y FROM item`); got != `"firstxy"` {
		t.Errorf("the row is %s", got)
	}
}

// The application is upgraded twice without a sync, once by a new column, once by
// rebuilding the table: nobody has emptied what others have in that column.
func TestATableThatGainsAColumnAndIsRebuilt(t *testing.T) {
	t.Parallel()
	for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.MergeByField, tidemark.ClientWins} {
		t.Run(string(policy), func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, x TEXT)`)
			a := f.device("a")
			f.schema = `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`
			old := f.device("old")
			attach := func() {
				if _, err := tidemark.Attach(t.Context(), old.db, tidemark.Table{Name: "item", Policy: policy}); err != nil {
					t.Fatal(err)
				}
			}
			a.exec(`INSERT INTO item (v, x) VALUES ('first', 'x'), ('second', 'x')`)
			rounds(2, a, old)
			later()
			old.exec(`UPDATE item SET v = 'edited' WHERE v = 'first'; ALTER TABLE item ADD COLUMN x TEXT`)
			attach()
			old.exec(`CREATE TABLE fresh (id INTEGER PRIMARY KEY, v TEXT NOT NULL, x TEXT); INSERT INTO fresh SELECT id, v, x FROM item;
				DROP TABLE item; ALTER TABLE fresh RENAME TO item`)
			attach()
			rounds(2, old, a)
			same(t, old, a)
			if got := a.value(`SELECT group_concat(v || coalesce(x, '-'), ' ') FROM (SELECT v, x FROM item ORDER BY v)`); got != `"editedx secondx"` {
				t.Errorf("the rows are %s", got)
			}
		})
	}
}

// A dirty row's table gains a reference that a newer device has filled.
func TestADirtyRowOfATableThatGainsAReference(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]string{"self": "folder", "other": "box"} {
		for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.MergeByField, tidemark.ClientWins, tidemark.ServerWins} {
			t.Run(name+" "+string(policy), func(t *testing.T) {
				f := newFleet(t, "")
				open := func(name, column string) *device {
					path := filepath.Join(f.dir, name+".db")
					db := openDB(t, path)
					if _, err := db.DB.Exec(`CREATE TABLE box (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE folder (id INTEGER PRIMARY KEY, v TEXT` + column + `)`); err != nil {
						t.Fatal(err)
					}
					if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "folder", Policy: policy}); err != nil {
						t.Fatal(err)
					}
					return f.on(path, db)
				}
				column := ", parent INTEGER REFERENCES " + c + " (id)"
				old, a := open("old", ""), open("a", column)
				old.exec(`INSERT INTO folder (v) VALUES ('first')`)
				rounds(1, old, a)
				a.exec(`INSERT INTO ` + c + ` (id, v) VALUES (10, 'parent'); UPDATE folder SET parent = 10 WHERE v = 'first'`)
				a.sync()
				for range 20 {
					old.exec(`UPDATE folder SET v = v || '.'`)
				}
				old.exec(`UPDATE folder SET v = 'theirs'; ALTER TABLE folder ADD COLUMN parent INTEGER REFERENCES ` + c + ` (id)`)
				rounds(2, old, a)
				same(t, old, a)
				want := "theirs 10"
				if policy == tidemark.ServerWins {
					want = "first 10"
				}
				if got := a.value(`SELECT v || ' ' || coalesce(parent, 'nothing') FROM folder WHERE v <> 'parent'`); got != fmt.Sprintf("%q", want) {
					t.Errorf("the row is %s", got)
				}
			})
		}
	}
}
