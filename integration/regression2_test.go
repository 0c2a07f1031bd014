package integration

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
)

// Each of these was a bug once; the simulation found them.

// A deletes a tag and makes another of the same name, B gives the deleted one a
// child: the two are merged, whichever lives on.
func TestADeletedRowComesBackWhereItsKeyIsTaken(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (name TEXT PRIMARY KEY, v TEXT);
CREATE TABLE item (id INTEGER PRIMARY KEY, tag TEXT REFERENCES tag(name), v TEXT)`)
	a, b := f.device("a"), f.device("b")
	for i, order := range [][]*device{{a, b}, {b, a}} { // whoever is first: the delete, or the child
		a.exec(`DELETE FROM item`)
		a.exec(`DELETE FROM tag`)
		rounds(2, a, b)
		a.exec(`INSERT INTO tag (name) VALUES ('1'), ('2'), ('3'), ('4'), ('5'), ('6'), ('7'), ('8')`) // ids are random: some live on, some do not
		rounds(1, a, b)
		a.exec(`DELETE FROM tag`)
		a.exec(`INSERT INTO tag (name, v) VALUES ('1', 'new'), ('2', 'new'), ('3', 'new'), ('4', 'new'), ('5', 'new'), ('6', 'new'), ('7', 'new'), ('8', 'new')`)
		b.exec(`INSERT INTO item (tag) SELECT name FROM tag`)
		for range 3 {
			for _, d := range order {
				if r := d.sync(); r.Total().Dead > 0 {
					t.Errorf("order %d: %d rows were set aside: %v", i, r.Total().Dead, r.Tables)
				}
			}
		}
		same(t, a, b)
		if got := a.value(`SELECT count(*) FROM item JOIN tag ON tag.name = item.tag`); got != "8" {
			t.Errorf("order %d: %s items have their tag", i, got)
		}
	}
}

// A country takes the code of one that is deleted in the same download; a city of it
// meets one that was made here, in a table that has looked the country up before.
func TestACityFollowsACountryThatWaitedForItsCode(t *testing.T) {
	t.Parallel()
	f := newFleet(t, places)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO country (code) VALUES ('X'), ('Y')`)
	rounds(1, a, b)
	b.exec(`INSERT INTO city (country, name) VALUES ('X', 'Bonn')`)
	a.exec(`INSERT INTO city (country, name) VALUES ('X', 'Bonn'), ('X', 'Köln')`)
	a.exec(`DELETE FROM country WHERE code = 'Y'`)
	a.exec(`UPDATE country SET code = 'Y'`)
	a.sync()
	b.sync()
	if got := b.value(`SELECT count(*) FROM pragma_foreign_key_check`); got != "0" {
		t.Errorf("%s rows refer to nothing", got)
	}
	rounds(2, a, b)
	same(t, a, b)
}

// A clone has a row that its original has not uploaded yet, and the original writes
// others in the same millisecond: the row is known by its own document.
func TestRowsOfOneMillisecondAreNotTakenForEachOther(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT)`)
	a := f.device("a")
	stamp := func() {
		a.exec(`UPDATE tidemark_state SET applying = 1; UPDATE note SET createdOn = 1000, updatedOn = 1000; UPDATE tidemark_state SET applying = 0`)
	}
	a.exec(`INSERT INTO note (v) VALUES ('first')`)
	stamp()
	path := f.dir + "/clone.db"
	a.exec(`VACUUM INTO ?`, path)
	for range 30 { // ids are random: some come before the first one's
		a.exec(`INSERT INTO note (v) VALUES ('another')`)
	}
	stamp()
	a.sync()
	b := f.on(path, openDB(t, path))
	rounds(2, b, a)
	same(t, a, b)
	if got := b.value(`SELECT count(*) FROM tidemark_conflicts`); got != "0" {
		t.Errorf("%s rows were taken for another one", got)
	}
}

// B's country was merged into A's, which then got another code: the cities that move
// to it have a new key, and their streets follow.
func TestAMergedParentTakesTwoLevelsAlong(t *testing.T) {
	t.Parallel()
	f := newFleet(t, places)
	a, b := f.device("a"), f.device("b")
	const codes = `('1'), ('2'), ('3'), ('4'), ('5'), ('6'), ('7'), ('8')` // ids are random: some live on, some do not
	b.exec(`INSERT INTO country (code) VALUES ` + codes)
	b.sync()
	a.exec(`INSERT INTO country (code) VALUES ` + codes)
	a.sync()
	a.exec(`UPDATE country SET code = code || 'x'`)
	a.sync()
	b.exec(`INSERT INTO city (country, name) SELECT code, 'Bonn' FROM country`)
	b.exec(`INSERT INTO street (country, city) SELECT country, name FROM city`)
	rounds(3, b, a)
	same(t, a, b)
	if got := a.value(`SELECT count(*) FROM street JOIN city ON city.country = street.country AND city.name = street.city`); got != "8" {
		t.Errorf("%s streets have their city", got)
	}
}

// Of two deletes the later one counts against an edit made in between.
func TestTheLaterOfTwoDeletesWins(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, notesSchema)
		a, b, c := f.device("a"), f.device("b"), f.device("c")
		defer func() {
			for _, d := range []*device{a, b, c} {
				_ = d.db.Close()
			}
		}()
		a.exec(`INSERT INTO tag (name) VALUES ('x')`)
		rounds(1, a, b, c)
		for _, step := range []func(){
			func() { a.exec(`DELETE FROM tag`) },
			func() { c.exec(`UPDATE tag SET name = 'edited'`) },
			func() { b.exec(`DELETE FROM tag`) },
		} {
			<-time.After(time.Second)
			step()
		}
		rounds(3, a, b, c)
		same(t, a, b, c)
		if got := c.value(`SELECT count(*) FROM tag`); got != "0" {
			t.Errorf("a row that was deleted last is there")
		}
	})
}

// The bus delivers everything twice, and between the two requests for a sync another
// device uploads.
func TestARepeatedRequestChecksOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		a := f.device("a")
		remote := f.server.Remote()
		remote.Fault = func(c memory.Call) memory.Fault {
			if c.N > 1 {
				return memory.Fault{}
			}
			return memory.Fault{Then: func() { a.notes(1); a.sync() }}
		}
		b := f.with(remote).device("b", tidemark.WithBus(func() tidemark.Bus { return newSimBus(rand.New(rand.NewPCG(1, 1)), 1, false) }))
		defer func() {
			_ = a.db.Close()
			_ = b.db.Close()
		}()
		for range 2 {
			b.sync()
			<-time.After(time.Second)
		}
		same(t, a, b)
	})
}
