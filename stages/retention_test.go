package stages_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// The newest few stay, and the last of each day for a week.
func TestRetention(t *testing.T) {
	w := newWorld(t)
	d := w.device("a")
	var made []messages.Snapshot
	for range 30 * 4 { // every six hours for 30 days
		d.write(1000)
		if !d.sync() {
			t.Fatal("no snapshot")
		}
		made = append(made, w.manifest().Current)
		w.now = w.now.Add(6 * time.Hour)
	}
	slices.Reverse(made)
	want := made[:1+3] // the current one and three older ones: all of the last day
	for day := 1; day < 7; day++ {
		want = append(want, made[4*day]) // the last of each day before
	}
	got := w.manifest().Snapshots()
	same := func(a, b messages.Snapshot) bool { return a.Generation == b.Generation }
	if !slices.EqualFunc(got, want, same) {
		for _, s := range got {
			t.Log(s.Generation)
		}
		t.Fatalf("%d snapshots stay, want the newest four and six of the days before", len(got))
	}
	// Beside them: the probe, the manifest, and what was retired within the last day.
	if n := len(w.bucket.Keys()); n > 2+len(want)+4+1 {
		t.Errorf("%d objects for %d snapshots: %q", n, len(want), w.bucket.Keys())
	}
	complete(t, w)
}

func TestRetentionOfOne(t *testing.T) {
	w := newWorld(t)
	w.policy.Keep, w.policy.Days = 0, 0
	d := w.device("a")
	for range 10 {
		d.write(1000)
		d.sync()
		w.now = w.now.Add(25 * time.Hour)
	}
	if m := w.manifest(); len(m.Older) != 0 {
		t.Errorf("%d older snapshots", len(m.Older))
	}
	complete(t, w)
}

// A restore that began before its snapshot was dropped still reads all of it, for a
// day; then the object goes.
func TestARestoreInFlightFinishes(t *testing.T) {
	w := newWorld(t)
	w.policy.Keep, w.policy.Days = 1, 0
	d := w.device("a")
	d.write(1)
	d.sync()
	reading := w.manifest().Current
	next := func(after time.Duration) {
		w.now = w.now.Add(after)
		d.write(1000)
		if !d.sync() {
			t.Fatal("no snapshot")
		}
	}
	next(time.Minute)
	next(time.Minute)
	if slices.ContainsFunc(w.manifest().Snapshots(), func(s messages.Snapshot) bool { return s.Key == reading.Key }) {
		t.Fatal("it was not dropped")
	}
	for range 23 {
		next(time.Hour)
		body, _, err := w.bucket.Store().Get(t.Context(), reading.Key, 0)
		if err != nil {
			t.Fatalf("the snapshot that a restore reads: %v", err)
		}
		if raw, err := io.ReadAll(body); err != nil || int64(len(raw)) != reading.Size {
			t.Fatalf("the snapshot that a restore reads: %d bytes, %v", len(raw), err)
		}
	}
	next(2 * time.Hour)
	if slices.Contains(w.bucket.Keys(), reading.Key) {
		t.Error("a day later it is still there")
	}
	complete(t, w)
}

// What a crash left behind is found once a day, waits for another day like everything
// else, and goes; what somebody else put there stays.
func TestOrphans(t *testing.T) {
	w := newWorld(t)
	w.policy.Keep, w.policy.Days = 1, 0
	d := w.device("a")
	lists := 0
	d.store.Fault = func(c memory.StoreCall) memory.StoreFault {
		if c.Op == memory.OpList {
			lists++
		}
		return memory.StoreFault{}
	}
	const orphan, foreign = "snapshots/20260101T000000.000Z-0123abcd.db.zst", "snapshots/do-not-touch.zip"
	for _, k := range []string{orphan, foreign} {
		if _, err := w.bucket.Store().Put(t.Context(), k, strings.NewReader("x"), messages.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	for h := range 72 {
		d.write(1000)
		d.sync()
		if there := slices.Contains(w.bucket.Keys(), orphan); there != (h < 48) {
			t.Fatalf("after %d hours: is it there? %v", h, there)
		}
		w.now = w.now.Add(time.Hour)
	}
	if !slices.Contains(w.bucket.Keys(), foreign) {
		t.Error("somebody else's file is gone")
	}
	if lists != 2 {
		t.Errorf("the store was listed %d times in three days", lists)
	}
	complete(t, w)
}

// An upload that stands still for days between its snapshot and its manifest loses
// the race; it never wins with a snapshot that was taken for an orphan and removed.
func TestAnUploadThatSleeps(t *testing.T) {
	w := newWorld(t)
	w.policy.Takeover = 0
	a, b := w.device("a"), w.device("b")
	w.minutes(1, a, b)
	a.write(1000)
	asleep := false
	a.store.Fault = func(c memory.StoreCall) memory.StoreFault {
		if !asleep && c.Op == memory.OpPut && c.Key == messages.ManifestKey {
			asleep = true
			for range 5 {
				w.now = w.now.Add(24 * time.Hour)
				b.write(1000)
				b.sync()
			}
		}
		return memory.StoreFault{}
	}
	if a.sync() {
		t.Error("it won")
	}
	complete(t, w)
	if n := len(w.bucket.Keys()); n != 2+len(w.manifest().Snapshots()) {
		t.Errorf("left behind: %q", w.bucket.Keys())
	}
}

// A store that refuses to delete, or to list, ends no backup.
func TestAStoreThatDeletesNothing(t *testing.T) {
	w := newWorld(t)
	w.policy.Keep, w.policy.Days = 0, 0
	d := w.device("a")
	deletes := 0
	d.store.Fault = func(c memory.StoreCall) memory.StoreFault {
		switch c.Op {
		case memory.OpDelete:
			deletes++
			return memory.StoreFault{Before: messages.ErrUnauthorized}
		case memory.OpList:
			return memory.StoreFault{Before: messages.ErrUnauthorized}
		}
		return memory.StoreFault{}
	}
	for n := range 10 {
		d.write(1000)
		if !d.sync() {
			t.Fatal("no snapshot")
		}
		if deletes > n {
			t.Fatalf("%d refused deletes in %d backups", deletes, n)
		}
		w.now = w.now.Add(25 * time.Hour)
	}
	complete(t, w)
	d.store.Fault = nil
	d.write(1000)
	d.sync()
	if n := len(w.bucket.Keys()); n != 3+len(w.manifest().Retired) {
		t.Errorf("once it may, it does not clean up: %q", w.bucket.Keys())
	}
}

// A manifest is data from outside: it cannot make us remove what it names, nor
// anything outside the snapshots' folder.
func TestAManifestThatRetiresTooMuch(t *testing.T) {
	w := newWorld(t)
	d := w.device("a")
	w.minutes(1, d)
	m := w.manifest()
	m.Retired = []messages.Retired{{Key: m.Current.Key, On: 1}}
	put(t, w, m)
	w.now = w.now.Add(48 * time.Hour)
	d.write(1000)
	d.sync()
	complete(t, w)
	m.Retired[0].Key = messages.ManifestKey
	put(t, w, m)
	if _, _, err := stages.ReadManifest(t.Context(), d.store, &messages.StoreUse{}); !errors.Is(err, messages.ErrRejected) {
		t.Errorf("a manifest that retires the manifest: %v", err)
	}
}
