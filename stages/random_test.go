package stages_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// Devices come and go, lines break anywhere, an upload is overtaken by others that
// may take days. At every moment: what the manifest names is there, and what a
// manifest of the last day named is there too. In peace there is one Big Brother, and
// nothing stays that nobody needs.
func TestRandomTurns(t *testing.T) {
	const seeds = 25
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { randomTurns(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func randomTurns(t *testing.T, rnd *rand.Rand) {
	w := newWorld(t)
	w.policy.Takeover = time.Duration(rnd.IntN(3)) * time.Hour
	w.policy.Keep, w.policy.Days = rnd.IntN(4), rnd.IntN(4)
	w.policy.MinRows = int64(1 + rnd.IntN(200))
	gone := errors.Join(messages.ErrUnavailable, errors.New("the line is dead"))
	devices := w.devices(2 + rnd.IntN(4))
	bad, nested := 0.02, 0
	type reading struct {
		since time.Time
		m     messages.Manifest
	}
	var readings []reading
	for _, d := range devices {
		d.store.Fault = func(c memory.StoreCall) memory.StoreFault {
			if c.Op == memory.OpPut && nested < 2 && rnd.Float64() < 2*bad { // somebody overtakes it
				nested++
				w.now = w.now.Add(time.Duration(rnd.Int64N(int64(60 * time.Hour))))
				o := devices[rnd.IntN(len(devices))]
				if o != d {
					o.write(rnd.IntN(400))
					_, _ = o.try() // a line may break here as well
				}
				nested--
			}
			switch x := rnd.Float64(); {
			case x < bad:
				return memory.StoreFault{Before: gone}
			case x < 2*bad:
				return memory.StoreFault{After: gone}
			}
			return memory.StoreFault{}
		}
	}
	check := func() {
		t.Helper()
		keys := map[string]bool{}
		for _, k := range w.bucket.Keys() {
			keys[k] = true
		}
		if !keys[messages.ManifestKey] {
			return
		}
		now := w.manifest()
		if n := len(readings); n > 0 && !now.Current.Seen.Covers(readings[n-1].m.Current.Seen) {
			t.Fatalf("snapshot %s, which has seen less, replaced %s", now.Current.Generation, readings[n-1].m.Current.Generation)
		}
		readings = append(slices.DeleteFunc(readings, func(r reading) bool { return w.now.Sub(r.since) >= w.policy.Grace }), reading{w.now, now})
		for _, r := range readings {
			for _, s := range r.m.Snapshots() {
				for _, k := range s.Objects() {
					if !keys[k] {
						t.Fatalf("%s is gone %v after a manifest named it", k, w.now.Sub(r.since))
					}
				}
			}
		}
	}
	for range 150 {
		d := devices[rnd.IntN(len(devices))]
		d.write(rnd.IntN(100))
		d.stale = rnd.IntN(4) == 0
		if _, err := d.try(); err != nil && !errors.Is(err, gone) && !errors.Is(err, messages.ErrUnavailable) {
			t.Fatal(err)
		}
		check()
		w.now = w.now.Add(time.Duration(rnd.Int64N(int64(8 * time.Hour))))
		if rnd.IntN(40) == 0 { // a new phone
			i := rnd.IntN(len(devices))
			fault := devices[i].store.Fault
			devices[i] = w.device(fmt.Sprintf("device %d at %v", i, w.now))
			devices[i].store.Fault = fault
		}
	}
	bad = 0
	for _, d := range devices {
		d.stale = false
	}
	var last map[string]int
	for day := range 8 {
		last = map[string]int{}
		for range 24 {
			for _, d := range devices {
				d.write(1 + int(w.policy.MinRows)/8)
				if d.sync() {
					last[d.st.Device]++
				}
			}
			w.now = w.now.Add(time.Hour)
			check()
		}
		if day > 0 && len(last) != 1 && w.policy.Takeover > 0 {
			t.Errorf("day %d of peace: snapshots by %v", day, last)
		}
	}
	m := w.manifest()
	want := map[string]bool{messages.ManifestKey: true, "conditions-probe": true}
	for _, s := range m.Snapshots() {
		want[s.Key] = true
	}
	for _, r := range m.Retired {
		want[r.Key] = true
		if age := w.now.Sub(time.UnixMilli(r.On)); age > 26*time.Hour {
			t.Errorf("%s is retired since %v", r.Key, age)
		}
	}
	for _, k := range w.bucket.Keys() {
		if !want[k] && k < "snapshots/"+w.now.Add(-25*time.Hour).Format("20060102T") {
			t.Errorf("%s stays, and nobody needs it", k)
		}
	}
}
