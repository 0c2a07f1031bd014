package integration

import (
	"fmt"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

// settling makes a device whose tables have a policy.
func (f *fleet) settling(name string, policy tidemark.Policy, tables ...string) *device {
	f.t.Helper()
	d := f.device(name)
	for _, n := range tables {
		if _, err := tidemark.Attach(f.t.Context(), d.db, tidemark.Table{Name: n, Policy: policy}); err != nil {
			f.t.Fatal(err)
		}
	}
	return d
}

// told logs what is set aside.
func told(t *testing.T, ds ...*device) {
	t.Helper()
	for _, d := range ds {
		t.Log(d.path[len(d.path)-4:], strings1(t.Context(), t, d.db.DB, `SELECT 'waits: ' || tableName || ' ' || kind || ' ' || documentId || ': ' || reason FROM tidemark_inbox UNION ALL SELECT 'dead: ' || handler || ' ' || tableName || ' ' || documentId || ': ' || reason FROM tidemark_dead_letters
			UNION ALL SELECT 'conflict: ' || tableName || ' ' || documentId || ' ' || winner || ': ' || reason FROM tidemark_conflicts`))
	}
}

// One device gives a row a new parent of the same table, the other edits its name:
// whichever of the two documents comes first, both edits survive.
func TestMergeByFieldWithAParentThatComesLater(t *testing.T) {
	t.Parallel()
	for range 3 { // ids are random
		f := newFleet(t, `CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT, boss INTEGER REFERENCES emp (id))`)
		a, b := f.settling("a", tidemark.MergeByField, "emp"), f.settling("b", tidemark.MergeByField, "emp")
		a.exec(`INSERT INTO emp (id, name) VALUES (1, 'kim')`)
		rounds(2, a, b)
		a.exec(`INSERT INTO emp (id, name) VALUES (2, 'lee'); UPDATE emp SET boss = 2 WHERE id = 1`)
		later()
		b.exec(`UPDATE emp SET name = 'kim, edited' WHERE id = 1`)
		rounds(2, a, b)
		same(t, a, b)
		if got := a.value(`SELECT e.name || ' of ' || coalesce(b.name, 'nobody') FROM emp e LEFT JOIN emp b ON b.id = e.boss WHERE e.id = 1`); got != `"kim, edited of lee"` {
			t.Errorf("there is %s", got)
		}
		quiet(t, a, b)
		if t.Failed() {
			break
		}
	}
}

// A name is given on from one tag to another, and the other one's colour is edited elsewhere.
func TestMergeByFieldWithANameThatBecomesFree(t *testing.T) {
	t.Parallel()
	for _, ids := range [][2]int{{1, 2}, {2, 1}} {
		for range 3 {
			f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, colour TEXT)`)
			a, b := f.settling("a", tidemark.MergeByField, "tag"), f.settling("b", tidemark.MergeByField, "tag")
			a.exec(`INSERT INTO tag (id, name) VALUES (1, 'x'), (2, 'y')`)
			rounds(2, a, b)
			a.exec(`UPDATE tag SET name = 'old x' WHERE id = ?`, ids[0])
			a.exec(`UPDATE tag SET name = ? WHERE id = ?`, map[int]string{1: "x", 2: "y"}[ids[0]], ids[1])
			later()
			b.exec(`UPDATE tag SET colour = 'red' WHERE id = ?`, ids[1])
			rounds(3, a, b)
			same(t, a, b)
			if got := a.value(`SELECT count(*) FROM tag WHERE name LIKE 'old%' AND id = ? OR id = ? AND colour = 'red' AND name = ?`, ids[0], ids[1], map[int]string{1: "x", 2: "y"}[ids[0]]); got != "2" {
				t.Errorf("there is %s", a.value(`SELECT group_concat(id || name || coalesce(colour, '')) FROM tag`))
			}
			quiet(t, a, b)
			if t.Failed() {
				return
			}
		}
	}
}

// Two tags swap their names, and the colour of one is edited elsewhere.
func TestMergeByFieldOfASwap(t *testing.T) {
	t.Parallel()
	for _, id := range []int{1, 2} {
		f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, colour TEXT)`)
		a, b := f.settling("a", tidemark.MergeByField, "tag"), f.settling("b", tidemark.MergeByField, "tag")
		a.exec(`INSERT INTO tag (id, name) VALUES (1, 'x'), (2, 'y')`)
		rounds(2, a, b)
		a.exec(`UPDATE tag SET name = 'z' WHERE id = 1; UPDATE tag SET name = 'x' WHERE id = 2; UPDATE tag SET name = 'y' WHERE id = 1`)
		later()
		b.exec(`UPDATE tag SET colour = 'red' WHERE id = ?`, id)
		rounds(3, a, b)
		same(t, a, b)
		if got := a.value(`SELECT group_concat(id || name || coalesce(colour, '')) FROM (SELECT * FROM tag ORDER BY id)`); got != fmt.Sprintf("%q", map[int]string{1: "1yred,2x", 2: "1y,2xred"}[id]) {
			t.Errorf("there is %s", got)
			told(t, a, b)
		}
	}
}

// A country gets another code, and one of its cities moves to another country, whose
// name was edited elsewhere: the key that followed its parent is no edit.
func TestMergeByFieldOfAKeyThatFollowed(t *testing.T) {
	t.Parallel()
	for range 3 {
		f := newFleet(t, `CREATE TABLE country (code TEXT PRIMARY KEY); CREATE TABLE city (id INTEGER PRIMARY KEY, country TEXT REFERENCES country (code) ON UPDATE CASCADE, name TEXT)`)
		a, b := f.settling("a", tidemark.MergeByField, "city"), f.settling("b", tidemark.MergeByField, "city")
		a.exec(`INSERT INTO country (code) VALUES ('D'), ('F'); INSERT INTO city (id, country, name) VALUES (1, 'D', 'Kehl')`)
		rounds(2, a, b)
		a.exec(`UPDATE city SET country = 'F'; UPDATE country SET code = 'DE' WHERE code = 'D'`)
		later()
		b.exec(`UPDATE city SET name = 'Kehl am Rhein'`)
		rounds(2, a, b)
		same(t, a, b)
		if got := a.value(`SELECT country || ' ' || name FROM city`); got != `"F Kehl am Rhein"` {
			t.Errorf("there is %s", got)
		}
		quiet(t, a, b)
		if t.Failed() {
			return
		}
	}
}

// A cloud function writes whole numbers as integers, as JavaScript does, also where the
// table has floating-point numbers: that changes none of them.
func TestMergeByFieldWithWholeNumbers(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, title TEXT, rate REAL)`)
	a := f.settling("a", tidemark.MergeByField, "item")
	f.server.Put(messages.Document{Table: "item", ID: "x", CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"id": int64(1), "title": "one", "rate": int64(5)}})
	full(t, a)
	a.exec(`UPDATE item SET rate = 7.5`)
	f.server.Put(messages.Document{Table: "item", ID: "x", CreatedOn: 1, UpdatedOn: 1 << 52, UpdatedBy: "x", Fields: map[string]any{"id": int64(1), "title": "two", "rate": int64(5)}})
	full(t, a)
	if got := a.value(`SELECT title || ' ' || rate FROM item`); got != `"two 7.5"` {
		t.Errorf("there is %s", got)
	}
	quiet(t, a)
}

// A trigger of the application's changes rows while they are applied, and one of them has
// a whole number: it is not read again and again.
func TestATriggerAndAWholeNumber(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, rate REAL, n INTEGER DEFAULT 0); CREATE TRIGGER counts AFTER UPDATE OF v ON item BEGIN UPDATE item SET n = n + 1 WHERE id = NEW.id; END`)
	a := f.device("a")
	for i := range 2 {
		f.server.Put(messages.Document{Table: "item", ID: "x", CreatedOn: 1, UpdatedOn: int64(i + 1), UpdatedBy: "x", Fields: map[string]any{"id": int64(1), "v": "one", "rate": int64(5), "n": int64(i)}})
		full(t, a)
	}
	rounds(2, a)
	quiet(t, a)
	if r := a.sync(); r.Billed.Reads > 1 {
		t.Errorf("an idle cycle reads %d documents", r.Billed.Reads)
	}
}

// A device with an older schema swaps two names, and a row of them was changed here.
func TestASwapByADeviceThatLacksAColumn(t *testing.T) {
	t.Parallel()
	for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.MergeByField} {
		for _, id := range []int{1, 2} {
			f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, v TEXT)`)
			a := f.settling("a", policy, "tag")
			f.schema = `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, v TEXT, colour TEXT DEFAULT 'none')`
			b := f.settling("b", policy, "tag")
			a.exec(`INSERT INTO tag (id, name) VALUES (1, 'x'), (2, 'y')`)
			rounds(2, a, b)
			b.exec(`UPDATE tag SET colour = 'red' WHERE id = ?`, id)
			later()
			a.exec(`UPDATE tag SET name = 'z' WHERE id = 1; UPDATE tag SET name = 'x' WHERE id = 2; UPDATE tag SET name = 'y' WHERE id = 1`)
			rounds(3, a, b)
			for _, d := range []*device{a, b} {
				if got := d.value(`SELECT group_concat(id || name) FROM (SELECT * FROM tag ORDER BY id)`); got != `"1y,2x"` {
					t.Errorf("%s: there is %s", policy, got)
				}
			}
			if got := b.value(`SELECT colour FROM tag WHERE id = ?`, id); got != `"red"` {
				t.Errorf("%s: it is %s", policy, got)
			}
			for _, d := range []*device{a, b} {
				if r := d.sync(); r.Billed.Writes > 0 {
					t.Errorf("still moves: %+v", r.Tables)
				}
			}
		}
	}
}

// A parent that never comes does not hold back an edit for ever.
func TestMergeByFieldWithAParentThatNeverComes(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), v TEXT)`)
	a := f.settling("a", tidemark.MergeByField, "note")
	f.server.Put(messages.Document{Table: "note", ID: "n1", CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"v": "x", "folder": nil}})
	full(t, a)
	a.exec(`UPDATE note SET v = 'edited'`)
	f.server.Put(messages.Document{Table: "note", ID: "n1", CreatedOn: 1, UpdatedOn: 2, UpdatedBy: "x", Fields: map[string]any{"v": "x", "folder": "nowhere"}})
	full(t, a)
	rounds(2, a)
	same(t, a)
	if d := f.server.Dump()[0]; d.Fields["v"] != "edited" {
		t.Errorf("there is %v", d.Fields)
	}
}

// A list with unique positions is reordered, and an item of it edited elsewhere.
func TestMergeByFieldOfAReorderedList(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, pos INTEGER UNIQUE, v TEXT)`)
	a, b := f.settling("a", tidemark.MergeByField, "item"), f.settling("b", tidemark.MergeByField, "item")
	a.exec(`INSERT INTO item (pos, v) VALUES (1, 'one'), (2, 'two'), (3, 'three')`)
	rounds(2, a, b)
	a.exec(`UPDATE item SET pos = -pos; UPDATE item SET pos = 1 - pos; INSERT INTO item (pos, v) VALUES (1, 'zero')`)
	later()
	b.exec(`UPDATE item SET v = 'two, edited' WHERE pos = 2`)
	rounds(3, a, b)
	same(t, a, b)
	if got := b.value(`SELECT group_concat(pos || v, ' ') FROM (SELECT * FROM item ORDER BY pos)`); got != `"1zero 2one 3two, edited 4three"` {
		t.Errorf("the list is %s", got)
	}
}
