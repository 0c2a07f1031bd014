package integration

import (
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
)

// A table that is taken back brings nothing back that everybody deleted meanwhile.
func TestATableTakenBackAfterThePurge(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		a := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0))
		b := f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 0))
		a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes')`)
		a.exec(`INSERT INTO loop (name) VALUES ('stays'), ('goes')`)
		rounds(2, a, b)
		if _, err := tidemark.Attach(t.Context(), b.db, tidemark.Table{Name: "loop", Exclude: true}); err != nil {
			t.Fatal(err)
		}
		b.sync()
		a.exec(`DELETE FROM loop WHERE name = 'goes'`)
		a.sync()
		for range 4 {
			a.exec(`INSERT INTO parent (name) VALUES ('another')`)
			aDay(b, a)
		}
		if n := f.deletedDocuments(); n != 0 {
			t.Fatalf("%d tombstones are left", n)
		}
		if _, err := tidemark.Attach(t.Context(), b.db, tidemark.Table{Name: "loop", Include: true}); err != nil {
			t.Fatal(err)
		}
		rounds(2, b, a)
		if got := names(t, a, "loop"); got != "[stays]" {
			t.Errorf("a has %s: what was deleted a week ago is back", got)
		}
	})
}

// While a table is excluded it gains columns, with values or without: nobody has emptied
// what others have there.
func TestATableTakenBackThatGainedColumns(t *testing.T) {
	t.Parallel()
	for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.MergeByField, tidemark.ClientWins} {
		t.Run(string(policy), func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, x TEXT, y TEXT NOT NULL DEFAULT 'none')`)
			a := f.device("a")
			f.schema = `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`
			b := f.device("b")
			take := func(table tidemark.Table) {
				if _, err := tidemark.Attach(t.Context(), b.db, table); err != nil {
					t.Fatal(err)
				}
			}
			a.exec(`INSERT INTO item (v, x, y) VALUES ('1', 'a', 'a'), ('2', 'a', 'a'), ('3', 'a', 'a')`)
			rounds(2, a, b)
			take(tidemark.Table{Name: "item", Exclude: true})
			b.sync()
			b.exec(`ALTER TABLE item ADD COLUMN x TEXT; ALTER TABLE item ADD COLUMN y TEXT NOT NULL DEFAULT 'none'`)
			b.sync()
			b.exec(`UPDATE item SET x = 'b' WHERE v = '2'`)
			a.exec(`UPDATE item SET y = 'later' WHERE v = '3'`)
			a.sync()
			take(tidemark.Table{Name: "item", Include: true, Policy: policy})
			rounds(2, b, a)
			same(t, a, b)
			if got := a.value(`SELECT group_concat(v || x || y, ' ') FROM (SELECT * FROM item ORDER BY v)`); got != `"1aa 2ba 3alater"` {
				t.Errorf("the rows are %s", got)
			}
		})
	}
}

// Nobody notes what is deleted in a table that is excluded.
func TestATableTakenBackBringsBackWhatWasDeletedThere(t *testing.T) {
	t.Parallel()
	f := newFleet(t, treeSchema)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO loop (name) VALUES ('stays'), ('goes')`)
	rounds(2, a, b)
	if _, err := tidemark.Attach(t.Context(), b.db, tidemark.Table{Name: "loop", Exclude: true}); err != nil {
		t.Fatal(err)
	}
	b.exec(`DELETE FROM loop WHERE name = 'goes'`)
	b.sync()
	if _, err := tidemark.Attach(t.Context(), b.db, tidemark.Table{Name: "loop", Include: true}); err != nil {
		t.Fatal(err)
	}
	rounds(2, b, a)
	same(t, a, b)
	if got := names(t, b, "loop"); got != "[goes stays]" {
		t.Errorf("b has %s", got)
	}
}

// While it was excluded, a row was edited on one side and nowhere else.
func TestATableTakenBackGetsTheEditsOfBothSides(t *testing.T) {
	t.Parallel()
	for side := range 2 {
		f := newFleet(t, treeSchema)
		a, b := f.device("a"), f.device("b")
		a.exec(`INSERT INTO loop (name) VALUES ('first')`)
		rounds(2, a, b)
		if _, err := tidemark.Attach(t.Context(), b.db, tidemark.Table{Name: "loop", Exclude: true}); err != nil {
			t.Fatal(err)
		}
		b.sync()
		[]*device{a, b}[side].exec(`UPDATE loop SET name = 'edited'`)
		a.sync()
		if _, err := tidemark.Attach(t.Context(), b.db, tidemark.Table{Name: "loop", Include: true}); err != nil {
			t.Fatal(err)
		}
		rounds(2, b, a)
		same(t, a, b)
		if got := names(t, b, "loop"); got != "[edited]" {
			t.Errorf("edited by %s: b has %s, and %d conflicts", []string{"a", "b"}[side], got, len(b.conflicts()))
		}
	}
}

// The parents of rows that were synced without them are taken back, on every device.
func TestParentsThatAreTakenBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, treeSchema)
	a, b := f.device("a"), f.device("b")
	for _, d := range []*device{a, b} {
		if _, err := tidemark.Attach(t.Context(), d.db, tidemark.Table{Name: "parent", Exclude: true}); err != nil {
			t.Fatal(err)
		}
	}
	a.exec(`INSERT INTO parent (id, name) VALUES (7, 'p')`)
	a.exec(`INSERT INTO child (parent, name) VALUES (7, 'c')`)
	rounds(2, a, b)
	if again, err := tidemark.Attach(t.Context(), a.db); err != nil || again.Rows != 0 {
		t.Errorf("they are left out, and attaching again made rows dirty: %+v, %v", again, err)
	}
	for _, d := range []*device{a, b} {
		if _, err := tidemark.Attach(t.Context(), d.db, tidemark.Table{Name: "parent", Include: true}); err != nil {
			t.Fatal(err)
		}
	}
	rounds(3, a, b)
	c := f.device("c")
	rounds(2, c, a, b)
	for name, d := range map[string]*device{"a": a, "b": b, "c": c} {
		if got := d.value(`SELECT count(*) FROM child JOIN parent ON parent.id = child.parent`); got != "1" {
			t.Errorf("%s: %s children have their parent", name, got)
		}
	}
}

// No two devices take a table back at the same moment: in between, the one that has not yet
// gets documents that refer to its parents by their ids.
func TestParentsThatAreTakenBackOneDeviceAfterTheOther(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"INTEGER", "TEXT"} {
		for name, edit := range map[string]string{"untouched": "", "edited meanwhile": `UPDATE child SET name = 'edited'; INSERT INTO child (parent, name) VALUES (7, 'new')`} {
			for _, when := range []string{"in step", "not synced"} {
				t.Run(name+", "+key+", "+when, func(t *testing.T) {
					t.Parallel()
					f := newFleet(t, `CREATE TABLE parent (id `+key+` PRIMARY KEY, name TEXT);
						CREATE TABLE child (id INTEGER PRIMARY KEY, parent `+key+` REFERENCES parent (id), name TEXT)`)
					a, b := f.device("a"), f.device("b")
					for _, d := range []*device{a, b} {
						take(t, d, tidemark.Table{Name: "parent", Exclude: true})
						d.exec(`INSERT INTO parent (id, name) VALUES (7, 'p')`)
					}
					a.exec(`INSERT INTO child (parent, name) VALUES (7, 'c')`)
					rounds(2, a, b)
					take(t, a, tidemark.Table{Name: "parent", Include: true})
					rounds(1, a, b)
					b.exec(edit)
					if when == "in step" {
						rounds(1, b, a)
					}
					take(t, b, tidemark.Table{Name: "parent", Include: true})
					rounds(3, b, a)
					same(t, a, b)
					for name, d := range map[string]*device{"a": a, "b": b} {
						if n := d.value(`SELECT count(*) FROM child WHERE parent IS NULL OR NOT EXISTS (SELECT 1 FROM parent WHERE parent.id = child.parent)`); n != "0" {
							t.Errorf("%s: %s children have lost their parent", name, n)
						}
					}
				})
			}
		}
	}
}

// take attaches with a choice for one table.
func take(t *testing.T, d *device, table tidemark.Table) {
	t.Helper()
	if _, err := tidemark.Attach(t.Context(), d.db, table); err != nil {
		t.Fatal(err)
	}
}

// While it was excluded, nothing of ours saw what the application did with the table: it
// was rebuilt, or rows were copied with all their columns.
func TestATableTakenBackThatChangedMeanwhile(t *testing.T) {
	t.Parallel()
	for kind, table := range map[string]string{
		"numbers": `loop (id INTEGER PRIMARY KEY, name TEXT)`, "texts": `loop (id TEXT PRIMARY KEY, name TEXT)`,
		"no rowid": `loop (id TEXT, name TEXT, PRIMARY KEY (id, name)) WITHOUT ROWID`,
	} {
		for what, c := range map[string]struct{ do, want string }{
			"rebuilt": {`ALTER TABLE loop RENAME TO old_loop; CREATE TABLE ` + table + `; INSERT INTO loop SELECT id, name FROM old_loop; DROP TABLE old_loop`, "[one two]"},
			"copied": {
				`CREATE TEMP TABLE c AS SELECT * FROM loop; UPDATE c SET id = id + 10, name = name || ' again'; INSERT INTO loop SELECT * FROM c; DROP TABLE c`,
				"[one one again two two again]",
			},
		} {
			t.Run(what+", "+kind, func(t *testing.T) {
				t.Parallel()
				f := newFleet(t, `CREATE TABLE `+table)
				a, b := f.device("a"), f.device("b")
				a.exec(`INSERT INTO loop (id, name) VALUES (1, 'one'), (2, 'two')`)
				rounds(2, a, b)
				take(t, b, tidemark.Table{Name: "loop", Exclude: true})
				b.exec(c.do)
				take(t, b, tidemark.Table{Name: "loop", Include: true})
				rounds(2, b, a)
				same(t, a, b)
				if got := names(t, a, "loop"); got != c.want {
					t.Errorf("a has %s, want %s", got, c.want)
				}
			})
		}
	}
}
