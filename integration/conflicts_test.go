package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
)

// conflicts lists a device's conflicts, the newest first.
func (d *device) conflicts() []tidemark.Conflict {
	d.t.Helper()
	var out []tidemark.Conflict
	for c, err := range tidemark.Conflicts(d.t.Context(), d.db, tidemark.ConflictFilter{}) {
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func (d *device) restoreConflict(id int64) tidemark.RestoredConflict {
	d.t.Helper()
	r, err := tidemark.RestoreConflict(d.t.Context(), d.db, id, "")
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// quarrel lets two devices that are in step change the same rows, and both sync; the
// second device's edits are later and win.
func quarrel(t *testing.T, a, b *device, table, onA, onB string) tidemark.Conflict {
	t.Helper()
	a.exec(onA)
	b.exec(onB)
	b.exec(`UPDATE ` + table + ` SET updatedOn = updatedOn + 1000, isDirty = 1 WHERE isDirty = 1`)
	b.exec(`UPDATE tidemark_tombstones SET updatedOn = updatedOn + 1000 WHERE isDirty = 1`)
	a.sync()
	b.sync()
	a.sync()
	list := b.conflicts()
	if len(list) == 0 {
		t.Fatal("nobody noticed")
	}
	return list[0]
}

func TestALostVersionIsRestoredAndTheRestoreTakenBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work')`)
	a.exec(`INSERT INTO note (id, notebook, title, body) VALUES (10, 1, 'shopping', 'milk')`)
	a.sync()
	b := f.device("b")
	b.exec(`INSERT INTO notebook (id, name) VALUES (2, 'the number is taken')`)
	b.sync()
	a.sync()
	c := quarrel(t, a, b, "note", `UPDATE note SET title = 'from a', notebook = 2`, `UPDATE note SET title = 'from b'`)
	if c.Winner != "local" || c.Lost() != tidemark.ServerSide || c.Row != "id = 10" || c.Table != "note" || c.RestoredOn != nil {
		t.Errorf("conflict: %+v", c)
	}
	if got := strings.Join(c.Differing, " "); got != "notebook title" {
		t.Errorf("differing: %s", got)
	}
	if c.Local.Values["title"] != "from b" || c.Server.Values["title"] != "from a" {
		t.Errorf("versions: %+v %+v", c.Local, c.Server)
	}
	if c.Server.UpdatedBy != unquote(a.value(`SELECT installationId FROM tidemark_state`)) || !c.Local.UpdatedOn.After(c.Server.UpdatedOn) {
		t.Errorf("who and when: %+v %+v", c.Local, c.Server)
	}
	if p := c.Server.Parents["notebook"]; p.Table != "notebook" || p.Row != "id = 3" { // renumbered there
		t.Errorf("parent: %+v", p)
	}

	r := b.restoreConflict(c.ID)
	if r.Did != "updated" || r.Row != "id = 10" || r.Kept == 0 {
		t.Errorf("restored: %+v", r)
	}
	if got := b.value(`SELECT b.name || ' ' || n.title || ' ' || n.isDirty FROM note n JOIN notebook b ON b.id = n.notebook`); got != `"work from a 1"` {
		t.Errorf("restored row: %s", got)
	}
	if again := b.restoreConflict(c.ID); again.Did != "nothing" || again.Kept != 0 || len(b.conflicts()) != 2 {
		t.Errorf("restored twice: %+v, %d conflicts", again, len(b.conflicts()))
	}
	b.sync()
	a.sync()
	same(t, a, b)
	if got := a.value(`SELECT title FROM note`); got != `"from a"` {
		t.Errorf("the other device has %s", got)
	}

	undo := b.restoreConflict(r.Kept)
	if undo.Did != "updated" {
		t.Errorf("undo: %+v", undo)
	}
	b.sync()
	a.sync()
	same(t, a, b)
	if got := a.value(`SELECT b.name || ' ' || n.title FROM note n JOIN notebook b ON b.id = n.notebook`); got != `"home from b"` {
		t.Errorf("after the undo: %s", got)
	}

	// What is discarded is gone, and says so.
	if n, err := tidemark.DiscardConflicts(t.Context(), b.db, tidemark.ConflictFilter{IDs: []int64{c.ID, 4711}}); err != nil || n != 1 {
		t.Errorf("discarded %d, %v", n, err)
	}
	if _, err := tidemark.RestoreConflict(t.Context(), b.db, c.ID, ""); !errors.Is(err, tidemark.ErrNotFound) {
		t.Errorf("a discarded conflict: %v", err)
	}
	if n, err := tidemark.DiscardConflicts(t.Context(), b.db, tidemark.ConflictFilter{Table: "NOTE", Before: time.Now().Add(-time.Hour)}); err != nil || n != 0 {
		t.Errorf("young ones were discarded: %d, %v", n, err)
	}
	if n, err := tidemark.DiscardConflicts(t.Context(), b.db, tidemark.ConflictFilter{}); err != nil || n != 2 {
		t.Errorf("discarded %d, %v", n, err)
	}
}

func unquote(s string) string { return strings.Trim(s, `"`) }

// Every kind of value comes back as it was, also when the row has to be made again.
func TestValuesComeBackExactly(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"changed", "deleted"} {
		t.Run(how, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE v (k TEXT, n INTEGER, i INTEGER, r REAL, t TEXT, b BLOB, x, num NUMERIC, PRIMARY KEY (k, n)) WITHOUT ROWID;`)
			a := f.device("a")
			insert := `INSERT INTO v (k, n, i, r, t, b, x, num) VALUES `
			a.exec(insert + `('max', 1, 9223372036854775807, 0.1, 'nul' || char(0) || 'inside', x'', 1.0, 1.5),
				('min', 2, -9223372036854775808, 5e-324, '👩‍👩‍👧 <&>', x'00ff', 1, 9007199254740993), ('null', 3, NULL, NULL, NULL, NULL, NULL, NULL),
				('inf', 4, 0, 9e999, '', zeroblob(3000), '1', 1e20)`)
			a.sync()
			b := f.device("b")
			b.sync()
			want := contents(t.Context(), t, a.db.DB)["v"]
			change := `UPDATE v SET i = 7, r = 7.5, t = 'other', b = x'07', x = NULL, num = 7`
			if how == "deleted" {
				change = `DELETE FROM v`
			}
			quarrel(t, a, b, "v", `UPDATE v SET k = k`, change)
			list := b.conflicts()
			if len(list) != 4 {
				t.Fatalf("%d conflicts", len(list))
			}
			for _, c := range list {
				b.restoreConflict(c.ID)
			}
			if got := contents(t.Context(), t, b.db.DB)["v"]; strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("restored\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			b.sync()
			a.sync()
			same(t, a, b)
			if got := contents(t.Context(), t, a.db.DB)["v"]; strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("the other device has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, c := range list {
				if c.Row == `k = 'max', n = 1` {
					raw, err := json.Marshal(c.Server.Values)
					if err != nil || string(raw) != `{"b":{"bytes":""},"i":9223372036854775807,"k":"max","n":1,"num":1.5,"r":0.1,"t":"nul\u0000inside","x":1.0}` {
						t.Errorf("%s, %v", raw, err)
					}
				}
			}
		})
	}
}

// A tree that was deleted on one device while it was edited on the other comes back
// from its conflicts, with its identities: parents first, and the error says which.
func TestADeletedTreeComesBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'shopping')`)
	a.exec(`INSERT INTO comment (id, note, text) VALUES (100, 10, 'milk')`)
	a.sync()
	b := f.device("b")
	b.sync()
	ids := b.value(`SELECT (SELECT clientId FROM notebook) || (SELECT clientId FROM note) || (SELECT clientId FROM comment)`)
	a.exec(`UPDATE notebook SET name = 'sweet home'`)
	a.exec(`UPDATE note SET title = 'shopping list'`)
	quarrel(t, a, b, "note", `UPDATE comment SET text = 'oat milk'`, `DELETE FROM notebook`)
	byTable := map[string]int64{}
	for _, c := range b.conflicts() {
		byTable[c.Table] = c.ID
		if c.Local != nil || c.Server == nil || c.Winner != "local" {
			t.Errorf("%+v", c)
		}
	}
	if len(byTable) != 3 {
		t.Fatalf("conflicts: %v", byTable)
	}
	b.exec(`INSERT INTO notebook (id, name) VALUES (1, 'the number is taken')`)
	_, err := tidemark.RestoreConflict(t.Context(), b.db, byTable["comment"], "")
	if !errors.Is(err, tidemark.ErrParentMissing) || !strings.Contains(err.Error(), fmt.Sprintf(`of table "note": restore that first, it is in conflict %d`, byTable["note"])) {
		t.Errorf("a comment without its note: %v", err)
	}
	if got := b.value(`SELECT count(*) FROM comment`); got != "0" {
		t.Errorf("comments: %s", got)
	}
	for _, table := range []string{"notebook", "note", "comment"} {
		if r := b.restoreConflict(byTable[table]); r.Did != "inserted" {
			t.Errorf("%s: %+v", table, r)
		}
		if r := b.restoreConflict(byTable[table]); r.Did != "nothing" {
			t.Errorf("%s again: %+v", table, r)
		}
	}
	b.exec(`DELETE FROM notebook WHERE name = 'the number is taken'`)
	if got := b.value(`SELECT (SELECT clientId FROM notebook) || (SELECT clientId FROM note) || (SELECT clientId FROM comment)`); got != ids {
		t.Errorf("other identities: %s, were %s", got, ids)
	}
	for range 2 {
		b.sync()
		a.sync()
	}
	same(t, a, b)
	if got := a.value(`SELECT b.name || ', ' || n.title || ', ' || c.text FROM comment c JOIN note n ON n.id = c.note JOIN notebook b ON b.id = n.notebook`); got != `"sweet home, shopping list, oat milk"` {
		t.Errorf("a has %s", got)
	}
	// The restores taken back: a row that others refer to stays.
	undo := map[string]int64{}
	for _, c := range b.conflicts() {
		if c.Winner == "restored" {
			undo[c.Table] = c.ID
		}
	}
	if _, err := tidemark.RestoreConflict(t.Context(), b.db, undo["note"], ""); !errors.Is(err, tidemark.ErrInTheWay) || !strings.Contains(err.Error(), `"comment"`) {
		t.Errorf("a delete that would leave a child alone: %v", err)
	}
	for _, table := range []string{"comment", "note", "notebook"} {
		if r := b.restoreConflict(undo[table]); r.Did != "deleted" {
			t.Errorf("%s: %+v", table, r)
		}
	}
	for range 2 {
		b.sync()
		a.sync()
	}
	same(t, a, b)
	if got := a.value(`SELECT count(*) FROM notebook`); got != "0" {
		t.Errorf("notebooks: %s", got)
	}
}

// A row that was merged into another comes back as a row of its own, once its key is
// free; and once only.
func TestAMergedRowComesBackAsItsOwn(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, colour TEXT);`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO tag (name, colour) VALUES ('home', 'red')`)
	b.exec(`INSERT INTO tag (name, colour) VALUES ('home', 'blue')`)
	for range 2 {
		a.sync()
		b.sync()
	}
	same(t, a, b)
	d := a
	if len(a.conflicts()) == 0 {
		d = b
	}
	c := d.conflicts()[0]
	lost := c.Local
	if lost == nil {
		lost = c.Server
	}
	if c.Winner != "merged" {
		t.Errorf("%+v", c)
	}
	_, err := tidemark.RestoreConflict(t.Context(), d.db, c.ID, "")
	row := "id = " + d.value(`SELECT id FROM tag`)
	if !errors.Is(err, tidemark.ErrInTheWay) || !strings.Contains(err.Error(), `the row `+row+` of table "tag" has the same unique key`) {
		t.Errorf("want %s in the way: %v", row, err)
	}
	if got := d.value(`SELECT count(*) || ' ' || (SELECT applying FROM tidemark_state) FROM tag`); got != `"1 0"` {
		t.Errorf("a restore that failed left %s", got)
	}
	d.exec(`UPDATE tag SET name = 'at home'`)
	if r := d.restoreConflict(c.ID); r.Did != "inserted" {
		t.Errorf("%+v", r)
	}
	if r := d.restoreConflict(c.ID); r.Did != "nothing" {
		t.Errorf("twice: %+v", r)
	}
	for range 2 {
		a.sync()
		b.sync()
	}
	same(t, a, b)
	if got := b.value(`SELECT group_concat(name || ' ' || colour, ', ') FROM (SELECT * FROM tag ORDER BY name DESC)`); !strings.HasPrefix(got, `"home `+lost.Values["colour"].(string)+", at home ") {
		t.Errorf("tags: %s", got)
	}
}

// The application's triggers see a restore as they see any edit, and what they do
// goes up with it.
func TestARestoreIsAnEditToTheApplicationsTriggers(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `
CREATE TABLE list (id INTEGER PRIMARY KEY, name TEXT, items INTEGER NOT NULL DEFAULT 0);
CREATE TABLE item (id INTEGER PRIMARY KEY, list INTEGER REFERENCES list(id), name TEXT CHECK (name <> 'forbidden'));
CREATE TABLE audit (id INTEGER PRIMARY KEY, what TEXT);
CREATE TRIGGER item_in AFTER INSERT ON item BEGIN
  UPDATE list SET items = items + 1 WHERE id = NEW.list;
  INSERT INTO audit (what) VALUES ('in ' || NEW.name);
END;
CREATE TRIGGER item_out AFTER DELETE ON item BEGIN
  UPDATE list SET items = items - 1 WHERE id = OLD.list;
END;`)
	a := f.device("a")
	a.exec(`INSERT INTO list (id, name) VALUES (1, 'shopping')`)
	a.exec(`INSERT INTO item (list, name) VALUES (1, 'milk')`)
	a.sync()
	b := f.device("b")
	b.sync()
	c := quarrel(t, a, b, "item", `UPDATE item SET name = 'oat milk'`, `DELETE FROM item`)
	for range 2 {
		a.sync()
		b.sync()
	}
	if got := a.value(`SELECT items FROM list`); got != "0" {
		t.Fatalf("items before: %s", got)
	}
	if r := b.restoreConflict(c.ID); r.Did != "inserted" {
		t.Errorf("%+v", r)
	}
	for range 2 {
		b.sync()
		a.sync()
	}
	same(t, a, b)
	if got := a.value(`SELECT items || ' ' || (SELECT group_concat(what, ', ') FROM audit) FROM list`); got != `"1 in milk, in oat milk"` {
		t.Errorf("a has %s", got)
	}
}

// Restoring and listing go on while another connection syncs, and the other way round.
func TestConflictsAreRestoredDuringSyncs(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	for i := range 40 {
		a.exec(`INSERT INTO notebook (id, name) VALUES (?, ?)`, i+1, fmt.Sprint("notebook ", i))
	}
	a.sync()
	b := f.device("b")
	b.sync()
	quarrel(t, a, b, "notebook", `UPDATE notebook SET name = name || ' from a'`, `UPDATE notebook SET name = name || ' from b'`)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		for ctx.Err() == nil {
			if _, err := b.p.Sync(t.Context()); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	other := openDB(t, b.path)
	n := 0
	for c, err := range tidemark.Conflicts(t.Context(), other, tidemark.ConflictFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tidemark.RestoreConflict(t.Context(), other, c.ID, ""); err != nil {
			t.Fatal(err)
		}
		n++
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n != 40 {
		t.Errorf("%d conflicts were listed", n)
	}
	b.sync()
	a.sync()
	same(t, a, b)
	if got := a.value(`SELECT count(*) FROM notebook WHERE name LIKE '% from a'`); got != "40" {
		t.Errorf("restored: %s", got)
	}
}

// The schema would replace the row that has the unique key by now, without a word.
func TestARestoredVersionReplacesNoOtherRow(t *testing.T) {
	t.Parallel()
	for name, theirs := range map[string]string{"deleted here": `DELETE FROM tag`, "changed here": `UPDATE tag SET name = 'work'`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE ON CONFLICT REPLACE, color TEXT)`)
			a, b := f.device("a"), f.device("b")
			a.exec(`INSERT INTO tag (name, color) VALUES ('home', 'red')`)
			rounds(2, a, b)
			c := quarrel(t, a, b, "tag", `UPDATE tag SET color = 'blue'`, theirs)
			b.exec(`INSERT INTO tag (name, color) VALUES ('home', 'green')`)
			before := contents(t.Context(), t, b.db.DB)
			if r, err := tidemark.RestoreConflict(t.Context(), b.db, c.ID, ""); !errors.Is(err, tidemark.ErrInTheWay) {
				t.Errorf("%+v, %v", r, err)
			}
			diff(t, "before", before, "after", contents(t.Context(), t, b.db.DB))
			rounds(2, b, a)
			same(t, a, b)
		})
	}
}
