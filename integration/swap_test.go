package integration

import (
	"fmt"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// A parent and its child in a tree swap their unique names.
func TestAParentAndItsChildSwapTheirNames(t *testing.T) {
	t.Parallel()
	for _, ids := range [][2]string{{"a1", "b2"}, {"b2", "a1"}} {
		t.Run(fmt.Sprint(ids), func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT UNIQUE, parent INTEGER REFERENCES folder (id))`)
			f.server.Put(messages.Document{Table: "folder", ID: ids[0], CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"name": "work", "parent": nil, "id": int64(1)}})
			f.server.Put(messages.Document{Table: "folder", ID: ids[1], CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"name": "home", "parent": ids[0], "id": int64(2)}})
			a, b := f.device("a"), f.device("b")
			full(t, a, b)
			a.exec(`BEGIN; UPDATE folder SET name = 'x' WHERE id = 1; UPDATE folder SET name = 'work' WHERE id = 2; UPDATE folder SET name = 'home' WHERE id = 1; COMMIT`)
			rounds(2, a, b)
			same(t, a, b)
			quiet(t, a, b)
			if got := a.value(`SELECT group_concat(name || id) FROM (SELECT * FROM folder ORDER BY id)`); got != `"home1,work2"` {
				t.Errorf("there is %s", got)
			}
		})
	}
}

// Two tags whose names are their keys swap them; their items have keys made of
// theirs, and the items' parts in turn.
func TestTwoKeysAreSwapped(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (name TEXT PRIMARY KEY, v TEXT); CREATE TABLE item (tag TEXT REFERENCES tag (name) ON UPDATE CASCADE, pos INTEGER, v TEXT, PRIMARY KEY (tag, pos));
CREATE TABLE part (tag TEXT, pos INTEGER, v TEXT, PRIMARY KEY (tag, pos), FOREIGN KEY (tag, pos) REFERENCES item (tag, pos) ON UPDATE CASCADE)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO tag (name, v) VALUES ('red', 'r'), ('blue', 'b'); INSERT INTO item (tag, pos, v) VALUES ('red', 1, 'of r'), ('blue', 1, 'of b');
		INSERT INTO part (tag, pos, v) VALUES ('red', 1, 'in r'), ('blue', 1, 'in b')`)
	rounds(2, a, b)
	a.exec(`BEGIN; UPDATE tag SET name = 'x' WHERE name = 'red'; UPDATE tag SET name = 'red' WHERE name = 'blue'; UPDATE tag SET name = 'blue' WHERE name = 'x'; COMMIT`)
	later()
	b.exec(`UPDATE item SET v = 'of b, edited' WHERE tag = 'blue'`)
	rounds(2, a, b)
	same(t, a, b)
	quiet(t, a)
	for _, d := range []*device{a, b} {
		if got := d.value(`SELECT group_concat(tag || ' ' || item.v || ' ' || part.v) FROM (SELECT * FROM item ORDER BY tag) item JOIN part USING (tag, pos)`); got != `"blue of r in r,red of b, edited in b"` {
			t.Errorf("there is %s", got)
		}
	}
}

// colour: the swap is later, and wins. Nobody wanted one tag instead of two.
func TestASwapOfARowThatWasChangedHere(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"x", "y"} {
		t.Run(who, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, colour TEXT)`)
			a, b := f.device("a"), f.device("b")
			a.exec(`INSERT INTO tag (id, name) VALUES (1, 'x'), (2, 'y')`)
			rounds(2, a, b)
			b.exec(`UPDATE tag SET colour = 'red' WHERE name = ?`, who)
			later()
			a.exec(`BEGIN; UPDATE tag SET name = 'z' WHERE id = 1; UPDATE tag SET name = 'x' WHERE id = 2; UPDATE tag SET name = 'y' WHERE id = 1; COMMIT`)
			rounds(3, a, b)
			same(t, a, b)
			if got := b.value(`SELECT group_concat(id || name) FROM (SELECT * FROM tag ORDER BY id)`); got != `"1y,2x"` {
				t.Errorf("there is %s: %v", got, strings1(t.Context(), t, b.db.DB, `SELECT documentId || ' ' || winner || ' ' || reason FROM tidemark_conflicts`))
			}
		})
	}
}

// theirs, and grandchildren whose keys are made of those.
func TestMergedRowsWithGrandchildren(t *testing.T) {
	t.Parallel()
	for name, schema := range map[string][3]string{
		"shared key": {
			`CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT UNIQUE); CREATE TABLE emp (id INTEGER PRIMARY KEY REFERENCES person (id), v TEXT);
CREATE TABLE manager (id INTEGER PRIMARY KEY REFERENCES emp (id), v TEXT)`,
			`INSERT INTO person (id, name) VALUES (1, 'kim'), (2, 'lee'); INSERT INTO emp (id, v) VALUES (1, 'k'), (2, 'l'); INSERT INTO manager (id, v) VALUES (1, 'k'), (2, 'l');`,
			`SELECT count(*) FROM person JOIN emp USING (id) JOIN manager USING (id)`,
		},
		"composite": {
			`CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT UNIQUE); CREATE TABLE ord (person INTEGER NOT NULL REFERENCES person (id), no INTEGER NOT NULL, v TEXT, PRIMARY KEY (person, no));
CREATE TABLE line (person INTEGER NOT NULL, ord INTEGER NOT NULL, no INTEGER NOT NULL, v TEXT, PRIMARY KEY (person, ord, no), FOREIGN KEY (person, ord) REFERENCES ord (person, no))`,
			`INSERT INTO person (id, name) VALUES (1, 'kim'), (2, 'lee'); INSERT INTO ord (person, no, v) VALUES (1, 1, 'k'), (2, 1, 'l'); INSERT INTO line (person, ord, no, v) VALUES (1, 1, 1, 'k'), (2, 1, 1, 'l');`,
			`SELECT count(*) FROM person JOIN ord ON ord.person = person.id JOIN line ON line.person = person.id`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 3 { // ids are random
				f := newFleet(t, schema[0])
				a, b := f.device("a"), f.device("b")
				a.exec(schema[1])
				rounds(2, a, b)
				a.exec(`UPDATE person SET name = 'max' WHERE id = 1`)
				b.exec(`UPDATE person SET name = 'max' WHERE id = 2`)
				rounds(4, a, b)
				same(t, a, b)
				for _, d := range []*device{a, b} {
					if got := d.value(schema[2]); got != "1" {
						t.Errorf("%s managers", got)
					}
					for _, l := range strings1(t.Context(), t, d.db.DB, `SELECT handler || ' ' || tableName || ' ' || documentId || ': ' || reason FROM tidemark_dead_letters UNION ALL SELECT tableName || kind || reason FROM tidemark_inbox`) {
						t.Error(l)
					}
					if r := d.sync(); r.Billed.Writes != 0 {
						t.Errorf("still moves: %+v", r.Tables)
					}
				}
				if t.Failed() {
					break
				}
			}
		})
	}
}

// the same download another tag meets a unique key.
func TestAnIgnoredInsertDuringADownload(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE)`)
	b := f.device("b")
	b.exec(`INSERT INTO tag (name) VALUES ('work')`)
	b.sync()
	server := f.server
	var a *device
	done := false
	f.remote = func() tidemark.Remote {
		r := server.Remote()
		r.Fault = func(c memory.Call) memory.Fault {
			if c.Op != memory.OpRead || done {
				return memory.Fault{}
			}
			done = true
			return memory.Fault{Then: func() { a.exec(`INSERT OR IGNORE INTO tag (name) VALUES ('home')`) }}
		}
		return r
	}
	a = f.device("a")
	a.exec(`INSERT INTO tag (name) VALUES ('home'), ('work')`)
	rounds(3, a, b)
	same(t, a, b)
	if got := a.value(`SELECT group_concat(name) FROM (SELECT name FROM tag ORDER BY name)`); got != `"home,work"` {
		t.Errorf("there is %s: %v", got, strings1(t.Context(), t, a.db.DB, `SELECT documentId || ' ' || reason FROM tidemark_conflicts`))
	}
}

// A child spells its parent's key with other letters, which the parent's collation takes for the same.
func TestAChildThatSpellsTheKeyOtherwise(t *testing.T) {
	t.Parallel()
	for _, do := range []string{`DELETE FROM country`, `UPDATE country SET code = 'GER'`} {
		t.Run(do, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE country (code TEXT PRIMARY KEY COLLATE NOCASE); CREATE TABLE city (id INTEGER PRIMARY KEY, country TEXT REFERENCES country (code) ON UPDATE CASCADE ON DELETE CASCADE)`)
			a, b := f.device("a"), f.device("b")
			a.exec(`INSERT INTO country (code) VALUES ('DE')`)
			rounds(1, a, b)
			b.exec(`INSERT INTO city (country) VALUES ('de')`)
			a.exec(do)
			a.sync()
			rounds(3, b, a)
			same(t, a, b)
			quiet(t, a, b)
			if got := a.value(`SELECT count(*) FROM city JOIN country ON country.code = city.country`); got != "1" {
				t.Errorf("%s cities", got)
			}
		})
	}
}
