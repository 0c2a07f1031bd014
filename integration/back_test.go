package integration

import (
	"strings"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// quiet fails when a device still moves, or has anything set aside.
func quiet(t *testing.T, ds ...*device) {
	t.Helper()
	for _, d := range ds {
		for _, s := range strings1(t.Context(), t, d.db.DB, `SELECT 'waits: ' || tableName || ' ' || kind || ' ' || documentId || ': ' || reason FROM tidemark_inbox UNION ALL SELECT 'dead: ' || handler || ' ' || tableName || ' ' || documentId || ': ' || reason FROM tidemark_dead_letters
			UNION ALL SELECT 'conflict: ' || tableName || ' ' || documentId || ' ' || winner || ': ' || reason FROM tidemark_conflicts`) {
			t.Errorf("%s: %s", d.path[strings.LastIndexByte(d.path, '/')+1:], s)
		}
		if r := d.sync(); r.Billed.Writes != 0 || r.Billed.Reads > 3 {
			t.Errorf("%s still moves: %+v %v", d.path, r.Billed, r.Tables)
		}
	}
}

// full syncs by a full check each.
func full(t *testing.T, ds ...*device) {
	t.Helper()
	for _, d := range ds {
		if _, err := d.p.SyncFull(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// One row that cannot come back does not hold another one that can.
func TestOneRowThatCannotComeBackHoldsNoOther(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT, boss INTEGER REFERENCES emp (id)); CREATE TABLE task (id INTEGER PRIMARY KEY, emp INTEGER REFERENCES emp (id))`)
	a := f.device("a")
	for _, id := range []string{"kim", "lee"} {
		f.server.Put(messages.Document{Table: "emp", ID: id, CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"name": id, "boss": id}})
	}
	full(t, a)
	a.exec(`DELETE FROM emp; CREATE TRIGGER banned BEFORE INSERT ON emp WHEN NEW.name = 'lee' BEGIN SELECT RAISE(ABORT, 'banned'); END`)
	full(t, a)
	for _, id := range []string{"kim", "lee"} {
		f.server.Put(messages.Document{Table: "task", ID: "t" + id, CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"emp": id}})
	}
	full(t, a)
	rounds(2, a)
	if got := a.value(`SELECT count(*) FROM emp JOIN task ON task.emp = emp.id WHERE name = 'kim'`); got != "1" {
		t.Errorf("kim is not back for its task: %v, letters %v", strings1(t.Context(), t, a.db.DB, `SELECT tableName || ' ' || documentId || ' ' || reason FROM tidemark_inbox`), strings1(t.Context(), t, a.db.DB, `SELECT documentId FROM tidemark_dead_letters`))
	}
}

// A row comes back for its child, and its own parent with it, though that was merged since.
func TestAMergedParentOfARowThatComesBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE folder (id INTEGER PRIMARY KEY, name TEXT UNIQUE); CREATE TABLE note (id INTEGER PRIMARY KEY, folder INTEGER REFERENCES folder (id), v TEXT);
CREATE TABLE comment (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note (id), v TEXT)`)
	a := f.device("a")
	f.server.Put(messages.Document{Table: "folder", ID: "zz", CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"name": "home"}})
	f.server.Put(messages.Document{Table: "note", ID: "n1", CreatedOn: 1, UpdatedOn: 2, UpdatedBy: "x", Deleted: true, Fields: map[string]any{"folder": "zz", "v": "hello"}})
	a.exec(`INSERT INTO folder (name) VALUES ('home')`)
	full(t, a)
	a.exec(`DELETE FROM folder`)
	full(t, a)
	f.server.Put(messages.Document{Table: "comment", ID: "c1", CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"note": "n1", "v": "late"}})
	full(t, a)
	rounds(2, a)
	if got := a.value(`SELECT count(*) FROM comment c JOIN note n ON n.id = c.note JOIN folder f ON f.id = n.folder`); got != "1" {
		t.Errorf("the comment is not there: %v", strings1(t.Context(), t, a.db.DB, `SELECT tableName || documentId || reason FROM tidemark_inbox`))
	}
}

// again with the child: what it took in was nobody's to delete.
func TestARevivedRowThatTookInAnother(t *testing.T) {
	t.Parallel()
	for name, boss := range map[string]any{"refers to itself": "aa", "refers to nobody": nil} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE, boss INTEGER REFERENCES emp (id)); CREATE TABLE task (id INTEGER PRIMARY KEY, emp INTEGER REFERENCES emp (id))`)
			put := func(table, id string, on int64, deleted bool, fields map[string]any) {
				f.server.Put(messages.Document{Table: table, ID: id, CreatedOn: 1, UpdatedOn: on, UpdatedBy: "x", Deleted: deleted, Fields: fields})
			}
			server, down := f.server, false
			f.remote = func() tidemark.Remote {
				r := server.Remote()
				r.Fault = func(c memory.Call) memory.Fault {
					if c.Op == memory.OpCommit && down {
						return memory.Fault{Before: messages.ErrUnavailable}
					}
					return memory.Fault{}
				}
				return r
			}
			a := f.device("a", tidemark.WithRetries(0, time.Second))
			put("emp", "aa", 2, true, map[string]any{"name": "kim", "boss": boss})
			full(t, a)
			put("emp", "bb", 3, false, map[string]any{"name": "kim", "boss": nil})
			full(t, a)
			put("task", "t1", 4, false, map[string]any{"emp": "aa"})
			down = true
			if _, err := a.p.SyncFull(t.Context()); err == nil {
				t.Fatal("the commit did not fail")
			}
			t.Log(strings1(t.Context(), t, a.db.DB, `SELECT clientId || ' ' || name || ' ' || updatedOn || ' dirty ' || isDirty FROM emp`))
			put("task", "t1", 5, true, map[string]any{"emp": "aa"})
			down = false
			full(t, a)
			rounds(2, a)
			if got := a.value(`SELECT count(*) FROM emp WHERE name = 'kim'`); got != "1" {
				t.Errorf("%s kims", got)
			}
			live := 0
			for _, d := range f.server.Dump() {
				if d.Table == "emp" && !d.Deleted {
					live++
				}
			}
			if live != 1 {
				t.Errorf("%d kims on the server", live)
			}
		})
	}
}
