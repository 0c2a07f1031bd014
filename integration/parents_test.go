package integration

import (
	"fmt"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

// A folder is deleted and inserted again with its number, as some programs save: its
// notes are in the new one, everywhere.
func TestAParentDeletedAndInsertedAgain(t *testing.T) {
	t.Parallel()
	for _, fk := range []string{`PRAGMA foreign_keys = OFF`, `PRAGMA defer_foreign_keys = ON`} {
		for i, schema := range []string{
			`CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), v TEXT)`,
			`CREATE TABLE folder (id TEXT PRIMARY KEY, name TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder TEXT REFERENCES folder (id), v TEXT)`,
		} {
			t.Run(fmt.Sprint(fk, i), func(t *testing.T) {
				for range 3 {
					f := newFleet(t, schema)
					a, b := f.device("a"), f.device("b")
					a.exec(`INSERT INTO folder (id, name) VALUES (1, 'home'); INSERT INTO note (folder, v) VALUES (1, 'hello')`)
					rounds(2, a, b)
					conn, err := a.db.DB.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					q := `BEGIN; ` + fk + `; DELETE FROM folder WHERE id = 1; INSERT INTO folder (id, name) VALUES (1, 'home, saved'); COMMIT`
					if fk == `PRAGMA foreign_keys = OFF` {
						q = fk + `; BEGIN; DELETE FROM folder WHERE id = 1; INSERT INTO folder (id, name) VALUES (1, 'home, saved'); COMMIT; PRAGMA foreign_keys = ON`
					}
					if _, err := conn.ExecContext(t.Context(), q); err != nil {
						t.Fatal(err)
					}
					conn.Close()
					rounds(3, a, b)
					same(t, a, b)
					for _, d := range []*device{a, b} {
						if got := d.value(`SELECT v || ' in ' || name FROM note JOIN folder ON folder.id = note.folder`); got != `"hello in home, saved"` {
							t.Errorf("there is %s", got)
						}
					}
				}
			})
		}
	}
}

// Without enforced foreign keys, SQLite's default, a note is left behind by a folder whose
// number the next folder gets.
func TestANumberThatIsGivenAgain(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO folder (id, name) VALUES (1, 'home'); INSERT INTO note (folder, v) VALUES (1, 'hello')`)
	rounds(2, a, b)
	conn, err := a.db.DB.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(t.Context(), `PRAGMA foreign_keys = OFF; DELETE FROM folder; INSERT INTO folder (name) VALUES ('work'); PRAGMA foreign_keys = ON`); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	rounds(3, a, b)
	same(t, a, b)
	told(t, a, b)
}

// What an excluded table has of a deleted row goes with it, as its schema says.
func TestAnExcludedChildOfADeletedRow(t *testing.T) {
	t.Parallel()
	for action, want := range map[string]string{"CASCADE": "0 0", "SET NULL": "1 0"} {
		f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE thumb (id INTEGER PRIMARY KEY, item INTEGER REFERENCES item (id) ON DELETE `+action+`, v TEXT)`)
		a, b := f.device("a"), f.device("b")
		for _, d := range []*device{a, b} {
			if _, err := tidemark.Attach(t.Context(), d.db, tidemark.Table{Name: "thumb", Exclude: true}); err != nil {
				t.Fatal(err)
			}
		}
		a.exec(`INSERT INTO item (id, v) VALUES (1, 'one')`)
		rounds(2, a, b)
		b.exec(`INSERT INTO thumb (item, v) VALUES (1, 'of one')`)
		a.exec(`DELETE FROM item`)
		rounds(2, a, b)
		if got := strings1(t.Context(), t, b.db.DB, `SELECT "table" || ' ' || rowid FROM pragma_foreign_key_check`); len(got) > 0 {
			t.Errorf("%s: foreign_key_check: %v", action, got)
		}
		if got := b.value(`SELECT count(*) || ' ' || count(item) FROM thumb`); got != fmt.Sprintf("%q", want) {
			t.Errorf("%s: there is %s", action, got)
		}
	}
}

// A document that does not fit here, of a row that is deleted here: the cycle ends.
func TestADeleteAgainstADocumentThatDoesNotFit(t *testing.T) {
	t.Parallel()
	for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.ServerWins} {
		f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT, n INTEGER)`)
		a := f.settling("a", policy, "note")
		f.schema = `CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT, n INTEGER CHECK (n < 100))`
		b := f.settling("b", policy, "note")
		a.exec(`INSERT INTO note (v, n) VALUES ('x', 1)`)
		rounds(2, a, b)
		a.exec(`UPDATE note SET n = 1000`)
		rounds(1, a, b)
		later()
		b.exec(`DELETE FROM note`)
		rounds(2, b, a)
		for range 3 {
			if r := b.sync(); r.Billed.Reads > 2 {
				t.Errorf("%s: still moves: %+v", policy, r.Billed)
			}
		}
		told(t, b)
	}
}

// Positions of a list, which are unique, change on two devices.
func TestAListReorderedOnTwoDevices(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, pos INTEGER UNIQUE, v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (pos, v) VALUES (1, 'one'), (2, 'two'), (3, 'three')`)
	rounds(2, a, b)
	a.exec(`UPDATE item SET pos = -pos; UPDATE item SET pos = CASE pos WHEN -1 THEN 2 WHEN -2 THEN 1 ELSE -pos END`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT group_concat(v) FROM (SELECT * FROM item ORDER BY pos)`); got != `"two,one,three"` {
		t.Errorf("there is %s", got)
	}
	a.exec(`UPDATE item SET pos = -pos; UPDATE item SET pos = 1 - pos; INSERT INTO item (pos, v) VALUES (1, 'zero')`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT group_concat(v) FROM (SELECT * FROM item ORDER BY pos)`); got != `"zero,two,one,three"` {
		t.Errorf("there is %s", got)
	}
	quiet(t, a, b)
}

// A folder makes way for a new one of its name, and its notes move there.
func TestAParentReplacedByOneOfTheSameName(t *testing.T) {
	t.Parallel()
	for range 3 {
		f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT UNIQUE, v TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id) ON DELETE SET NULL, v TEXT)`)
		a, b := f.device("a"), f.device("b")
		a.exec(`INSERT INTO folder (id, name, v) VALUES (1, 'home', 'old'); INSERT INTO note (folder, v) VALUES (1, 'hello')`)
		rounds(2, a, b)
		a.exec(`DELETE FROM folder; INSERT INTO folder (id, name, v) VALUES (2, 'home', 'new'); UPDATE note SET folder = 2`)
		rounds(3, a, b)
		same(t, a, b)
		if got := a.value(`SELECT note.v || ' in ' || folder.v FROM note JOIN folder ON folder.id = note.folder`); got != `"hello in new"` {
			t.Errorf("there is %s", got)
		}
		quiet(t, a, b)
		if t.Failed() {
			return
		}
	}
}

// A tag that the server does not take has the name of another device's tag: that one is
// not deleted in favour of one that nobody else will ever see.
func TestAMergeWithARowThatIsRefused(t *testing.T) {
	t.Parallel()
	for range 3 {
		f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, v TEXT)`)
		server := f.refusing()
		a, b := f.device("a"), f.device("b")
		server.refuse = func(d messages.Document) bool { return d.Fields["v"] == "bad" }
		b.exec(`INSERT INTO tag (name, v) VALUES ('home', 'bad')`)
		b.sync()
		a.exec(`INSERT INTO tag (name, v) VALUES ('home', 'good')`)
		rounds(3, a, b)
		if got := a.value(`SELECT count(*) FROM tag WHERE name = 'home'`); got != "1" {
			t.Errorf("there are %s tags", got)
		}
		before := f.server.Bill()
		b.sync()
		if after := f.server.Bill(); after.Writes != before.Writes || after.Reads > before.Reads+2 {
			t.Errorf("while it waits, an idle cycle costs %+v, after %+v", after, before)
		}
		b.exec(`UPDATE tag SET v = 'better'`)
		rounds(3, b, a)
		same(t, a, b)
		if got := a.value(`SELECT v FROM tag WHERE name = 'home'`); got != `"better"` {
			t.Errorf("there is %s", got)
		}
		if t.Failed() {
			return
		}
	}
}

// A table goes while one of its documents waits for a parent.
func TestATableThatIsDroppedWhileADocumentWaits(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"drop", "exclude"} {
		f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), v TEXT)`)
		a := f.device("a")
		f.server.Put(messages.Document{Table: "note", ID: "n1", CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"folder": "nowhere", "v": "x"}})
		full(t, a)
		if how == "drop" {
			a.exec(`DROP TABLE note`)
		} else if _, err := tidemark.Attach(t.Context(), a.db, tidemark.Table{Name: "note", Exclude: true}); err != nil {
			t.Fatal(err)
		}
		rounds(2, a)
		if st, _ := a.p.Status(t.Context()); !st.InStep {
			t.Errorf("%s: %+v", how, st)
		}
	}
}
