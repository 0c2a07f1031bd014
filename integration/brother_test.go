package integration

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// onStore gives a device a handle of its own on a bucket.
func (f *fleet) onStore(store tidemark.SnapshotStore) *fleet {
	g := *f
	g.store = func() tidemark.SnapshotStore { return store }
	return &g
}

// upload is what one device put into the store.
type upload struct {
	snapshots   int
	puts, bytes int64
	gets        int64
}

// work lets every device write rows and sync at intervals, for so many times.
func work(devices []*device, times, rows int, every time.Duration) map[*device]upload {
	used := map[*device]upload{}
	for range times {
		for _, d := range devices {
			d.notes(rows)
			r := d.sync()
			u := used[d]
			if r.Snapshot != nil {
				u.snapshots++
			}
			u.puts, u.bytes, u.gets = u.puts+r.Store.Puts, u.bytes+r.Store.BytesUp, u.gets+r.Store.Gets
			used[d] = u
			<-time.After(every / time.Duration(len(devices)))
		}
	}
	return used
}

func closeAll(devices []*device) {
	for _, d := range devices {
		_ = d.db.Close()
	}
}

func sum(used map[*device]upload) (all upload, makers int) {
	for _, u := range used {
		all.snapshots += u.snapshots
		all.puts, all.bytes, all.gets = all.puts+u.puts, all.bytes+u.bytes, all.gets+u.gets
		if u.snapshots > 0 {
			makers++
		}
	}
	return all, makers
}

var brotherEvery = flag.Duration("every", time.Hour, "how often the devices of TestBigBrotherOverADay sync")

// Five devices, each of which writes a row a minute, over a day; and the same with a
// bucket for each of them, which is what it costs when everybody uploads.
func TestBigBrotherOverADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const day, each = 24 * time.Hour, 5
		times, rows := int(day / *brotherEvery), int(*brotherEvery/time.Minute)
		var cost [2]upload
		for i, alone := range []bool{false, true} {
			f := newFleet(t, oneTable)
			var devices []*device
			for n := range each {
				g := f
				if alone {
					g = f.onStore(memory.NewStore())
				}
				devices = append(devices, g.device(fmt.Sprint("d", n)))
			}
			defer closeAll(devices)
			devices[0].notes(1)
			devices[0].sync() // it is the first one
			used := work(devices, times, rows, *brotherEvery)
			for _, d := range devices {
				d.sync()
			}
			same(t, devices...)
			var makers int
			if cost[i], makers = sum(used); !alone && makers != 1 {
				t.Errorf("%d devices made snapshots", makers)
			}
		}
		together, apart, all := cost[0], cost[1], each*times*rows
		t.Logf("%d devices, %d rows: one Big Brother %+v, everybody %+v", each, all, together, apart)
		if n := together.snapshots; n < all/1000-2 || n > all/1000+1 {
			t.Errorf("%d snapshots of %d rows, want about one for every thousand", n, all)
		}
		if apart.snapshots < 4*together.snapshots || apart.bytes < 4*together.bytes {
			t.Errorf("turns save little: %+v, everybody by himself %+v", together, apart)
		}
	})
}

// Big Brother vanishes, another device takes over in its time, and the old one, back
// from its holiday, leaves it so.
func TestBigBrotherVanishesAndReturns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		var devices []*device
		for i := range 3 {
			devices = append(devices, f.device(fmt.Sprint("d", i), tidemark.WithBackup(100, 24*time.Hour, 3), tidemark.WithTakeover(3*time.Hour)))
		}
		defer closeAll(devices)
		old := devices[0]
		if used := work(devices, 8, 20, time.Hour); used[old].snapshots == 0 || len(used) != 3 {
			t.Fatalf("before: %v", used)
		}
		before := brother(t, f)
		if all, makers := sum(work(devices[1:], 10, 20, time.Hour)); makers != 1 || all.snapshots == 0 {
			t.Fatalf("%d devices took over, with %+v", makers, all)
		}
		heir := brother(t, f)
		if heir == before {
			t.Fatal("the one that vanished is still Big Brother")
		}
		old.notes(500)
		if r := old.sync(); r.Snapshot != nil {
			t.Error("the old Big Brother came back and uploaded beside the new one")
		}
		work(devices, 10, 20, time.Hour)
		if now := brother(t, f); now != heir {
			t.Errorf("Big Brother was %s and is %s", heir, now)
		}
		f.restore("restored").sync()
	})
}

// brother is who the newest snapshot says made it.
func brother(t *testing.T, f *fleet) string {
	t.Helper()
	list, err := tidemark.Snapshots(t.Context(), f.store())
	if err != nil || len(list) == 0 {
		t.Fatalf("snapshots: %v, %v", list, err)
	}
	return list[0].DeviceID
}

// A restore reads its snapshot a day after another device has dropped it.
func TestARestoreOutlivesItsSnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		a := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0))
		defer func() { _ = a.db.Close() }()
		a.notes(10)
		a.sync()
		store := f.store().(*memory.Store)
		slept := false
		store.Fault = func(c memory.StoreCall) memory.StoreFault {
			if c.Op == memory.OpGet && c.Key != messages.ManifestKey && !slept {
				slept = true
				for range 23 {
					<-time.After(time.Hour)
					a.notes(1)
					if a.sync().Snapshot == nil {
						t.Error("no snapshot")
					}
				}
			}
			return memory.StoreFault{}
		}
		b := f.onStore(store).restore("b")
		defer func() { _ = b.db.Close() }()
		b.sync()
		same(t, a, b)
		<-time.After(25 * time.Hour)
		today := map[string]bool{messages.ManifestKey: true, "conditions-probe": true} // the current one and what was retired
		for range 2 {
			for _, p := range manifest(t, store).Current.Chain() {
				today[p.Key] = true
			}
			a.notes(1)
			a.sync()
		}
		for _, p := range manifest(t, store).Current.Chain() {
			today[p.Key] = true
		}
		for _, key := range store.Bucket().Keys() {
			if !today[key] {
				t.Errorf("%s was dropped more than a day ago and is still there", key)
			}
		}
	})
}

// Sixteen devices back up at the same moment, again and again, on a real S3 server:
// one wins each round, and nobody has an error.
func TestSixteenDevicesRaceForTheManifest(t *testing.T) {
	t.Parallel()
	bucket := servers.S3(t)
	f := newFleet(t, oneTable)
	f.store = func() tidemark.SnapshotStore { return (&line{}).store(t, bucket) }
	writer := f.onStore(nil).device("writer")
	var devices []*device
	for i := range 16 {
		devices = append(devices, f.device(fmt.Sprint("d", i), tidemark.WithBackup(1, time.Hour, 2), tidemark.WithTakeover(0)))
	}
	last := ""
	for round := range 4 {
		writer.notes(1)
		writer.sync()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []string
		for _, d := range devices {
			wg.Go(func() {
				r, err := d.p.Sync(t.Context())
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("round %d, %s: %v", round, filepath.Base(d.path), err)
				}
				if r.Snapshot != nil {
					won = append(won, *r.Snapshot)
				}
			})
		}
		wg.Wait()
		list, err := tidemark.Snapshots(t.Context(), f.store())
		if err != nil {
			t.Fatal(err)
		}
		if len(won) != 1 || won[0] != list[0].Generation || list[0].Generation == last {
			t.Errorf("round %d: %v won, and the newest snapshot is %s after %s", round, won, list[0].Generation, last)
		}
		last = list[0].Generation
	}
	restored := f.restore("restored")
	restored.sync()
	same(t, restored, devices[0])
}

// Who is behind holds back the removal of tombstones, for ninety days.
func TestDevices(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		a, b, c := f.device("a", tidemark.WithDevice("Ada's phone", "1.2")), f.device("b"), f.device("c")
		defer closeAll([]*device{a, b, c})
		a.notes(1)
		for _, d := range []*device{a, b, c} {
			d.sync()
		}
		a.notes(1)
		a.sync()
		b.sync()
		status := func(d *device) tidemark.DeviceStatus {
			t.Helper()
			fleet, err := a.p.Devices(t.Context())
			if err != nil || len(fleet.Devices) != 3 {
				t.Fatalf("%+v, %v", fleet, err)
			}
			id := strings1(t.Context(), t, d.db.DB, `SELECT installationId FROM tidemark_state`)[0]
			for _, s := range fleet.Devices {
				if s.DeviceID == id {
					return s
				}
			}
			t.Fatalf("%s is not among %+v", id, fleet.Devices)
			return tidemark.DeviceStatus{}
		}
		if s := status(a); !s.This || !s.BigBrother || s.Name != "Ada's phone" || s.Seq != 2 || s.UploadedOn == nil || s.Behind != 0 || s.HoldsBackPurge {
			t.Errorf("a: %+v", s)
		}
		if s := status(c); s.This || s.BigBrother || s.Seq != 0 || s.UploadedOn != nil || s.Behind != 1 || !s.HoldsBackPurge {
			t.Errorf("c, one upload behind: %+v", s)
		}
		<-time.After(25 * time.Hour)
		c.sync() // it tells once a day how far it has read
		if s := status(c); s.Behind != 0 || s.HoldsBackPurge {
			t.Errorf("c, in step: %+v", s)
		}
		a.notes(1)
		a.sync()
		<-time.After(89 * 24 * time.Hour)
		if s := status(c); s.Behind != 1 || !s.HoldsBackPurge {
			t.Errorf("c, silent for 89 days: %+v", s)
		}
		<-time.After(2 * 24 * time.Hour)
		if s := status(c); s.Behind != 1 || s.HoldsBackPurge {
			t.Errorf("c, silent for 91 days: %+v", s)
		}
	})
}

func TestAStoreWithoutConditionsIsRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	store := memory.NewStore()
	store.IgnoreConditions = true
	f.store = func() tidemark.SnapshotStore { return store }
	a := f.device("a")
	a.notes(1)
	r, err := a.p.Sync(t.Context())
	if !errors.Is(err, tidemark.ErrNoConditions) || r.Total().Uploaded != 1 {
		t.Errorf("a store without conditions: %+v, %v", r, err)
	}
	if r := f.on(a.path, a.db, tidemark.WithUnconditionalStore()).sync(); r.Snapshot == nil {
		t.Errorf("accepted, and there is no snapshot: %+v", r)
	}
	f.restore("b").sync()
}

// A device in step that is given another store looks into it, once, and makes a snapshot
// there when it has none.
func TestAnotherStore(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(3)
	first := a.sync()
	b := f.device("b")
	b.sync()
	// used is what the store was asked for by a cycle that moves nothing.
	used := func(d *device, full bool) (tidemark.Report, int64) {
		t.Helper()
		sync := d.p.Sync
		if full {
			sync = d.p.SyncFull
		}
		r, err := sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r, r.Store.Gets + r.Store.Puts
	}
	bucket := memory.NewBucket()
	other := f.onStore(bucket.Store())
	for name, d := range map[string]*device{"Big Brother": a, "another device": b} {
		if _, n := used(d, false); n != 0 {
			t.Errorf("%s, in step: %d requests", name, n)
		}
	}
	a = other.on(a.path, a.db)
	r, _ := used(a, false)
	if r.Snapshot == nil || *r.Snapshot != manifest(t, bucket.Store()).Current.Generation || len(r.Warnings) != 1 {
		t.Fatalf("a store without a snapshot: %+v", r)
	}
	second := *r.Snapshot
	knows := func(d *device, generation string) {
		t.Helper()
		st, err := d.p.Status(t.Context())
		if err != nil || st.Snapshot == nil || st.Snapshot.Generation != generation {
			t.Errorf("%s knows of %+v, %v; want %s", filepath.Base(d.path), st.Snapshot, err, generation)
		}
	}
	knows(a, second)
	b = other.on(b.path, b.db)
	if r, n := used(b, false); r.Snapshot != nil || n != 1 {
		t.Errorf("a store that has one: %d requests, %+v", n, r)
	}
	knows(b, second)
	b = f.on(b.path, b.db) // and back
	if r, n := used(b, false); r.Snapshot != nil || n != 1 || len(r.Warnings) != 0 {
		t.Errorf("a store that has one: %d requests, %+v", n, r)
	}
	knows(b, *first.Snapshot)
	for name, d := range map[string]*device{"Big Brother": a, "another device": b} {
		if _, n := used(d, false); n != 0 {
			t.Errorf("%s asks for ever: %d requests", name, n)
		}
	}

	// What was restored knows where it came from.
	c := other.restore("c")
	if _, n := used(c, false); n != 0 {
		t.Errorf("a restored file: %d requests", n)
	}

	// One that was emptied is found out by a full sync, as all that nobody announced.
	if r, n := used(a, true); n != 1 || r.Snapshot != nil {
		t.Errorf("a full sync: %d requests, %+v", n, r)
	}
	if err := bucket.Store().Delete(t.Context(), messages.ManifestKey); err != nil {
		t.Fatal(err)
	}
	if r, n := used(c, false); n != 0 || r.Snapshot != nil {
		t.Errorf("an emptied store: %d requests, %+v", n, r)
	}
	if r, _ := used(c, true); r.Snapshot == nil || len(r.Warnings) != 1 {
		t.Errorf("an emptied store, a full sync: %+v", r)
	}
}

// A store that is another one in every process, such as a server on a port of its own,
// does not keep changes from being counted.
func TestAStoreThatMoves(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(1)
	a.sync()
	bucket := f.store()
	for i := range 4 {
		a = f.onStore(placed{bucket, strconv.Itoa(i)}).on(a.path, a.db, tidemark.WithBackup(10, 24*time.Hour, 4))
		a.notes(3)
		if r := a.sync(); (r.Snapshot != nil) != (i == 3) {
			t.Errorf("after %d rows: snapshot %v", 3*(i+1), r.Snapshot)
		}
	}
}

type placed struct {
	tidemark.SnapshotStore
	place string
}

func (p placed) Place() string { return p.place }

// A device that is given the store of another account says so as long as it makes no
// snapshot: nobody else backs its rows up.
func TestAStoreOfAnotherScopeIsSaidEveryTimeNothingIsBackedUp(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]bool{"from the start": false, "after its own": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(t *testing.T) { anotherScopesStore(t, before) })
		})
	}
}

func anotherScopesStore(t *testing.T, before bool) {
	t.Helper()
	opts := []tidemark.Option{tidemark.WithBackup(1, time.Hour, 1), tidemark.WithTakeover(0)}
	f, other := newFleet(t, oneTable), newFleet(t, oneTable)
	x := other.device("x", opts...)
	x.notes(2)
	x.sync()
	theirs := *x.syncLater().Snapshot
	a := f.device("a", opts...)
	a.notes(3)
	if before {
		a.sync()
	}
	a = f.onStore(other.store()).on(a.path, a.db, opts...)
	quiet, made := 0, 0
	for range 5 {
		a.notes(1)
		<-time.After(25 * time.Hour)
		r := a.sync()
		if r.Snapshot != nil {
			made++
		} else if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "another scope") {
			quiet++
		}
	}
	st, err := a.p.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if made == 0 && quiet > 0 {
		t.Errorf("five days of edits, no snapshot, and %d cycles without a word; status knows of snapshot %+v", quiet, st.Snapshot)
	}
	if st.Snapshot != nil && st.Snapshot.Generation == theirs {
		t.Errorf("status says that this device's rows are in snapshot %s, which is another account's", theirs)
	}
}

func (d *device) syncLater() tidemark.Report {
	d.t.Helper()
	d.notes(1)
	<-time.After(2 * time.Hour)
	return d.sync()
}
