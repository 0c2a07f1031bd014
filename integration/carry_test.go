package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
)

// A restore over a file leaves its conflicts, which no snapshot has yet.
func TestARestoreCarriesConflictsOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.exec(`INSERT INTO note (id, notebook, title, body) VALUES (10, 1, 'shopping', x'00ff')`)
	a.sync()
	b := f.device("b")
	b.sync()
	lost := quarrel(t, a, b, "note", `UPDATE note SET title = 'from a'`, `UPDATE note SET title = 'from b'`)
	b.restoreConflict(lost.ID)
	b.sync()
	before, err := json.Marshal(b.conflicts())
	if err != nil {
		t.Fatal(err)
	}
	over := func(carried int64) {
		t.Helper()
		_ = b.db.Close()
		r, err := tidemark.Restore(t.Context(), b.path, f.store())
		if err != nil || r.Conflicts != carried || r.Kept != "" {
			t.Fatalf("%+v, %v", r, err)
		}
		b = f.on(b.path, openDB(t, b.path))
		after, err := json.Marshal(b.conflicts())
		if err != nil {
			t.Fatal(err)
		}
		if string(after) != string(before) {
			t.Errorf("conflicts\nbefore %s\nafter  %s", before, after)
		}
	}
	over(2)
	if err := b.db.Close(); err != nil {
		t.Fatal(err)
	}
	b = f.on(b.path, openDB(t, b.path), tidemark.WithBackup(1, time.Hour, 4), tidemark.WithTakeover(0))
	b.sync() // downloads what came after the snapshot
	a.exec(`UPDATE note SET title = 'a third'`)
	a.sync()
	b.exec(`UPDATE note SET body = 'a fourth'`)
	b.sync() // and the next snapshot has the conflicts
	list, err := json.Marshal(b.conflicts())
	if err != nil {
		t.Fatal(err)
	}
	before = list
	over(0)
	if got := b.restoreConflict(b.conflicts()[len(b.conflicts())-1].ID); got.Did != "updated" {
		t.Errorf("what came over: %+v", got)
	}
}

// twoAccounts are two of them, with a snapshot each, and a device of the first one that has
// a conflict.
func twoAccounts(t *testing.T) (f, other *fleet, b *device) {
	t.Helper()
	f, other = newFleet(t, notesSchema), newFleet(t, notesSchema)
	x := other.device("x")
	x.exec(`INSERT INTO notebook (id, name) VALUES (1, 'theirs')`)
	x.sync()
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.sync()
	b = f.device("b")
	b.sync()
	quarrel(t, a, b, "notebook", `UPDATE notebook SET name = 'from a'`, `UPDATE notebook SET name = 'from b'`)
	return f, other, b
}

// What lost a conflict of one account is not for the next one's database.
func TestConflictsOfAnotherScopeAreNotCarriedOver(t *testing.T) {
	t.Parallel()
	f, other, b := twoAccounts(t)
	_ = b.db.Close()
	now := tidemark.RestoreAsOf(time.Now().Add(time.Minute)) // named: that the file knows another snapshot is no reason
	if _, err := tidemark.Restore(t.Context(), b.path, other.store(), now); !errors.Is(err, tidemark.ErrUnsynced) || !strings.Contains(err.Error(), "conflicts of "+b.path+" over: its conflicts (1) are of another scope than the snapshot") {
		t.Fatalf("restored over them: %v", err)
	}
	r, err := tidemark.Restore(t.Context(), b.path, other.store(), now, tidemark.RestoreKeepUnsynced())
	if err != nil || r.Kept == "" || r.Conflicts != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	b = other.on(b.path, openDB(t, b.path))
	if n := len(b.conflicts()); n != 0 {
		t.Errorf("%d conflicts of somebody else", n)
	}
	kept := f.on(r.Kept, openDB(t, r.Kept))
	if n := len(kept.conflicts()); n != 1 {
		t.Errorf("the kept file has %d conflicts", n)
	}
}

// A file that was reset has the conflicts of the account before.
func TestConflictsOfAResetFile(t *testing.T) {
	t.Parallel()
	_, other, b := twoAccounts(t)
	if err := tidemark.Reset(t.Context(), b.db); err != nil {
		t.Fatal(err)
	}
	_ = b.db.Close()
	r, err := tidemark.Restore(t.Context(), b.path, other.store(), tidemark.RestoreKeepUnsynced())
	if err != nil {
		t.Fatal(err)
	}
	b = other.on(b.path, openDB(t, b.path))
	if n := len(b.conflicts()); n != 0 {
		t.Errorf("%d conflicts of another account were carried over: %+v", n, r)
	}
}

// A database with UTF-16 text is restored over.
func TestARestoreOverAnotherEncoding(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(1)
	a.sync()
	g := *f
	g.schema = `PRAGMA encoding = 'UTF-16';` + oneTable
	b := g.device("b")
	b.sync()
	if got := b.value(`PRAGMA encoding`); got != `"UTF-16le"` {
		t.Fatal(got)
	}
	_ = b.db.Close()
	if _, err := tidemark.Restore(t.Context(), b.path, f.store()); err != nil {
		t.Error(err)
	}
}

// A conflict that was restored here, and that the snapshot has from before, stays restored.
func TestARestoreKeepsThatAConflictWasRestored(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.sync()
	b := f.device("b", tidemark.WithBackup(1, time.Hour, 4), tidemark.WithTakeover(0))
	b.sync()
	lost := quarrel(t, a, b, "notebook", `UPDATE notebook SET name = 'from a'`, `UPDATE notebook SET name = 'from b'`)
	b.exec(`INSERT INTO notebook (name) VALUES ('one more')`)
	r := b.sync() // its snapshot has the conflict
	if r.Snapshot == nil {
		t.Fatal("no snapshot")
	}
	b = f.on(b.path, b.db, tidemark.WithBackup(1000, 1000*time.Hour, 4))
	b.restoreConflict(lost.ID)
	f.keepsConflicts(b)
}

// keepsConflicts restores over a device's file: its conflicts are what they were.
func (f *fleet) keepsConflicts(d *device) {
	f.t.Helper()
	d.sync()
	before, _ := json.Marshal(d.conflicts())
	_ = d.db.Close()
	if _, err := tidemark.Restore(f.t.Context(), d.path, f.store()); err != nil {
		f.t.Fatal(err)
	}
	d = f.on(d.path, openDB(f.t, d.path))
	d.sync() // and the rows that they are about are here again
	if after, _ := json.Marshal(d.conflicts()); string(after) != string(before) {
		f.t.Errorf("conflicts\nbefore %s\nafter  %s", before, after)
	}
}

// A version that was merged away came back as another row. The snapshot has the conflict
// from before.
func TestARestoreDoublesNoConflictWhoseRowCameBackAsAnother(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE, color TEXT);`)
	a, b := f.device("a"), f.device("b", tidemark.WithBackup(1, time.Hour, 4), tidemark.WithTakeover(0))
	a.exec(`INSERT INTO tag (name, color) VALUES ('home', 'red')`)
	b.exec(`INSERT INTO tag (name, color) VALUES ('home', 'blue')`)
	rounds(2, a, b)
	b.exec(`INSERT INTO tag (name) VALUES ('one more')`)
	if r := b.sync(); r.Snapshot == nil || len(b.conflicts()) != 1 {
		t.Fatalf("%+v, %d conflicts", r, len(b.conflicts()))
	}
	b = f.on(b.path, b.db, tidemark.WithBackup(1000, 1000*time.Hour, 4))
	lost := b.conflicts()[0]
	b.exec(`UPDATE tag SET name = 'free' WHERE name = 'home'`)
	if r := b.restoreConflict(lost.ID); r.DocumentID == lost.DocumentID {
		t.Fatalf("the story is another one: %+v", r)
	}
	f.keepsConflicts(b)
}

// The snapshot has conflicts of its maker's, so that those of the file get other numbers.
func TestAConflictThatIsCarriedOverNamesTheOtherOne(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	maker, b := f.device("maker", tidemark.WithBackup(1, time.Hour, 4), tidemark.WithTakeover(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 4))
	maker.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work'), (3, 'garden')`)
	rounds(2, maker, b)
	for _, id := range []string{"1", "2"} { // b restores the second one
		quarrel(t, maker, b, "notebook", `UPDATE notebook SET name = 'from maker' WHERE id = `+id, `UPDATE notebook SET name = 'from b' WHERE id = `+id)
	}
	b.restoreConflict(b.conflicts()[0].ID)
	rounds(1, b, maker)
	for range 3 {
		quarrel(t, b, maker, "notebook", `UPDATE notebook SET name = name || ' by b' WHERE id = 3`, `UPDATE notebook SET name = name || ' by maker' WHERE id = 3`)
	}
	b.sync()
	_ = b.db.Close()
	over := func() {
		t.Helper()
		if _, err := tidemark.Restore(t.Context(), b.path, f.store()); err != nil {
			t.Fatal(err)
		}
		b = f.on(b.path, openDB(t, b.path), tidemark.WithBackup(1, time.Hour, 4), tidemark.WithTakeover(0))
		b.sync()
		var restored, notes []tidemark.Conflict
		for _, c := range b.conflicts() {
			if c.RestoredOn != nil {
				restored = append(restored, c)
			}
			if c.Winner == "restored" {
				notes = append(notes, c)
			}
		}
		if len(restored) != 1 || len(notes) != 1 || !strings.Contains(notes[0].Reason, fmt.Sprintf("conflict %d was", restored[0].ID)) {
			t.Errorf("restored %+v, and what was there before: %+v", restored, notes)
		}
		_ = b.db.Close()
	}
	over()
	over() // the second time, the snapshot may have them
}

// Nor one that knows of no snapshot at all.
func TestARestoreFromAnotherAccountsStore(t *testing.T) {
	t.Parallel()
	f, other := newFleet(t, oneTable), newFleet(t, oneTable)
	x := other.device("x")
	x.notes(1)
	x.sync()
	a := f.onStore(nil).device("a")
	a.notes(3)
	a.sync()
	_ = a.db.Close()
	if r, err := tidemark.Restore(t.Context(), a.path, other.store()); !errors.Is(err, tidemark.ErrOtherScope) {
		t.Errorf("the file of one account was replaced by another's rows: %+v, %v", r, err)
	}
}

// A file that was synced once with a wrong --store is not restored over from there without
// a word: before, ErrRolledBack refused it.
func TestARestoreFromAnotherAccountsStoreAfterASync(t *testing.T) {
	t.Parallel()
	key, _ := newKey(t)
	for name, c := range map[string]struct {
		theirs    []tidemark.Option
		restoring []tidemark.RestoreOption
	}{
		"open":      {},
		"encrypted": {[]tidemark.Option{tidemark.WithEncryption(key)}, []tidemark.RestoreOption{tidemark.RestoreKey(key)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, other := newFleet(t, oneTable), newFleet(t, oneTable)
			x := other.device("x", c.theirs...)
			x.notes(1)
			x.sync()
			a := f.device("a")
			a.notes(3)
			a.sync()
			a = f.onStore(other.store()).on(a.path, a.db) // a slip of the URL
			a.sync()
			_ = a.db.Close()
			// Nobody may take the other account's rows for this file's without a word.
			if r, err := tidemark.Restore(t.Context(), a.path, other.store(), c.restoring...); err == nil {
				t.Errorf("the file of one account was replaced by another's rows: %+v", r)
			}
		})
	}
}
