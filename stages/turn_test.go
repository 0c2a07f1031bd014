package stages_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

func total(made map[string]int) (n int) {
	for _, k := range made {
		n += k
	}
	return n
}

// Five devices write and sync every minute for a day. Alone, each would upload a
// snapshot for every thousand rows; together one of them does.
func TestOneOfFiveDevicesBacksUp(t *testing.T) {
	w := newWorld(t)
	apart := w.devices(5)
	for _, d := range apart {
		d.store = memory.NewStore() // nobody sees what the others upload
	}
	alone := total(w.minutes(aDay, apart...))

	w = newWorld(t)
	devices := w.devices(5)
	made := w.minutes(aDay, devices...)
	requests := w.bucket.Requests()
	rows := 5 * aDay
	t.Logf("%d rows: %d snapshots, by %v, in %d requests; everybody by himself: %d", rows, total(made), made, requests, alone)
	if len(made) != 1 || made["device 0"] == 0 {
		t.Errorf("snapshots by %v, want all by the first device", made)
	}
	if most := rows/1000 + 1; total(made) > most || total(made) < most-1 {
		t.Errorf("%d snapshots for %d rows, want one for every thousand", total(made), rows)
	}
	if alone < 4*total(made) {
		t.Errorf("everybody by himself makes %d snapshots, together %d: turns save little", alone, total(made))
	}
	// A snapshot is two PUTs and a GET; everybody else looks at most once a snapshot.
	if most := int64(total(made)*(3+4) + 10); requests > most {
		t.Errorf("%d requests for %d snapshots, want at most %d", requests, total(made), most)
	}
}

// While nothing is due, and while a device waits for its turn, the store is not asked.
func TestWaitingAsksNothing(t *testing.T) {
	w := newWorld(t)
	brother, other := w.device("brother"), w.device("other")
	w.minutes(1, brother, other)
	before := w.bucket.Requests()
	for range 59 { // an hour of waiting, all thresholds reached
		other.write(1000)
		other.sync()
		w.now = w.now.Add(time.Minute)
	}
	if n := w.bucket.Requests() - before; n != 0 {
		t.Errorf("a device that waits for Big Brother made %d requests", n)
	}
	brother.sync()
	before = w.bucket.Requests()
	for range 100 {
		brother.sync()
		w.now = w.now.Add(time.Hour)
	}
	if n := w.bucket.Requests() - before; n != 0 {
		t.Errorf("idle cycles made %d requests", n)
	}
}

// Bytes and age are reasons too, but not for nothing.
func TestThresholds(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world, *device)
		due    bool
	}{
		"nothing":             {func(w *world, _ *device) { w.now = w.now.Add(1000 * time.Hour) }, false},
		"a row":               {func(_ *world, d *device) { d.write(1) }, false},
		"rows":                {func(_ *world, d *device) { d.write(1000) }, true},
		"bytes":               {func(_ *world, d *device) { d.write(1); d.st.ChangedBytes = 1 << 30 }, true},
		"a row, a day old":    {func(w *world, d *device) { d.write(1); w.now = w.now.Add(24 * time.Hour) }, true},
		"half a download":     {func(_ *world, d *device) { d.write(1000); d.st.Open = true }, false},
		"something to upload": {func(_ *world, d *device) { d.write(1000); d.st.Dirty = 1 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := w.device("a")
			w.minutes(1, d)
			c.change(w, d)
			if got := d.sync(); got != c.due {
				t.Errorf("made a snapshot: %v, want %v", got, c.due)
			}
		})
	}
}

// Big Brother is gone: one other device, and only one, makes the snapshot that is
// due, not before the hour has passed and not long after two; it is Big Brother then.
// The old one comes back and leaves it so.
func TestTakeover(t *testing.T) {
	w := newWorld(t)
	devices := w.devices(5)
	w.minutes(300, devices...)
	gone, rest := devices[0], devices[1:]
	was := w.manifest().Current
	if was.Device != gone.st.Device {
		t.Fatalf("Big Brother is %s", was.Device)
	}
	var due, taken time.Time
	made := map[string]int{}
	for m := 0; taken.IsZero(); m++ {
		if m > aDay {
			t.Fatal("nobody takes over")
		}
		for _, d := range rest {
			if due.IsZero() && d.st.DueSince != 0 && d.st.Generation == was.Generation {
				due = w.now
			}
		}
		for d, n := range w.minutes(1, rest...) {
			made[d] += n
			taken = w.now
		}
	}
	if wait := taken.Sub(due); wait < time.Hour || wait > 2*time.Hour+5*time.Minute {
		t.Errorf("taken over %v after it was due, want between one and two hours", wait)
	}
	for d, n := range w.minutes(180, rest...) { // the others notice
		made[d] += n
	}
	if len(made) != 1 {
		t.Errorf("snapshots by %v, want one new Big Brother", made)
	}
	heir := w.manifest().Current.Device
	for d, n := range w.minutes(aDay, devices...) {
		if d != heir && n > 0 {
			t.Errorf("%s made %d snapshots beside Big Brother %s", d, n, heir)
		}
	}
}

// A device that was away for days finds itself Big Brother no more, and one that
// stays away for good is missed once a day even when little changes.
func TestTakeoverByAge(t *testing.T) {
	w := newWorld(t)
	a, b := w.device("a"), w.device("b")
	w.minutes(1, a, b)
	b.write(1)
	for w.manifest().Current.Device == "a" {
		if w.now.Sub(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)) > 27*time.Hour {
			t.Fatal("nobody takes over")
		}
		b.sync()
		w.now = w.now.Add(time.Minute)
	}
	if age := w.now.Sub(time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)); age < 25*time.Hour {
		t.Errorf("taken over after %v", age)
	}
	a.write(5000)
	if a.sync() {
		t.Error("the old Big Brother uploads beside the new one")
	}
	if a.st.Maker != "b" {
		t.Errorf("it takes %q for Big Brother", a.st.Maker)
	}
}

// The clocks of devices do not matter, not even by years: turns go by the remote's,
// and so does what the manifest says.
func TestDevicesWithWrongClocks(t *testing.T) {
	w := newWorld(t)
	start := w.now
	devices := w.devices(3)
	for i, d := range devices {
		d.clock = time.Duration(i-1) * 7 * 365 * 24 * time.Hour
	}
	if made := w.minutes(1000, devices...); made["device 0"] != 3 || len(made) != 1 {
		t.Errorf("3,000 rows: snapshots by %v, want three by the first device", made)
	}
	if made := w.minutes(1000, devices[1:]...); len(made) != 1 {
		t.Errorf("Big Brother is gone: snapshots by %v, want one heir", made)
	}
	last := w.now.UnixMilli()
	for _, s := range w.manifest().Snapshots() {
		if s.MadeOn > last || s.MadeOn < start.UnixMilli() {
			t.Errorf("snapshot %s says it was made %v", s.Generation, time.UnixMilli(s.MadeOn))
		}
		last = s.MadeOn
	}
}

// Two devices upload at once, for whatever reason: one snapshot becomes the current
// one, the other is gone from the store, and neither device has an error.
func TestTwoBigBrothersAtOnce(t *testing.T) {
	for name, when := range map[string]func(memory.StoreCall) bool{
		"the other comes before the upload":   func(c memory.StoreCall) bool { return c.Op == memory.OpPut && c.Key != messages.ManifestKey },
		"the other comes before the manifest": func(c memory.StoreCall) bool { return c.Op == memory.OpPut && c.Key == messages.ManifestKey },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy.Takeover = 0
			a, b := w.device("a"), w.device("b")
			w.minutes(1, a, b)
			a.write(1000)
			b.download()
			met := false
			a.store.Fault = func(c memory.StoreCall) memory.StoreFault {
				if !met && when(c) {
					met = true
					if !b.sync() {
						t.Error("b made no snapshot")
					}
				}
				return memory.StoreFault{}
			}
			if a.sync() {
				t.Error("both made the current snapshot")
			}
			m := w.manifest()
			if m.Current.Device != "b" || a.st.Generation != m.Current.Generation {
				t.Errorf("the manifest is %s's, and a knows %s", m.Current.Device, a.st.Generation)
			}
			named := []string{"conditions-probe", messages.ManifestKey, m.Older[0].Key, m.Current.Key}
			if keys := w.bucket.Keys(); len(keys) != len(named) {
				t.Errorf("the store has %q, want only %q", keys, named)
			}
		})
	}
}

// A device that is cut off anywhere leaves a manifest whose snapshots are all there,
// and the next one goes on.
func TestCutOffAnywhere(t *testing.T) {
	gone := errors.Join(messages.ErrUnavailable, errors.New("the line is dead"))
	for n := int64(1); ; n++ {
		w := newWorld(t)
		a := w.device("a")
		w.minutes(1, a)
		a.write(1000)
		first, reached := a.store, false
		a.store = w.bucket.Store()
		a.store.Fault = func(c memory.StoreCall) memory.StoreFault {
			if c.N != (n+1)/2 {
				return memory.StoreFault{}
			}
			reached = true
			if n%2 == 0 {
				return memory.StoreFault{After: gone}
			}
			return memory.StoreFault{Before: gone}
		}
		_, err := a.try()
		if !reached {
			break
		}
		if !errors.Is(err, messages.ErrUnavailable) {
			t.Errorf("request %d: %v", n, err)
		}
		complete(t, w)
		a.store = first
		a.write(1000)
		a.sync()
		a.write(1000)
		if !a.sync() {
			t.Errorf("request %d: no snapshot afterwards", n)
		}
		complete(t, w)
	}
}

// complete fails unless every object that the manifest names is in the store.
func complete(t *testing.T, w *world) {
	t.Helper()
	there := map[string]bool{}
	for _, k := range w.bucket.Keys() {
		there[k] = true
	}
	for _, s := range w.manifest().Snapshots() {
		for _, k := range s.Objects() {
			if !there[k] {
				t.Errorf("the manifest names %s, and it is gone", k)
			}
		}
	}
}

func TestAStoreWithoutConditions(t *testing.T) {
	w := newWorld(t)
	a := w.device("a")
	a.store.IgnoreConditions = true
	a.write(1)
	_, err := a.try()
	if !errors.Is(err, stages.ErrNoConditions) || !errors.Is(err, messages.ErrRejected) || !strings.Contains(err.Error(), "If-None-Match") {
		t.Errorf("a store without conditions: %v", err)
	}
	for _, k := range w.bucket.Keys() {
		if k != "conditions-probe" {
			t.Errorf("it was used all the same: %s", k)
		}
	}
	w.policy.Unconditional = true
	if !a.sync() {
		t.Fatal("it was accepted, and there is no snapshot")
	}
	if w.manifest().Conditional {
		t.Error("the manifest tells others that the store has conditions")
	}
	// Somebody else does not accept it.
	w.policy.Unconditional = false
	b := w.device("b")
	b.store.IgnoreConditions = true
	w.policy.Takeover = 0
	b.sync()
	b.write(1000)
	if _, err := b.try(); !errors.Is(err, stages.ErrNoConditions) {
		t.Errorf("the second device: %v", err)
	}
	w.policy.Unconditional = true
	if !b.sync() || len(w.manifest().Older) != 1 {
		t.Errorf("the second device, accepting it: %+v", w.manifest())
	}
}

// A store is tried once, by whoever comes first, and not by every device.
func TestConditionsAreTriedOnce(t *testing.T) {
	w := newWorld(t)
	w.policy.Takeover = 0
	probes := 0
	devices := w.devices(3)
	for _, d := range devices {
		d.store.Fault = func(c memory.StoreCall) memory.StoreFault {
			if c.Op == memory.OpPut && c.Key == "conditions-probe" {
				probes++
			}
			return memory.StoreFault{}
		}
	}
	made := w.minutes(1200, devices...)
	if total(made) < 3 || probes != 3 {
		t.Errorf("%d snapshots and %d requests to try the store, want 3", total(made), probes)
	}
}
