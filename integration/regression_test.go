package integration

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// Each of these was a bug once; reviewers found them by trying to break things.

func rounds(n int, ds ...*device) {
	for range n {
		for _, d := range ds {
			d.sync()
		}
	}
}

const places = `CREATE TABLE country (code TEXT PRIMARY KEY, v TEXT);
CREATE TABLE city (country TEXT REFERENCES country(code) ON UPDATE CASCADE, name TEXT, v TEXT, PRIMARY KEY (country, name));
CREATE TABLE street (id INTEGER PRIMARY KEY, country TEXT, city TEXT, v TEXT, FOREIGN KEY (country, city) REFERENCES city(country, name) ON UPDATE CASCADE)`

func TestAKeyDeletedAndInsertedAgain(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (name TEXT PRIMARY KEY, colour TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO tag (name, colour) VALUES ('red', '1')`)
	rounds(2, a, b)
	a.exec(`DELETE FROM tag WHERE name = 'red'`)
	a.exec(`INSERT INTO tag (name, colour) VALUES ('red', '2')`)
	rounds(3, a, b)
	same(t, a, b)
	for _, d := range []*device{a, b} {
		if got := strings1(t.Context(), t, d.db.DB, `SELECT name||colour FROM tag`); len(got) != 1 || got[0] != "red2" {
			t.Errorf("%s has %v, want [red2]", filepath.Base(d.path), got)
		}
	}
}

func TestAKeyTakenOverFromADeletedRow(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, colour TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO tag (name, colour) VALUES ('red', '1'), ('blue', '2')`)
	rounds(2, a, b)
	a.exec(`DELETE FROM tag WHERE name = 'red'`)
	a.exec(`UPDATE tag SET name = 'red' WHERE name = 'blue'`)
	rounds(3, a, b)
	same(t, a, b)
	for _, d := range []*device{a, b} {
		if got := strings1(t.Context(), t, d.db.DB, `SELECT name||colour FROM tag`); len(got) != 1 || got[0] != "red2" {
			t.Errorf("%s has %v, want [red2]", filepath.Base(d.path), got)
		}
	}
}

func TestSwappedKeysTakeTheirChildrenAlong(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (name TEXT PRIMARY KEY, colour TEXT);
CREATE TABLE item (id INTEGER PRIMARY KEY, tag TEXT REFERENCES tag(name) ON UPDATE CASCADE, v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO tag (name, colour) VALUES ('x', 'was x'), ('y', 'was y')`)
	a.exec(`INSERT INTO item (tag, v) VALUES ('x', 'child of was x'), ('y', 'child of was y')`)
	rounds(2, a, b)
	same(t, a, b)
	a.exec(`UPDATE tag SET name = 'tmp' WHERE name = 'x'`)
	a.exec(`UPDATE tag SET name = 'x' WHERE name = 'y'`)
	a.exec(`UPDATE tag SET name = 'y' WHERE name = 'tmp'`)
	rounds(3, a, b)
	same(t, a, b)
}

func TestAKeyCascadesThroughTwoLevels(t *testing.T) {
	t.Parallel()
	f := newFleet(t, places)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO country (code) VALUES ('D')`)
	a.exec(`INSERT INTO city (country, name) VALUES ('D', 'Bonn')`)
	a.exec(`INSERT INTO street (country, city, v) VALUES ('D', 'Bonn', 'a street')`)
	rounds(2, a, b)
	same(t, a, b)
	a.exec(`UPDATE country SET code = 'DE'`)
	b.exec(`INSERT INTO street (country, city, v) VALUES ('D', 'Bonn', 'b street')`)
	rounds(1, a)
	rounds(3, b, a)
	same(t, a, b)
}

func TestATreeDeletedInSeveralCommits(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE node (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES node(id) ON DELETE CASCADE, v TEXT)`)
	server := f.server
	r := server.Remote()
	f.remote = func() tidemark.Remote { return r }
	a := f.device("a")
	f.remote = func() tidemark.Remote { return server.Remote() }
	b := f.device("b", tidemark.WithDeleteGuard(1, 0))
	a.exec(`INSERT INTO node (id, parent) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1200) SELECT i, CASE WHEN i > 1 THEN i/2 END FROM n`)
	a.exec(`UPDATE node SET parent = NULL WHERE parent = 0`)
	rounds(2, a, b)
	same(t, a, b)
	a.exec(`DELETE FROM node WHERE id = 1`)
	commits := 0
	r.Fault = func(c memory.Call) memory.Fault {
		if c.Op == memory.OpCommit && len(c.Commit.Writes) > 0 {
			commits++
			if commits == 1 {
				return memory.Fault{Then: func() { b.sync() }}
			}
		}
		return memory.Fault{}
	}
	a.sync()
	r.Fault = nil
	rounds(4, a, b)
	same(t, a, b)
	if got := a.value(`SELECT count(*) FROM node`); got != "0" {
		t.Errorf("commits %d: of a deleted tree %s nodes came back", commits, got)
	}
}

func TestAnEditAgainstADocumentThatDoesNotFit(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT, n INTEGER)`)
	a := f.device("a")
	fb := *f
	fb.schema = `CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT, n INTEGER CHECK (n < 100))`
	b := fb.device("b")
	a.exec(`INSERT INTO note (v, n) VALUES ('x', 1)`)
	rounds(2, a, b)
	b.exec(`UPDATE note SET v = 'edit of b'`)
	a.exec(`UPDATE note SET n = 1000`) // later, does not fit on b
	a.sync()
	for i := range 4 {
		rep := b.sync()
		if i == 3 && (!rep.InStep || rep.Billed.Reads > 2) {
			t.Errorf("never in step: %+v", rep.Billed)
		}
	}
}

func TestDeletesOfADroppedTable(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"drop", "exclude"} {
		t.Run(how, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE gone (id INTEGER PRIMARY KEY, v TEXT)`)
			a := f.device("a", tidemark.WithBackup(1, time.Hour, 3))
			a.exec(`INSERT INTO note (v) VALUES ('x')`)
			a.exec(`INSERT INTO gone (v) VALUES ('x')`)
			a.sync()
			a.exec(`DELETE FROM gone`)
			if how == "drop" {
				a.exec(`DROP TABLE gone`)
			} else if _, err := tidemark.Attach(t.Context(), a.db, tidemark.Table{Name: "gone", Exclude: true}); err != nil {
				t.Fatal(err)
			}
			a.exec(`INSERT INTO note (v) VALUES ('y')`)
			rounds(2, a)
			a.exec(`INSERT INTO note (v) VALUES ('z')`)
			r := a.sync()
			st, _ := a.p.Status(t.Context())
			if st.Dirty > 0 || !st.InStep {
				t.Errorf("never in step: %+v", st)
			}
			if r.Snapshot == nil {
				t.Errorf("no snapshot any more")
			}
		})
	}
}

func TestABadRowWithAChildDoesNotEndBackups(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a", tidemark.WithBackup(1, time.Hour, 3))
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, ?)`, strings.Repeat("x", 1200000))
	a.exec(`INSERT INTO note (notebook, title) VALUES (1, 'child')`)
	a.exec(`INSERT INTO tag (name) VALUES ('ok')`)
	r := a.sync()
	if r.Snapshot == nil {
		t.Errorf("no snapshot because of the child of a bad row")
	}
}

func TestRefusedDeletesAreSentOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	r := f.server.Remote()
	f.remote = func() tidemark.Remote { return r }
	a := f.device("a", tidemark.WithBackup(1, time.Hour, 3))
	a.exec(`INSERT INTO tag (name) VALUES ('1'), ('2'), ('3'), ('4')`)
	a.sync()
	r.Fault = func(c memory.Call) memory.Fault {
		if c.Commit != nil {
			for _, w := range c.Commit.Writes {
				if w.Document.Deleted {
					return memory.Fault{Before: fmt.Errorf("rules: %w", messages.ErrUnauthorized)}
				}
			}
		}
		return memory.Fault{}
	}
	a.exec(`DELETE FROM tag WHERE name <> '4'`)
	a.exec(`INSERT INTO tag (name) VALUES ('5')`)
	a.sync()
	rep := a.sync()
	st, _ := a.p.Status(t.Context())
	if rep.Billed.Writes > 0 {
		t.Errorf("an idle cycle with refused tombstones writes %d", rep.Billed.Writes)
	}
	if bs := st.Snapshot; bs == nil {
		t.Error("no snapshot")
	}
}

func TestARowWrittenWhileARestoreDownloads(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO tag (name) VALUES ('1')`)
	a.sync()
	b := f.device("b")
	b.sync()
	b.db.Close()
	var once sync.Once
	_, err := tidemark.Restore(t.Context(), b.path, f.store(), tidemark.RestoreProgress(func(tidemark.Phase, int64, int64) {
		once.Do(func() {
			db := openDB(t, b.path)
			if _, err := db.DB.Exec(`INSERT INTO tag (name) VALUES ('precious')`); err != nil {
				t.Fatal(err)
			}
			db.Close()
		})
	}))
	if !errors.Is(err, tidemark.ErrUnsynced) {
		t.Errorf("restore: %v", err)
	}
	db := openDB(t, b.path)
	if got := strings1(t.Context(), t, db.DB, `SELECT name FROM tag ORDER BY 1`); len(got) != 2 {
		t.Errorf("an unsynced row is lost: %v", got)
	}
}

func TestALongRing(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE n (id INTEGER PRIMARY KEY, next INTEGER NOT NULL REFERENCES n(id) DEFERRABLE INITIALLY DEFERRED, v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO n (id, next) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1500) SELECT i, i % 1500 + 1 FROM n`)
	rounds(2, a, b)
	same(t, a, b)
}

func TestRestoreSparesExcludedTables(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema+`CREATE TABLE private (v TEXT);`)
	a := f.device("a")
	a.exec(`INSERT INTO tag (name) VALUES ('1')`)
	a.sync()
	path := filepath.Join(f.dir, "b.db")
	db := openDB(t, path)
	if _, err := db.DB.Exec(f.schema); err != nil {
		t.Fatal(err)
	}
	if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "private", Exclude: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.DB.Exec(`INSERT INTO private (v) VALUES ('nowhere else')`); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := tidemark.Restore(t.Context(), path, f.store()); err == nil {
		got := strings1(t.Context(), t, openDB(t, path).DB, `SELECT v FROM private`)
		t.Errorf("restore replaced a file whose table outside of sync had rows: now %v", got)
	}
}

// A rebuilt table has lost our triggers: nobody knows what was changed in it since.
func TestARestoreSparesRebuiltTables(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]string{"edited": `UPDATE note SET title = 'edited'`, "deleted": `DELETE FROM note WHERE id = 2`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, oneTable)
			a := f.device("a")
			a.notes(2)
			a.sync()
			schema := strings1(t.Context(), t, a.db.DB, `SELECT sql FROM sqlite_master WHERE name = 'note'`)[0]
			a.exec(`CREATE TEMP TABLE c AS SELECT * FROM note; DROP TABLE note; ` + schema + `; INSERT INTO note SELECT * FROM c; DROP TABLE c; ` + edit)
			before := contentsOfColumns(t, a.db.DB)
			_ = a.db.Close()
			if _, err := tidemark.Restore(t.Context(), a.path, f.store()); !errors.Is(err, tidemark.ErrUnsynced) {
				t.Errorf("restored over it: %v", err)
			}
			if err := tidemark.Wipe(t.Context(), a.path); !errors.Is(err, tidemark.ErrUnsynced) {
				t.Errorf("wiped: %v", err)
			}
			if after := contentsOfColumns(t, openDB(t, a.path).DB); !reflect.DeepEqual(before, after) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
}

func TestATimeThatIsNone(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO tag (name) VALUES ('1')`)
	a.sync()
	f.server.Put(messages.Document{Table: "tag", ID: "console", CreatedOn: 1, UpdatedOn: math.MaxInt64, UpdatedBy: "console", Fields: map[string]any{"name": "console"}})
	if _, err := a.p.SyncFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.exec(`UPDATE tag SET colour = 'mine' WHERE name = 'console'`)
	a.exec(`INSERT INTO tag (name) VALUES ('2')`)
	for range 2 {
		if _, err := a.p.Sync(t.Context()); err != nil {
			t.Errorf("one bad time stops the upload: %v", err)
		}
	}
}

func TestAnEditAgainstADocumentThatWaits(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE p (id INTEGER PRIMARY KEY, n INTEGER); CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p(id), v TEXT)`)
	a := f.device("a")
	fb := *f
	fb.schema = `CREATE TABLE p (id INTEGER PRIMARY KEY, n INTEGER CHECK (n < 100)); CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p(id), v TEXT)`
	b := fb.device("b")
	a.exec(`INSERT INTO p (id, n) VALUES (1, 1)`)
	a.exec(`INSERT INTO c (p, v) VALUES (1, 'x')`)
	rounds(2, a, b)
	b.exec(`UPDATE c SET v = 'edit of b'`)
	a.exec(`INSERT INTO p (id, n) VALUES (2, 1000)`)
	a.exec(`UPDATE c SET p = 2`)
	a.sync()
	for range 3 {
		r := b.sync()
		if !r.InStep {
			t.Error("never in step")
		}
	}
}

func TestAttachBeforeThereIsATable(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `SELECT 1`)
	a := f.device("a")
	a.exec(`CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT)`)
	if _, err := a.p.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

// A chain arrives in the order of random ids, and goes in all the same.
func TestALongChain(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE node (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES node(id), v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO node (id, parent) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 5000) SELECT i, CASE WHEN i > 1 THEN i-1 END FROM n`)
	rounds(1, a, b)
	same(t, a, b)
}

// A document from the end of time is edited here.
func TestAnEditAtTheEndOfTime(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT);`)
	a, b := f.device("a"), f.device("b")
	f.server.Put(messages.Document{Table: "item", ID: "x", CreatedOn: 1, UpdatedOn: 1 << 53, UpdatedBy: "x", Fields: map[string]any{"v": "m"}})
	for _, d := range []*device{a, b} {
		if _, err := d.p.SyncFull(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.exec(`UPDATE item SET v = 'edited'`)
	rounds(2, a, b)
	same(t, a, b)
}

// A delete and an edit of a row that a clock ahead has stamped: the later one wins.
func TestADeleteAndALaterEditOfARowFromTheFuture(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT);`)
	a, b := f.device("a"), f.device("b")
	f.server.Put(messages.Document{Table: "item", ID: "x", CreatedOn: 1, UpdatedOn: time.Now().AddDate(1, 0, 0).UnixMilli(), UpdatedBy: "x", Fields: map[string]any{"v": "m"}})
	for _, d := range []*device{a, b} {
		if _, err := d.p.SyncFull(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.exec(`DELETE FROM item`)
	a.sync()
	for i := range 3 {
		b.exec(`UPDATE item SET v = ?`, fmt.Sprint("edited ", i))
	}
	rounds(2, b, a)
	same(t, a, b)
	if n := a.value(`SELECT count(*) FROM item`); n != "1" {
		t.Errorf("the later edit is gone, conflicts %s", b.value(`SELECT count(*) FROM tidemark_conflicts`))
	}
}

// A parent from the future is deleted, and another device has a child of it; its first
// upload is cut off.
func TestARevivalOfAParentFromTheFuture(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a, b := f.device("a"), f.device("b")
	f.server.Put(messages.Document{Table: "notebook", ID: "x", CreatedOn: 1, UpdatedOn: time.Now().AddDate(1, 0, 0).UnixMilli(), UpdatedBy: "x", Fields: map[string]any{"id": int64(1), "name": "home"}})
	for _, d := range []*device{a, b} {
		if _, err := d.p.SyncFull(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.exec(`DELETE FROM notebook`)
	a.sync()
	b.exec(`INSERT INTO note (notebook, title) VALUES (1, 'shopping')`)
	remote := f.server.Remote()
	cut := true
	remote.Fault = func(c memory.Call) memory.Fault {
		if cut && c.Op == memory.OpCommit {
			return memory.Fault{Before: errors.New("the line is cut")}
		}
		return memory.Fault{}
	}
	b = f.with(remote).on(b.path, b.db)
	if _, err := b.p.Sync(t.Context()); err == nil {
		t.Fatal("the sync was not cut off")
	}
	cut = false
	rounds(1, b, a)
	if n := a.value(`SELECT count(*) FROM note`); n != "1" {
		t.Errorf("%s notes are there, conflicts %s", n, a.value(`SELECT count(*) FROM tidemark_conflicts`))
	}
	rounds(2, b, a)
	same(t, a, b)
}
