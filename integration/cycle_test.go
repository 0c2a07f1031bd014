package integration

import (
	"errors"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
)

const notesSchema = `
CREATE TABLE notebook (id INTEGER PRIMARY KEY, name TEXT NOT NULL, parent INTEGER REFERENCES notebook(id));
CREATE TABLE note (id INTEGER PRIMARY KEY, notebook INTEGER NOT NULL REFERENCES notebook(id) ON DELETE CASCADE, title TEXT, body TEXT);
CREATE TABLE comment (id INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES note(id) ON DELETE CASCADE, text TEXT);
CREATE TABLE tag (name TEXT PRIMARY KEY, colour TEXT) WITHOUT ROWID;
CREATE TABLE note_tag (note INTEGER REFERENCES note(id), tag TEXT REFERENCES tag(name) ON UPDATE CASCADE, PRIMARY KEY (note, tag));
`

func TestThreeDevicesShareADatabase(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work')`)
	a.exec(`INSERT INTO notebook (id, name, parent) VALUES (3, 'garden', 1)`)
	a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'shopping'), (11, 3, 'seeds')`)
	a.exec(`INSERT INTO comment (note, text) VALUES (10, 'milk'), (10, 'bread')`)
	a.exec(`INSERT INTO tag VALUES ('red', '#f00', 1,1,'',NULL,1,NULL,NULL)`)
	a.exec(`INSERT INTO note_tag (note, tag) VALUES (10, 'red')`)
	r := a.sync()
	if r.Total().Uploaded != 9 || r.Snapshot == nil {
		t.Fatalf("first sync: %+v", r)
	}
	b := f.device("b")
	b.exec(`INSERT INTO notebook (id, name) VALUES (1, 'the number 1 is taken')`)
	b.sync()
	a.sync()
	same(t, a, b)
	c := f.restore("c")
	c.sync()
	same(t, a, b, c)

	b.exec(`UPDATE note SET title = 'seeds and bulbs' WHERE title = 'seeds'`)
	b.exec(`UPDATE tag SET name = 'crimson' WHERE name = 'red'`)
	c.exec(`DELETE FROM comment WHERE text = 'milk'`)
	c.exec(`INSERT INTO note (notebook, title) SELECT id, 'from c' FROM notebook WHERE name = 'work'`)
	for range 2 {
		a.sync()
		b.sync()
		c.sync()
	}
	same(t, a, b, c)
	if got := a.value(`SELECT count(*) FROM note`); got != "3" {
		t.Errorf("notes: %s", got)
	}
	if got := a.value(`SELECT tag FROM note_tag`); got != `"crimson"` {
		t.Errorf("the join row did not follow its tag: %s", got)
	}
}

func TestIdleCycleCostsOneRead(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.sync()
	b := f.device("b")
	b.sync()
	for range 3 {
		for _, d := range []*device{a, b} {
			r := d.sync()
			// a's record is younger than 300 s: it comes along.
			if r.Billed.Reads != 1 || r.Billed.Writes != 0 || r.Billed.Deletes != 0 || r.Store.Puts != 0 || r.Store.Gets != 0 {
				t.Errorf("idle cycle: %+v %+v", r.Billed, r.Store)
			}
		}
	}
}

func TestDeletedParentWithANewChildElsewhereIsRevived(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'shopping')`)
	a.sync()
	b := f.device("b")
	b.sync()
	for _, first := range []*device{a, b} {
		a.exec(`DELETE FROM comment`)
		a.exec(`DELETE FROM note`)
		b.exec(`INSERT INTO comment (note, text) SELECT id, 'wait!' FROM note`)
		first.sync()
		for range 3 {
			a.sync()
			b.sync()
		}
		same(t, a, b)
		if got := a.value(`SELECT count(*) FROM comment WHERE text = 'wait!'`); got != "1" {
			t.Fatalf("the child is gone: %s", got)
		}
	}
}

func TestLastWriterWinsAndTheLoserIsKept(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.sync()
	b := f.device("b")
	b.sync()
	a.exec(`UPDATE notebook SET name = 'from a'`)
	b.exec(`UPDATE notebook SET name = 'from b'`)
	b.exec(`UPDATE notebook SET updatedOn = updatedOn + 1000, isDirty = 1`) // b's clock is a second later
	a.sync()
	b.sync()
	a.sync()
	same(t, a, b)
	if got := a.value(`SELECT name FROM notebook`); got != `"from b"` {
		t.Errorf("winner: %s", got)
	}
	if got := b.value(`SELECT winner FROM tidemark_conflicts`); got != `"local"` {
		t.Errorf("conflict: %s", got)
	}
}

// A counter that a trigger keeps is counted where the row was made, and only there.
func TestTriggersOfTheApplication(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `
CREATE TABLE list (id INTEGER PRIMARY KEY, name TEXT, items INTEGER NOT NULL DEFAULT 0);
CREATE TABLE item (id INTEGER PRIMARY KEY, list INTEGER REFERENCES list(id), name TEXT);
CREATE TABLE audit (id INTEGER PRIMARY KEY, what TEXT);
CREATE TRIGGER item_in AFTER INSERT ON item BEGIN
  UPDATE list SET items = items + 1 WHERE id = NEW.list;
  INSERT INTO audit (what) VALUES ('in ' || NEW.name);
END;
CREATE TRIGGER item_out AFTER DELETE ON item BEGIN
  UPDATE list SET items = items - 1 WHERE id = OLD.list;
  INSERT INTO audit (what) VALUES ('out ' || OLD.name);
END;`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO list (name) VALUES ('shopping')`)
	a.exec(`INSERT INTO item (list, name) VALUES (1, 'milk'), (1, 'bread')`)
	a.sync()
	b.sync()
	same(t, a, b)
	b.exec(`INSERT INTO item (list, name) VALUES (1, 'eggs')`)
	b.sync()
	a.sync()
	a.exec(`DELETE FROM item WHERE name = 'milk'`)
	for range 2 {
		a.sync()
		b.sync()
	}
	same(t, a, b)
	for q, want := range map[string]string{`SELECT items FROM list`: "2", `SELECT count(*) FROM item`: "2", `SELECT count(*) FROM audit`: "4"} {
		for _, d := range []*device{a, b} {
			if got := d.value(q); got != want {
				t.Errorf("%s: %s, want %s", q, got, want)
			}
		}
	}
	if st, _ := b.p.Status(t.Context()); st.Dirty != 0 {
		t.Errorf("what triggers wrote while documents were applied became an edit: %+v", st)
	}
}

// Two devices offline both create the tag "red"; each tags a note with it.
func TestTheSameUniqueKeyOnTwoDevices(t *testing.T) {
	t.Parallel()
	for name, schema := range map[string]string{
		"natural key": notesSchema,
		"unique column": `
CREATE TABLE notebook (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE note (id INTEGER PRIMARY KEY, notebook INTEGER, title TEXT);
CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE COLLATE NOCASE, colour TEXT);
CREATE TABLE note_tag (note INTEGER REFERENCES note(id), tag INTEGER REFERENCES tag(id), PRIMARY KEY (note, tag));`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, schema)
			a := f.device("a")
			a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
			a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'shopping')`)
			a.sync()
			b, c := f.device("b"), f.device("c")
			b.sync()
			c.sync()
			key := map[string]string{"natural key": "name", "unique column": "id"}[name]
			for _, d := range []*device{a, b, c} {
				d.exec(`INSERT INTO tag (name, colour) VALUES ('red', ?)`, d.path)
				d.exec(`INSERT INTO note_tag (note, tag) SELECT note.id, tag.` + key + ` FROM note, tag`)
			}
			for range 4 {
				a.sync()
				b.sync()
				c.sync()
			}
			same(t, a, b, c)
			for _, q := range []string{`SELECT count(*) FROM tag`, `SELECT count(*) FROM note_tag`} {
				if got := b.value(q); got != "1" {
					t.Errorf("%s: %s", q, got)
				}
			}
			kept := 0
			for _, d := range []*device{a, b, c} {
				kept += len(strings1(t.Context(), t, d.db.DB, `SELECT documentId FROM tidemark_conflicts WHERE tableName = 'tag'`))
			}
			if kept < 2 {
				t.Errorf("the rows that gave way were not kept: %d", kept)
			}
		})
	}
}

// A database that has synced with one remote is not taken to another by mistake:
// there it would look as if everything had gone up already.
func TestAnotherRemote(t *testing.T) {
	t.Parallel()
	f, g := newFleet(t, notesSchema), newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.exec(`INSERT INTO note (notebook, title) VALUES (1, 'one'), (1, 'two')`)
	a.exec(`DELETE FROM note WHERE title = 'two'`)
	a.sync()
	moved := g.on(a.path, a.db)
	if _, err := moved.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrOtherScope) {
		t.Fatalf("another remote: %v", err)
	}
	a.sync() // the first one still works
	if err := tidemark.Reset(t.Context(), a.db); err != nil {
		t.Fatal(err)
	}
	if r := moved.sync(); r.Total().Uploaded != 2 || !r.InStep {
		t.Errorf("after a reset: %+v", r)
	}
	b := g.device("b")
	b.sync()
	same(t, moved, b)
}
