package integration

import (
	"errors"
	"fmt"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// The application changes its schema between two syncs; nobody calls Attach again.
func TestApplicationMigratesItsSchema(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work')`)
	a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'shopping'), (11, 2, 'report')`)
	a.sync()
	b := f.device("b")
	b.sync()

	// A gains a column and a table, and fills the column for one row.
	a.exec(`ALTER TABLE note ADD COLUMN colour TEXT DEFAULT 'white'`)
	a.exec(`UPDATE note SET colour = 'red' WHERE id = 10`)
	a.exec(`CREATE TABLE attachment (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note(id), data BLOB)`)
	a.exec(`INSERT INTO attachment (note, data) VALUES (10, x'00ff')`)
	a.sync()
	same(t, a)

	// B is older: it edits the row, and its upload must not erase what it does not know.
	b.sync()
	b.exec(`UPDATE note SET title = 'groceries' WHERE title = 'shopping'`)
	b.sync()
	a.sync()
	if got := a.value(`SELECT title || ' ' || colour FROM note WHERE id = 10`); got != `"groceries red"` {
		t.Errorf("an old device's edit: %s", got)
	}

	// B is upgraded: what it could not know is there, before its next upload.
	b.exec(`UPDATE note SET title = 'groceries!' WHERE title = 'groceries'`) // dirty at the upgrade
	b.exec(`ALTER TABLE note ADD COLUMN colour TEXT DEFAULT 'white'`)
	b.exec(`CREATE TABLE attachment (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note(id), data BLOB)`)
	b.sync()
	a.sync()
	b.sync()
	same(t, a, b)
	if got := b.value(`SELECT title || ' ' || colour FROM note WHERE title LIKE 'groc%'`); got != `"groceries! red"` {
		t.Errorf("an upgraded device: %s", got)
	}
	if got := b.value(`SELECT hex(data) FROM attachment`); got != `"00FF"` {
		t.Errorf("the new table: %s", got)
	}
}

// SQLite's way to change a table is to build a new one and copy the rows: the
// tracked columns are gone, and every row must find its document again.
func TestApplicationRebuildsATable(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work')`)
	a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'one'), (11, 2, 'two'), (12, 2, 'two')`)
	a.exec(`INSERT INTO tag (name, colour) VALUES ('red', '#f00'), ('blue', '#00f')`)
	b := f.device("b")
	b.exec(`INSERT INTO notebook (id, name) VALUES (1, 'of b')`) // the numbers of one side are taken on the other
	b.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'ten of b')`)
	a.sync()
	b.sync()
	a.sync()
	same(t, a, b)
	documents := len(f.server.Dump())

	b.exec(`UPDATE note SET title = 'edited before' WHERE title = 'one'`) // not uploaded yet
	for _, q := range []string{
		`PRAGMA foreign_keys = OFF`,
		`CREATE TABLE new_note (id INTEGER PRIMARY KEY, title TEXT, notebook INTEGER NOT NULL REFERENCES notebook(id) ON DELETE CASCADE, body TEXT, pinned INTEGER NOT NULL DEFAULT 0)`,
		`INSERT INTO new_note (id, title, notebook, body) SELECT id, title, notebook, body FROM note`,
		`DROP TABLE note`,
		`ALTER TABLE new_note RENAME TO note`,
		`CREATE TABLE new_tag (name TEXT PRIMARY KEY, colour TEXT NOT NULL) WITHOUT ROWID`,
		`INSERT INTO new_tag (name, colour) SELECT name, upper(colour) FROM tag`,
		`DROP TABLE tag`,
		`ALTER TABLE new_tag RENAME TO tag`,
	} {
		b.exec(q)
	}
	for range 2 {
		b.sync()
		a.sync()
	}
	a.exec(`ALTER TABLE note ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0`)
	for range 2 {
		a.sync()
		b.sync()
	}
	same(t, a, b)
	if n := len(f.server.Dump()); n != documents {
		t.Errorf("%d documents became %d", documents, n)
	}
	for q, want := range map[string]string{
		`SELECT count(*) FROM note`:                               "4",
		`SELECT count(*) FROM note WHERE title = 'edited before'`: "1",
		`SELECT colour FROM tag WHERE name = 'red'`:               `"#F00"`,
	} {
		if got := a.value(q); got != want {
			t.Errorf("%s: %s, want %s", q, got, want)
		}
	}
}

// Somebody who is no device writes to the server; a full sync finds it.
func TestFullSyncFindsWhatNoDeviceWrote(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.exec(`INSERT INTO tag (name, colour) VALUES ('red', '#f00')`)
	a.sync()
	f.server.Put(messages.Document{Table: "tag", ID: "made-by-hand", Fields: map[string]any{"name": "green", "colour": "#0f0"}})
	f.server.Edit("notebook", a.idOf(`SELECT clientId FROM notebook`), map[string]any{"name": "changed by hand"})
	if a.sync(); a.value(`SELECT count(*) FROM tag`) != "1" {
		t.Error("an ordinary sync is not expected to find it")
	}
	r, err := a.p.SyncFull(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Billed.Reads != 1+1+2+3 { // the records, the documents, and one for each empty table
		t.Errorf("billed %+v", r.Billed)
	}
	if got := a.value(`SELECT name FROM notebook`); got != `"changed by hand"` {
		t.Errorf("the changed document: %s", got)
	}
	if got := a.value(`SELECT count(*) FROM tag WHERE colour = '#0f0'`); got != "1" {
		t.Errorf("the new document: %s", got)
	}
	same(t, a)
}

func (d *device) idOf(query string) string {
	d.t.Helper()
	return strings1(d.t.Context(), d.t, d.db.DB, query)[0]
}

// The application rebuilds a table and fills a new column: that is an edit.
func TestARebuiltTableWithANewColumn(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	a.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT, x TEXT); INSERT INTO new_item (id, v, x) SELECT id, v, 'of a' FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
	rounds(2, a, b)
	b.exec(`ALTER TABLE item ADD COLUMN x TEXT`)
	rounds(2, b, a)
	same(t, a, b)
	if got := b.value(`SELECT group_concat(v || x) FROM item`); got != `"oneof a,twoof a"` {
		t.Errorf("the other device has %s", got)
	}
}

// inStep are two devices with two items.
func inStep(t *testing.T) (a, b *device) {
	t.Helper()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT);`)
	a, b = f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`)
	rounds(2, a, b)
	return a, b
}

const rebuildItem = `CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO new_item (id, v) SELECT id, v FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`

// The application is upgraded on two devices, and gains a column; on the second one by
// rebuilding the table. What the first one has in the column stays.
func TestARebuiltTableGainsAColumnThatIsFilledElsewhere(t *testing.T) {
	t.Parallel()
	for _, def := range []string{"", " DEFAULT 0", " NOT NULL DEFAULT 0"} {
		t.Run(def, func(t *testing.T) {
			a, b := inStep(t)
			a.exec(`ALTER TABLE item ADD COLUMN x INTEGER` + def + `; UPDATE item SET x = 7 WHERE id = 1`)
			rounds(1, a)
			b.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT, x INTEGER` + def + `); INSERT INTO new_item (id, v) SELECT id, v FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
			rounds(2, b, a)
			same(t, a, b)
			if n := a.value(`SELECT x FROM item WHERE id = 1`); n != "7" {
				t.Errorf("x is %s, and %s conflicts are kept here, %s there", n, a.value(`SELECT count(*) FROM tidemark_conflicts`), b.value(`SELECT count(*) FROM tidemark_conflicts`))
			}
		})
	}
}

// The rebuild copies the row, and meanwhile somebody else has changed it.
func TestARebuiltTableAndAnEditElsewhere(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	a.exec(`UPDATE item SET v = 'edited' WHERE id = 1`)
	rounds(1, a)
	b.exec(rebuildItem)
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT v FROM item WHERE id = 1`); n != `"edited"` {
		t.Errorf("v is %s, and %s conflicts are kept here, %s there", n, a.value(`SELECT count(*) FROM tidemark_conflicts`), b.value(`SELECT count(*) FROM tidemark_conflicts`))
	}
}

// The rebuild copies a row that somebody else has deleted.
func TestARebuiltTableAndADeleteElsewhere(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	a.exec(`DELETE FROM item WHERE id = 1`)
	rounds(1, a)
	b.exec(rebuildItem)
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT count(*) FROM item`); n != `1` {
		t.Errorf("%s rows", n)
	}
}

// Two devices create rows with the same local number; one rebuilds the table before it
// syncs.
func TestARebuiltTableAndARowWithTheSameNumberElsewhere(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	a.exec(`INSERT INTO item (id, v) VALUES (3, 'milk')`)
	rounds(1, a)
	b.exec(`INSERT INTO item (id, v) VALUES (3, 'bread')`)
	b.exec(rebuildItem)
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT count(*) FROM item WHERE v IN ('milk', 'bread')`); n != `2` {
		t.Errorf("%s of two rows are left, conflicts %s", n, b.value(`SELECT count(*) FROM tidemark_conflicts`))
	}
}

// Two devices have created rows with the same local number, and the rebuild adds a column
// that the other one has filled: that value is the other row's.
func TestAFilledColumnOfAnotherRowWithTheSameNumber(t *testing.T) {
	t.Parallel()
	for _, deleted := range []bool{false, true} {
		t.Run(fmt.Sprint("deleted ", deleted), func(t *testing.T) {
			a, b := inStep(t)
			a.exec(`ALTER TABLE item ADD COLUMN x INTEGER; INSERT INTO item (id, v, x) VALUES (3, 'milk', 7)`)
			rounds(1, a)
			if deleted {
				a.exec(`DELETE FROM item WHERE id = 3`)
				rounds(1, a)
			}
			b.exec(`INSERT INTO item (id, v) VALUES (3, 'bread')`)
			b.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT, x INTEGER); INSERT INTO new_item (id, v) SELECT id, v FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
			rounds(2, b, a)
			same(t, a, b)
			if n := a.value(`SELECT x FROM item WHERE v = 'bread'`); n != "NULL" {
				t.Errorf("bread has the x of milk: %s", n)
			}
		})
	}
}

// A migration adds a column, another one rebuilds the table, before the next sync.
func TestARebuildAfterAnotherMigration(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	b.exec(`ALTER TABLE item ADD COLUMN x INTEGER`)
	if _, err := tidemark.Attach(t.Context(), b.db); err != nil {
		t.Fatal(err)
	}
	b.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT, x INTEGER); INSERT INTO new_item (id, v, x) SELECT id, upper(v), x FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
	rounds(2, b, a)
	if n := b.value(`SELECT count(*) FROM item`); n != "2" {
		t.Errorf("%s rows, want 2: %s", n, b.value(`SELECT group_concat(v) FROM item`))
	}
}

// createdOn is the application's column, and says when something is going to be.
func TestARebuiltTableAndACreatedOnAhead(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT);`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (id, v, createdOn) VALUES (1, 'one', ?)`, time.Now().Add(time.Hour).UnixMilli())
	rounds(2, a, b)
	a.exec(`UPDATE item SET v = 'edited'`)
	rounds(1, a)
	b.exec(rebuildItem)
	rounds(2, b, a)
	if n := a.value(`SELECT group_concat(v) FROM item`); n != `"edited"` {
		t.Errorf("there is %s", n)
	}
}

// An edit after the rebuild is later than the one that came before it.
func TestAnEditAfterTheRebuild(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	a.exec(`UPDATE item SET v = 'edited' WHERE id = 1`)
	rounds(1, a)
	b.exec(rebuildItem)
	if _, err := tidemark.Attach(t.Context(), b.db); err != nil {
		t.Fatal(err)
	}
	for range 20 { // later, also within the same millisecond
		b.exec(`UPDATE item SET v = v || '.' WHERE id = 1`)
	}
	b.exec(`UPDATE item SET v = 'later' WHERE id = 1`)
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT v FROM item WHERE id = 1`); n != `"later"` {
		t.Errorf("v is %s", n)
	}
}

// The deleted row of a rebuilt table refers to another one of it, which is read later.
func TestARebuiltTreeAndADeleteElsewhere(t *testing.T) {
	t.Parallel()
	for _, ids := range [][2]string{{"a", "b"}, {"b", "a"}} {
		t.Run("parent "+ids[0], func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES folder (id), v TEXT);`)
			f.server.Put(messages.Document{Table: "folder", ID: ids[0], CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"id": int64(1), "v": "top"}})
			f.server.Put(messages.Document{Table: "folder", ID: ids[1], CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"id": int64(2), "v": "leaf", "parent": ids[0]}})
			a, b := f.device("a"), f.device("b")
			for _, d := range []*device{a, b} {
				if _, err := d.p.SyncFull(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			rounds(1, a, b)
			a.exec(`DELETE FROM folder WHERE v = 'leaf'`)
			rounds(1, a)
			b.exec(`PRAGMA foreign_keys = OFF; CREATE TABLE new_folder (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES folder (id), v TEXT); INSERT INTO new_folder (id, parent, v) SELECT id, parent, v FROM folder;
DROP TABLE folder; ALTER TABLE new_folder RENAME TO folder; PRAGMA foreign_keys = ON`)
			rounds(2, b, a)
			same(t, a, b)
			if n := a.value(`SELECT group_concat(v) FROM folder`); n != `"top"` {
				t.Errorf("there is %s", n)
			}
		})
	}
}

// Somebody else edited the row and then deleted it, before the rebuild.
func TestARebuiltTableAndAnEditAndADeleteElsewhere(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	a.exec(`UPDATE item SET v = 'edited' WHERE id = 1`)
	rounds(1, a)
	a.exec(`DELETE FROM item WHERE id = 1`)
	rounds(1, a)
	b.exec(rebuildItem)
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT group_concat(v) FROM item`); n != `"two"` {
		t.Errorf("there is %s", n)
	}
}

// Two rows have swapped their unique values elsewhere, before the rebuild.
func TestARebuiltTableAndASwapElsewhere(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT UNIQUE, w TEXT);`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`)
	rounds(2, a, b)
	a.exec(`UPDATE item SET v = 'x' WHERE id = 1; UPDATE item SET v = 'one', w = 'edited' WHERE id = 2; UPDATE item SET v = 'two', w = 'edited' WHERE id = 1`)
	rounds(1, a)
	b.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT UNIQUE, w TEXT); INSERT INTO new_item (id, v, w) SELECT id, v, w FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT group_concat(v || coalesce(w, '-')) FROM (SELECT v, w FROM item ORDER BY id)`); n != `"twoedited,oneedited"` {
		t.Errorf("there is %s, conflicts %s", n, b.value(`SELECT count(*) FROM tidemark_conflicts`))
	}
}

// A rebuild that an older version of ours noted, which wrote 1.
func TestARebuildThatAnOlderVersionNoted(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	b.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO new_item (id, v) SELECT id, upper(v) FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
	if _, err := tidemark.Attach(t.Context(), b.db); err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE tidemark_DownloadedTracker SET rebuilt = 1`)
	rounds(2, b, a)
	if n := b.value(`SELECT count(*) FROM item`); n != "2" {
		t.Errorf("%s rows, want 2: %s", n, b.value(`SELECT group_concat(v) FROM item`))
	}
}

// A download is cut off, and the application is upgraded and rebuilds the table in which
// rows had come in already. The other table is read after it: a child after its parent.
func TestADownloadThatWasCutOffAndARebuild(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE other (id INTEGER PRIMARY KEY, v TEXT, item INTEGER REFERENCES item (id));`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (id, v) VALUES (1, 'one'); INSERT INTO other (id, v) VALUES (1, 'one')`)
	rounds(2, a, b)
	a.exec(`INSERT INTO item (id, v, createdOn) VALUES (2, 'two', ?)`, time.Now().UnixMilli()+10) // after the last sync
	a.exec(`INSERT INTO other (id, v) VALUES (2, 'two')`)
	a.sync()
	remote := f.server.Remote()
	cut := true
	remote.Fault = func(c memory.Call) memory.Fault {
		if cut && c.Query != nil && c.Query.Table == "other" {
			return memory.Fault{Before: errors.New("the line is cut")}
		}
		return memory.Fault{}
	}
	b = f.with(remote).on(b.path, b.db)
	if _, err := b.p.Sync(t.Context()); err == nil {
		t.Fatal("the sync was not cut off")
	}
	if n := b.value(`SELECT count(*) FROM item`); n != "2" {
		t.Fatalf("the story is another one: %s", n)
	}
	cut = false
	b.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO new_item (id, v) SELECT id, upper(v) FROM item;
DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
	rounds(2, b, a)
	same(t, a, b)
	if n := b.value(`SELECT group_concat(v) FROM (SELECT v FROM item ORDER BY v)`); n != `"ONE,TWO"` {
		t.Errorf("there is %s", n)
	}
}

// Rows that refer to each other, in a table that is rebuilt.
func TestARebuiltTableOfACircle(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, peer INTEGER REFERENCES person (id) DEFERRABLE INITIALLY DEFERRED);`)
	a, b := f.device("a"), f.device("b")
	a.exec(`BEGIN; INSERT INTO person VALUES (1, 'A', 2, null, null, null, null, 0, null, null), (2, 'B', 1, null, null, null, null, 0, null, null); COMMIT`)
	rounds(2, a, b)
	b.exec(`PRAGMA foreign_keys = OFF; CREATE TABLE new_person (id INTEGER PRIMARY KEY, name TEXT, peer INTEGER REFERENCES person (id) DEFERRABLE INITIALLY DEFERRED); INSERT INTO new_person (id, name, peer) SELECT id, name, peer FROM person;
DROP TABLE person; ALTER TABLE new_person RENAME TO person; PRAGMA foreign_keys = ON`)
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT group_concat(name) FROM (SELECT name FROM person ORDER BY name)`); n != `"A,B"` {
		t.Errorf("there is %s", n)
	}
}
