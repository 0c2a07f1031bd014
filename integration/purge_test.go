package integration

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

const treeSchema = `CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent(id) ON DELETE CASCADE, name TEXT);
CREATE TABLE loop (id INTEGER PRIMARY KEY, next INTEGER REFERENCES loop(id), name TEXT);`

// deletedDocuments counts the tombstones on the server.
func (f *fleet) deletedDocuments() (n int) {
	for _, d := range f.server.Dump() {
		if d.Deleted {
			n++
		}
	}
	return n
}

// aDay lets a day pass on which every device syncs, so that each tells how far it has
// read, and the one whose turn it is purges.
func aDay(devices ...*device) {
	<-time.After(25 * time.Hour)
	rounds(2, devices...)
}

// inBubble runs a test with a clock that jumps while everybody waits.
func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t)
	})
}

func names(t *testing.T, d *device, table string) string {
	t.Helper()
	return fmt.Sprint(strings1(t.Context(), t, d.db.DB, `SELECT name FROM `+table+` ORDER BY name`))
}

func TestTombstonesThatEverybodyHasSeenLeaveTheServer(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 1), tidemark.WithDailySnapshots(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 1))
		a.exec(`INSERT INTO parent VALUES (1, 'one', 1,1,'',NULL,1,NULL,NULL), (2, 'two', 1,1,'',NULL,1,NULL,NULL)`)
		a.exec(`INSERT INTO child (parent, name) VALUES (1, 'x'), (1, 'y'), (2, 'z')`)
		rounds(2, a, b)
		b.exec(`DELETE FROM child WHERE name = 'z'`)
		a.exec(`DELETE FROM parent WHERE id = 1`)
		rounds(2, a, b)
		if n := f.deletedDocuments(); n != 4 {
			t.Fatalf("%d tombstones, want 4", n)
		}
		before := f.server.Bill()
		for range 3 { // every kept snapshot has to be younger than the deletes
			a.exec(`INSERT INTO parent (name) VALUES ('another')`)
			aDay(b, a)
		}
		if n := f.deletedDocuments(); n != 0 {
			t.Errorf("%d tombstones are left", n)
		}
		if got := f.server.Bill().Deletes - before.Deletes; got != 4 {
			t.Errorf("%d deletes were billed for 4 tombstones", got)
		}
		bill := f.server.Bill()
		aDay(a, b)
		if now := f.server.Bill(); now.Deletes != bill.Deletes || now.Reads-bill.Reads > 16 {
			t.Errorf("a day without deletes cost %d deletes and %d reads", now.Deletes-bill.Deletes, now.Reads-bill.Reads)
		}
		c := f.device("c")
		rounds(2, c, a, b)
		same(t, a, b, c)
	})
}

func TestTombstonesWaitForADeviceAndASnapshot(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 0))
		a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes')`)
		rounds(2, a, b)
		a.exec(`DELETE FROM parent WHERE name = 'goes'`)
		for range 5 {
			aDay(a) // b is away
		}
		if n := f.deletedDocuments(); n != 1 {
			t.Fatalf("a device has not seen the delete, and %d tombstones are left", n)
		}
		b.sync()
		for range 2 {
			aDay(b, a)
		}
		if n := f.deletedDocuments(); n != 0 {
			t.Errorf("everybody has seen the delete, and %d tombstones are left", n)
		}
	})
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		a := f.device("a", tidemark.WithBackup(1, time.Hour, 9))
		a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes')`)
		a.sync()
		a.exec(`DELETE FROM parent WHERE name = 'goes'`)
		aDay(a)
		aDay(a)
		if n := f.deletedDocuments(); n != 1 {
			t.Errorf("a snapshot has the row alive, and %d tombstones are left", n)
		}
	})
}

// A device comes back after the tombstones are gone.
func TestADeviceThatWasAwayTooLong(t *testing.T) {
	t.Parallel()
	for _, cutOff := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut off %v", cutOff), func(t *testing.T) {
			inBubble(t, func(t *testing.T) { awayTooLong(t, cutOff) })
		})
	}
}

func awayTooLong(t *testing.T, cutOff bool) {
	f := newFleet(t, treeSchema)
	a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 0))
	remote := f.server.Remote()
	f.remote = func() tidemark.Remote { return remote }
	away := f.device("away", tidemark.WithBackup(1000, 1000*time.Hour, 0), tidemark.WithRetries(0, time.Second))
	a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes'), ('edited'), ('gets a child')`)
	a.exec(`INSERT INTO child (parent, name) SELECT id, 'of ' || name FROM parent`)
	a.exec(`INSERT INTO loop (id, name) VALUES (1, 'l1'), (2, 'l2')`)
	a.exec(`UPDATE loop SET next = 3 - id`)
	rounds(2, a, b, away)
	a.exec(`DELETE FROM child WHERE name <> 'of stays'`)
	a.exec(`DELETE FROM parent WHERE name <> 'stays'`)
	a.exec(`UPDATE loop SET next = NULL`)
	a.exec(`DELETE FROM loop`)
	a.exec(`UPDATE parent SET name = 'stays, renamed'`)
	away.exec(`UPDATE parent SET name = 'edited far away' WHERE name = 'edited'`)
	away.exec(`INSERT INTO child (parent, name) SELECT id, 'new far away' FROM parent WHERE name = 'gets a child'`)
	for range 95 {
		<-time.After(24 * time.Hour)
		rounds(1, b, a)
	}
	if n := f.deletedDocuments(); n != 0 {
		t.Fatalf("%d tombstones are left", n)
	}
	if cutOff {
		n := 0
		remote.Fault = func(c memory.Call) memory.Fault {
			if c.Op == memory.OpRead {
				n++
			}
			if c.Op == memory.OpRead && n == 2 {
				return memory.Fault{Break: errNetwork, BreakAfter: 1}
			}
			return memory.Fault{}
		}
		if _, err := away.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrUnavailable) {
			t.Fatal(err)
		}
		<-time.After(2 * time.Hour) // and the read time is too old
	}
	rounds(3, away, a, b)
	same(t, a, b, away)
	if got := names(t, a, "parent"); got != "[edited far away gets a child stays, renamed]" {
		t.Errorf("parents: %s", got)
	}
	if got := names(t, a, "child"); got != "[new far away of stays]" {
		t.Errorf("children: %s", got)
	}
	if got := names(t, a, "loop"); got != "[]" {
		t.Errorf("what was deleted is back: %s", got)
	}
}

// A record that speaks of numbers which nobody has written ends no purge.
func TestALyingFenceEndsNoPurge(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		liar := &lyingRemote{Remote: f.server.Remote(), record: messages.Device{ID: "liar", UploadedOn: 1, UpdateTime: 1, Fence: messages.Vector{}}}
		f.remote = func() tidemark.Remote { return liar }
		a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 0))
		a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes')`)
		rounds(2, a, b)
		for _, d := range f.server.DumpDevices() {
			liar.record.Fence[d.ID] = math.MaxInt64
		}
		a.exec(`DELETE FROM parent WHERE name = 'goes'`)
		rounds(2, a, b)
		if n := f.deletedDocuments(); n != 1 {
			t.Fatalf("%d tombstones, want 1", n)
		}
		for range 4 {
			aDay(a, b)
		}
		if n := f.deletedDocuments(); n != 0 {
			t.Errorf("%d tombstones are still there", n)
		}
		same(t, a, b)
	})
}

// A phone's own backup of before the deletes is put back after they were purged.
func TestAnOldCopyOfAFileBehindTheFence(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 0))
		a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes')`)
		rounds(2, a, b)
		path := filepath.Join(f.dir, "copy.db")
		b.exec(`VACUUM INTO ?`, path)
		a.exec(`DELETE FROM parent WHERE name = 'goes'`)
		f.copyComesBack(path, a, b)
	})
}

// copyComesBack syncs a copy of a file when what was deleted since has been purged: it
// brings nothing back.
func (f *fleet) copyComesBack(path string, a, b *device) {
	f.t.Helper()
	for range 3 {
		aDay(b, a)
	}
	if n := f.deletedDocuments(); n != 0 {
		f.t.Fatalf("%d tombstones are left", n)
	}
	old := f.on(path, openDB(f.t, path))
	old.exec(`INSERT INTO parent (name) VALUES ('new in the copy')`)
	rounds(3, old, a, b)
	same(f.t, a, b, old)
	if got := names(f.t, a, "parent"); got != "[new in the copy stays]" {
		f.t.Errorf("parents: %s", got)
	}
}

// A copy of a file has a row that was not yet uploaded; when it is first synced, the row
// has been uploaded, deleted and purged. Who knows the delete deletes it again.
func TestALateCreateOfWhatWasPurged(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 0))
		a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes')`)
		path := filepath.Join(f.dir, "copy.db")
		a.exec(`VACUUM INTO ?`, path)
		rounds(2, a, b)
		<-time.After(time.Second)
		b.exec(`DELETE FROM parent WHERE name = 'goes'`)
		f.copyComesBack(path, a, b)
	})
}

func TestADownloadThatDeletesMuchAsks(t *testing.T) {
	t.Parallel()
	f := newFleet(t, treeSchema)
	a := f.device("a")
	b := f.device("b", tidemark.WithDeleteGuard(0.5, 10))
	a.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) INSERT INTO parent (name) SELECT i FROM n`)
	a.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) INSERT INTO child (name) SELECT i FROM n`)
	rounds(2, a, b)
	a.exec(`DELETE FROM parent WHERE id <= 20`) // no more than half
	a.exec(`DELETE FROM child`)                 // all of them, but few
	rounds(1, a, b)
	if got := b.value(`SELECT count(*) FROM parent`); got != "20" {
		t.Fatalf("%s rows are left, want 20", got)
	}
	a.exec(`DELETE FROM parent WHERE id <= 31`)
	a.exec(`INSERT INTO loop (name) VALUES ('new')`)
	b.exec(`UPDATE parent SET name = 'edited' WHERE id = 40`)
	a.sync()
	for range 2 {
		if _, err := b.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrMassDelete) {
			t.Fatalf("got %v", err)
		}
		if got := b.value(`SELECT count(*) FROM parent`); got != "20" {
			t.Fatalf("%s rows are left, want 20", got)
		}
	}
	before := f.server.Bill()
	if err := b.p.AllowDeletes(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.sync()
	if n := f.server.Bill().Reads - before.Reads; n > 2 {
		t.Errorf("%d reads to go on where it stopped", n)
	}
	rounds(2, a, b)
	same(t, a, b)
	a.exec(`INSERT INTO parent (name) SELECT name FROM parent`)
	a.exec(`INSERT INTO parent (name) SELECT name FROM parent`)
	rounds(1, a, b)
	a.exec(`DELETE FROM parent`)
	a.sync()
	if _, err := b.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrMassDelete) {
		t.Errorf("it was allowed once, and again: %v", err)
	}
}

// What the error of a delete that nobody meant advises: the rows become edits of this
// device, and come back everywhere. Edits that wait with the delete are not undone.
func TestRowsOfADeleteThatNobodyMeantComeBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, treeSchema)
	a, c := f.device("a"), f.device("c")
	b := f.device("b", tidemark.WithDeleteGuard(0.5, 10))
	a.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) INSERT INTO parent (id, name) SELECT i, 'p' || i FROM n`)
	a.exec(`INSERT INTO child (parent, name) SELECT id, 'c' || id FROM parent`)
	rounds(2, a, b, c)
	a.exec(`DELETE FROM parent WHERE id > 5`) // and, by cascade, their children
	a.exec(`UPDATE parent SET name = 'edited' WHERE id = 1`)
	rounds(2, a, c)
	_, err := b.p.Sync(t.Context())
	if !errors.Is(err, tidemark.ErrMassDelete) {
		t.Fatalf("got %v", err)
	}
	advice := regexp.MustCompile(`In each of the tables "parent", "child": (UPDATE )"child"( SET .*)$`).FindStringSubmatch(err.Error())
	if advice == nil {
		t.Fatalf("it advises nothing: %v", err)
	}
	for _, table := range []string{"parent", "child"} {
		b.exec(advice[1] + table + advice[2])
	}
	if err := b.p.AllowDeletes(t.Context()); err != nil {
		t.Fatal(err)
	}
	rounds(3, b, a, c)
	same(t, a, b, c)
	for _, table := range []string{"parent", "child"} {
		if got := a.value(`SELECT count(*) FROM ` + table); got != "40" {
			t.Errorf("there are %s rows of %s, want 40", got, table)
		}
	}
	if got := b.value(`SELECT name FROM parent WHERE id = 1`); got != `"edited"` {
		t.Errorf("an edit that came with the deletes is %q", got)
	}
}

// A parent is revived here for a child, and before the revival is uploaded the child
// is deleted elsewhere: the parent goes again.
func TestARevivalThatIsNotNeededAnyMore(t *testing.T) {
	t.Parallel()
	f := newFleet(t, treeSchema)
	c := f.device("c")
	remotes := map[string]*memory.Remote{}
	device := func(name string) *device {
		r := f.server.Remote()
		remotes[name] = r
		f.remote = func() tidemark.Remote { return r }
		return f.device(name, tidemark.WithRetries(0, time.Second))
	}
	a, b := device("a"), device("b")
	a.exec(`INSERT INTO parent (name) VALUES ('p'), ('q')`)
	rounds(2, a, b, c)
	// a deletes the parents, and has already asked who uploaded when c's children arrive.
	a.exec(`DELETE FROM parent`)
	once := false
	remotes["a"].Fault = func(call memory.Call) memory.Fault {
		if call.Op != memory.OpDevices || once {
			return memory.Fault{}
		}
		once = true
		return memory.Fault{Then: func() {
			c.exec(`INSERT INTO child (parent, name) SELECT id, 'of ' || name FROM parent`)
			c.sync()
		}}
	}
	a.sync()
	remotes["b"].Fault = func(call memory.Call) memory.Fault {
		if call.Op == memory.OpCommit {
			return memory.Fault{Before: errNetwork}
		}
		return memory.Fault{}
	}
	if _, err := b.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrUnavailable) {
		t.Fatal(err)
	}
	if got := names(t, b, "parent"); got != "[p q]" {
		t.Fatalf("b has not revived the parents: %s", got)
	}
	c.exec(`DELETE FROM child WHERE name = 'of p'`)
	c.sync()
	remotes["b"].Fault = nil
	rounds(2, b, a, c)
	same(t, a, b, c)
	if got := names(t, b, "parent"); got != "[q]" {
		t.Errorf("parents: %s, want the one that has a child", got)
	}
	if got := b.value(`SELECT count(*) FROM tidemark_revivals`); got != "0" {
		t.Errorf("%s revivals are remembered although everything is up", got)
	}
}

var errNetwork = fmt.Errorf("the network failed: %w", tidemark.ErrUnavailable)
