package integration

import (
	"fmt"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// What the server does not take – a row that left its parent, or a tombstone – still
// refers to its parent there. So the parent's tombstone waits, the one above it too, and no
// device revives what was deleted.
func TestATombstoneWaitsForWhatWasRefused(t *testing.T) {
	t.Parallel()
	const (
		tables = `CREATE TABLE a (id INTEGER PRIMARY KEY, title TEXT); CREATE TABLE b (id INTEGER PRIMARY KEY, a INTEGER REFERENCES a (id), title TEXT);
			CREATE TABLE c (id INTEGER PRIMARY KEY, b INTEGER REFERENCES b (id), title TEXT);`
		first = `INSERT INTO a (id, title) VALUES (1, 'one'), (2, 'two'); INSERT INTO b (id, a, title) VALUES (1, 1, 'x'), (2, 2, 'y');
			INSERT INTO c (id, b, title) VALUES (3, 1, 'good'), (4, 2, 'good')`
		count   = `SELECT (SELECT count(*) FROM a) || (SELECT count(*) FROM b) || (SELECT count(*) FROM c)`
		revived = `SELECT count(*) FROM (SELECT isDirty, createdOn, updatedOn FROM a UNION ALL SELECT isDirty, createdOn, updatedOn FROM b) WHERE isDirty OR updatedOn > createdOn`
	)
	bad := func(d messages.Document) bool { return d.Fields["title"] == "bad" }
	deleted := func(d messages.Document) bool { return d.Table == "c" && d.Deleted }
	for name, c := range map[string]struct {
		schema, first, then string
		refuse              func(messages.Document) bool
		revived, count      string
		before, end         string
	}{
		"a row left, in one table": {
			`CREATE TABLE folder (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES folder (id), title TEXT);`,
			`INSERT INTO folder (id, parent, title) VALUES (1, NULL, 'top'), (2, 1, 'middle'), (3, 2, 'good'), (4, NULL, 'other')`,
			`UPDATE folder SET parent = 4, title = 'bad' WHERE id = 3; DELETE FROM folder WHERE id = 2; DELETE FROM folder WHERE id = 1`,
			bad, `SELECT count(*) FROM folder WHERE isDirty OR updatedOn > createdOn`, `SELECT count(*) FROM folder`, "4", "2",
		},
		"a row left":         {tables, first, `UPDATE c SET b = 2, title = 'bad' WHERE id = 3; DELETE FROM b WHERE id = 1; DELETE FROM a WHERE id = 1`, bad, revived, count, `"222"`, `"112"`},
		"a row deleted":      {tables, first, `DELETE FROM c WHERE id = 3; DELETE FROM b WHERE id = 1; DELETE FROM a WHERE id = 1`, deleted, revived, count, `"222"`, `"111"`},
		"left, then deleted": {tables, first, `UPDATE c SET b = 2 WHERE id = 3; DELETE FROM c WHERE id = 3; DELETE FROM b WHERE id = 1; DELETE FROM a WHERE id = 1`, deleted, revived, count, `"222"`, `"111"`},
		"a row left, in two tables": {
			notesSchema, `INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work'); INSERT INTO note (id, notebook, title) VALUES (10, 1, 'good')`,
			`UPDATE note SET notebook = 2, title = 'bad'; DELETE FROM notebook WHERE id = 1`,
			bad, `SELECT count(*) FROM notebook WHERE isDirty OR updatedOn > createdOn`, `SELECT count(*) FROM notebook`, "2", "1",
		},
		"a key in other letters": {
			`CREATE TABLE a (name TEXT COLLATE NOCASE PRIMARY KEY, title TEXT); CREATE TABLE b (id INTEGER PRIMARY KEY, a TEXT REFERENCES a (name), title TEXT);`,
			`INSERT INTO a (name, title) VALUES ('Home', 'one'), ('Work', 'two'); INSERT INTO b (id, a, title) VALUES (1, 'HOME', 'good')`,
			`UPDATE b SET a = 'WORK', title = 'bad'; DELETE FROM a WHERE name = 'home'`, bad, revived, `SELECT count(*) FROM a`, "2", "1",
		},
		"a key of another type": {
			`CREATE TABLE a (id INTEGER PRIMARY KEY, n INTEGER UNIQUE, title TEXT); CREATE TABLE b (id INTEGER PRIMARY KEY, a REAL REFERENCES a (n), title TEXT);`,
			`INSERT INTO a (id, n, title) VALUES (1, 10, 'one'), (2, 20, 'two'); INSERT INTO b (id, a, title) VALUES (1, 10, 'good')`,
			`UPDATE b SET a = 20, title = 'bad'; DELETE FROM a WHERE n = 10`, bad, revived, `SELECT count(*) FROM a`, "2", "1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, c.schema)
			server := f.refusing()
			a, b := f.device("a"), f.device("b")
			a.exec(c.first)
			rounds(2, a, b)
			server.refuse = c.refuse
			a.exec(`BEGIN; ` + c.then + `; COMMIT`)
			for _, d := range []*device{a, b, a} {
				d.sync()
			}
			if n := b.value(c.count); n != c.before {
				t.Errorf("the other device has %s rows, want %s", n, c.before)
			}
			if n := b.value(c.revived); n != "0" {
				t.Errorf("the other device revived %s rows", n)
			}
			server.refuse = func(messages.Document) bool { return false }
			a.replay(tidemark.DeadLetterFilter{}, false)
			rounds(2, a, b)
			same(t, a, b)
			if n := b.value(c.count); n != c.end {
				t.Errorf("%s rows are left, want %s", n, c.end)
			}
		})
	}
}

// Two deleted rows refer to each other, and the server refuses a row that has left one of
// them: there the one that waits refers to the other.
func TestTombstonesInACircleWaitTogether(t *testing.T) {
	t.Parallel()
	for _, left := range []string{"a", "b"} {
		for when, edits := range map[string][]string{
			"in one commit": {`BEGIN; UPDATE person SET peer = 4, name = 'bad' WHERE id = 3; DELETE FROM person WHERE id IN (1, 2); COMMIT`},
			"afterwards":    {`UPDATE person SET peer = 4, name = 'bad' WHERE id = 3`, `DELETE FROM person WHERE id IN (1, 2)`},
		} {
			t.Run(left+" was left, deleted "+when, func(t *testing.T) {
				t.Parallel()
				f := newFleet(t, `CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, peer INTEGER REFERENCES person (id) DEFERRABLE INITIALLY DEFERRED);`)
				server := f.refusing()
				for i, p := range []struct {
					id, name string
					peer     any
				}{{"a", "A", "b"}, {"b", "B", "a"}, {"c", "good", left}, {"d", "D", nil}} {
					f.server.Put(messages.Document{Table: "person", ID: p.id, CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"id": int64(i + 1), "name": p.name, "peer": p.peer}})
				}
				x, y := f.device("x"), f.device("y")
				for _, d := range []*device{x, y} {
					if _, err := d.p.SyncFull(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				server.refuse = func(d messages.Document) bool { return d.Fields["name"] == "bad" }
				for _, q := range edits {
					x.exec(q)
					x.sync()
				}
				for _, d := range []*device{y, x, y} {
					d.sync()
				}
				if n := y.value(`SELECT count(*) FROM person`) + y.value(`SELECT count(*) FROM person WHERE isDirty OR updatedOn > 1`); n != "40" {
					t.Errorf("the other device has %s people and changed ones, want 4 and 0", n)
				}
				server.refuse = func(messages.Document) bool { return false }
				x.replay(tidemark.DeadLetterFilter{}, false)
				rounds(2, x, y)
				same(t, x, y)
				if n := y.value(`SELECT count(*) FROM person`); n != "2" {
					t.Errorf("%s people are left, want 2", n)
				}
			})
		}
	}
}

// A row leaves its parent, which is deleted, while another edit of the row is on its way.
// The acknowledgement of that one does not let the parent's tombstone go.
func TestATombstoneWaitsForAnEditMadeMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work'); INSERT INTO note (id, notebook, title) VALUES (10, 1, 'good')`)
	rounds(2, a, b)
	meanwhile := func() {
		a.exec(`BEGIN; UPDATE note SET notebook = 2, title = 'bad'; DELETE FROM notebook WHERE id = 1; COMMIT`)
	}
	refuse := true
	remote := f.server.Remote()
	remote.Fault = func(c memory.Call) memory.Fault {
		if c.Op != memory.OpCommit || len(c.Commit.Writes) == 0 {
			return memory.Fault{}
		}
		for _, w := range c.Commit.Writes {
			if refuse && w.Document.Fields["title"] == "bad" {
				return memory.Fault{Before: fmt.Errorf("the rules say no: %w", messages.ErrRejected)}
			}
		}
		then := meanwhile
		meanwhile = nil
		return memory.Fault{Then: then}
	}
	a = f.with(remote).on(a.path, a.db)
	a.exec(`UPDATE note SET title = 'better'`)
	for _, d := range []*device{a, b, a, b} {
		d.sync()
	}
	if got := b.value(`SELECT count(*) FROM notebook`) + b.value(`SELECT title || notebook || isDirty FROM note`) + b.value(`SELECT count(*) FROM notebook WHERE isDirty OR updatedOn > createdOn`); got != `2"better10"0` {
		t.Errorf("the other device has %s", got)
	}
	refuse = false
	a.replay(tidemark.DeadLetterFilter{}, false)
	rounds(2, a, b)
	same(t, a, b)
	if n := b.value(`SELECT count(*) FROM notebook`); n != "1" {
		t.Errorf("%s notebooks are left, want 1", n)
	}
}

// A row won a conflict against a version in another notebook, and the server refuses the
// row: there it is in that notebook, whose tombstone has to wait.
func TestATombstoneWaitsForARefusedRowThatTheServerHasThere(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	server := f.refusing()
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work'); INSERT INTO note (id, notebook, title) VALUES (10, 1, 'good')`)
	rounds(2, a, b)
	server.refuse = func(d messages.Document) bool { return d.Fields["title"] == "bad" }
	b.exec(`UPDATE note SET notebook = 2`)
	for range 100 { // later than the other one's, also within the same millisecond
		a.exec(`UPDATE note SET title = title || '.'`)
	}
	a.exec(`UPDATE note SET title = 'bad'`)
	b.sync()
	a.sync()
	if n := a.value(`SELECT notebook FROM note WHERE isDirty`); n != "1" {
		t.Fatalf("the story is another one: %s", n)
	}
	a.exec(`DELETE FROM notebook WHERE id = 2`)
	for _, d := range []*device{a, b, a} {
		d.sync()
	}
	if n := b.value(`SELECT count(*) FROM notebook`) + b.value(`SELECT count(*) FROM notebook WHERE isDirty`); n != "20" {
		t.Errorf("the other device has %s notebooks and changed ones, want 2 and 0", n)
	}
	server.refuse = func(messages.Document) bool { return false }
	a.replay(tidemark.DeadLetterFilter{}, false)
	rounds(2, a, b)
	same(t, a, b)
	if n := b.value(`SELECT count(*) FROM notebook`); n != "1" {
		t.Errorf("%s notebooks are left, want 1", n)
	}
}

// A thread and its posts are deleted, and the thread refers to one of them.
func TestCommitsOfACircleOfTombstonesAreBounded(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE thread (id INTEGER PRIMARY KEY, last INTEGER REFERENCES post (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE post (id INTEGER PRIMARY KEY, thread INTEGER REFERENCES thread (id) DEFERRABLE INITIALLY DEFERRED);`)
	most := 0
	remote := f.server.Remote()
	remote.Fault = func(c memory.Call) memory.Fault {
		if c.Op == memory.OpCommit {
			most = max(most, len(c.Commit.Writes))
		}
		return memory.Fault{}
	}
	f.server.Put(messages.Document{Table: "thread", ID: "t", CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"id": int64(1), "last": "p0"}})
	for i := range 2000 {
		f.server.Put(messages.Document{Table: "post", ID: fmt.Sprint("p", i), CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"id": int64(i + 1), "thread": "t"}})
	}
	a := f.device("a")
	a = f.with(remote).on(a.path, a.db)
	if _, err := a.p.SyncFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.exec(`BEGIN; DELETE FROM thread; DELETE FROM post; COMMIT`)
	rounds(2, a)
	same(t, a)
	if most > messages.MaxCommitWrites {
		t.Errorf("a commit has %d writes, the most are %d", most, messages.MaxCommitWrites)
	}
}
