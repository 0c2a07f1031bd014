package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

// A document that does not fit, and takes a row's unique key, is set aside. That row's own
// newer version, which meets the unique key of a third row, is decided as if the first
// document had never come.
func TestARowThatAFailedMergeHadBroughtDown(t *testing.T) {
	t.Parallel()
	for _, third := range []string{"a0", "c3"} {
		t.Run(third, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE, bad INTEGER);
CREATE TRIGGER no AFTER INSERT ON t WHEN NEW.bad = 1 BEGIN SELECT RAISE(ABORT, 'no'); END;`)
			put := func(id, name string, bad int64) {
				f.server.Put(messages.Document{Table: "t", ID: id, CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"name": name, "bad": bad}})
			}
			put("b2", "x", 0)
			put(third, "y", 0)
			a := f.device("a")
			full := func() {
				if _, err := a.p.SyncFull(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			full()
			put("a1", "x", 1)
			f.server.Edit("t", "b2", map[string]any{"name": "y"})
			for range 3 {
				full()
			}
			winner := min(third, "b2")
			rows := strings.Join(strings1(t.Context(), t, a.db.DB, `SELECT clientId || ' ' || name FROM t ORDER BY 1`), ", ")
			if want := winner + " y"; rows != want {
				t.Errorf("the rows are %s, want %s", rows, want)
			}
			dead := strings.Join(strings1(t.Context(), t, a.db.DB, `SELECT documentId FROM tidemark_dead_letters`), ", ")
			if dead != "a1" {
				t.Errorf("dead letters are %q, want a1", dead)
			}
			for _, d := range f.server.Dump() {
				if d.ID != "a1" && d.Deleted != (d.ID != winner) {
					t.Errorf("on the server: %s deleted %v, survivor %s", d.ID, d.Deleted, d.Survivor)
				}
			}
		})
	}
}

// Who refers to a document that was merged away refers to the survivor on the server too,
// though the device that wrote it is gone.
func TestACircleWithKeysThatAreDataRefersToTheSurvivorOnTheServer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]circleCase{
		"dept first": {
			`CREATE TABLE dept (name TEXT PRIMARY KEY, head INTEGER REFERENCES emp(id)` + deferred + `);
CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT, dept TEXT REFERENCES dept(name)` + deferred + `);`,
			`INSERT INTO dept (name, head) VALUES ('d%[1]d', %[1]d); INSERT INTO emp (id, name, dept) VALUES (%[1]d, 'e%[1]d', 'd%[1]d');`,
			[]string{"dept"},
			nil,
		},
		"emp first": {
			`CREATE TABLE aemp (id INTEGER PRIMARY KEY, name TEXT, dept TEXT REFERENCES dept(name)` + deferred + `);
CREATE TABLE dept (name TEXT PRIMARY KEY, head INTEGER REFERENCES aemp(id)` + deferred + `);`,
			`INSERT INTO dept (name, head) VALUES ('d%[1]d', %[1]d); INSERT INTO aemp (id, name, dept) VALUES (%[1]d, 'e%[1]d', 'd%[1]d');`,
			[]string{"dept"},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, c.schema)
			a, b := c.device(f, "a"), c.device(f, "b")
			c.sync(a) // and is never seen again
			for range 3 {
				c.sync(b)
			}
			deleted := map[string]bool{}
			for _, d := range f.server.Dump() {
				deleted[d.ID] = d.Deleted
			}
			for _, d := range f.server.Dump() {
				for field, v := range d.Fields {
					if id, ok := v.(string); ok && deleted[id] && !d.Deleted {
						t.Errorf("%s %s: %s refers to %s, which is deleted", d.Table, d.ID, field, id)
					}
				}
			}
		})
	}
}

// A row that takes a unique key gets another local number, because its own is taken. A
// document that has that number does not meet that row because of it.
func TestALocalNumberThatAMergedRowWasGiven(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE);`)
	a := f.device("a")
	for i, docs := range [][]messages.Document{
		{{ID: "b1", Fields: map[string]any{"name": "x", "id": int64(5)}}, {ID: "b2", Fields: map[string]any{"name": "y", "id": int64(6)}}},
		{{ID: "a1", Fields: map[string]any{"name": "x", "id": int64(5)}}, {ID: "a2", Fields: map[string]any{"name": "y", "id": int64(7)}}},
	} {
		for _, d := range docs {
			d.Table, d.CreatedOn, d.UpdatedOn, d.UpdatedBy = "t", 1, 1, "x"
			f.server.Put(d)
		}
		if _, err := a.p.SyncFull(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%[1]s1 x, %[1]s2 y", []string{"b", "a"}[i])
		if rows := strings.Join(strings1(t.Context(), t, a.db.DB, `SELECT clientId || ' ' || name FROM t ORDER BY 1`), ", "); rows != want {
			t.Errorf("the rows are %s, want %s", rows, want)
		}
	}
}
