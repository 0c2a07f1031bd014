package stages_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// world is a remote with one clock and everybody's numbers, and devices that are in
// step with it after every sync.
type world struct {
	t       *testing.T
	now     time.Time
	written messages.Vector
	bucket  *memory.Bucket
	policy  stages.BackupPolicy
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), written: messages.Vector{}, bucket: memory.NewBucket(),
		policy: stages.BackupPolicy{MinRows: 1000, MinBytes: 1 << 30, MaxAge: 24 * time.Hour, Takeover: time.Hour, Keep: 3, Days: 7, Grace: 24 * time.Hour},
	}
}

// device plays the local side: what persistence keeps in SQLite.
type device struct {
	w     *world
	store *memory.Store
	st    messages.BackupStanding
	clock time.Duration // how far its own clock is ahead of the remote's
	made  []string
	size  int
	stale bool // it does not download what others wrote
}

func (w *world) device(name string) *device {
	return &device{w: w, store: w.bucket.Store(), st: messages.BackupStanding{Device: name, Seen: messages.Vector{}}, size: 1000}
}

func (w *world) devices(n int) []*device {
	var all []*device
	for i := range n {
		all = append(all, w.device(fmt.Sprint("device ", i)))
	}
	return all
}

// write uploads rows, each in a commit of its own.
func (d *device) write(rows int) {
	d.w.written[d.st.Device] += int64(rows)
	d.st.Changed += int64(rows)
	d.st.Seen.Raise(d.st.Device, d.w.written[d.st.Device])
}

// download brings what the others wrote.
func (d *device) download() {
	for o, n := range d.w.written {
		d.st.Changed += n - d.st.Seen[o]
		d.st.Seen.Raise(o, n)
	}
}

// try downloads and backs up, and reports whether it made a snapshot.
func (d *device) try() (bool, error) {
	if !d.stale {
		d.download()
	}
	out, err := stages.NewBackUp(d.store, d, d.w.policy).Handle(d.w.t.Context(), messages.TombstonesPurged{})
	if err != nil || out[0].Generation == "" {
		return false, err
	}
	d.made = append(d.made, out[0].Generation)
	return true, nil
}

func (d *device) sync() bool {
	d.w.t.Helper()
	made, err := d.try()
	if err != nil {
		d.w.t.Fatalf("%s: %v", d.st.Device, err)
	}
	return made
}

func (d *device) BackupStanding(context.Context) (messages.BackupStanding, error) {
	st := d.st
	st.Seen = st.Seen.Clone()
	st.Now = d.w.now.UnixMilli()
	return st, nil
}

func (d *device) Snapshot(_ context.Context, generation string, madeOn int64, _ messages.Snapshot) (messages.Snapshot, io.ReadCloser, error) {
	s := messages.Snapshot{
		Generation: generation, MadeOn: madeOn, Device: d.st.Device, Seen: d.st.Seen.Clone(), RawSize: int64(d.size),
		DownloadedTill: map[string]int64{},
	}
	return s, io.NopCloser(bytes.NewReader(make([]byte, d.size))), nil
}

func (d *device) BackedUp(_ context.Context, s messages.Snapshot) error {
	d.st.BackedUp, d.st.Generation, d.st.Maker = s.Seen, s.Generation, s.Device
	d.st.Changed, d.st.ChangedBytes, d.st.DueSince, d.st.KnownSince = 0, 0, 0, d.w.now.UnixMilli()
	return nil
}

func (d *device) AwaitTurn(context.Context) error {
	d.st.DueSince = d.w.now.UnixMilli()
	return nil
}

func (d *device) Step(context.Context, messages.Step) error { return nil }

// manifest reads what the store says now.
func (w *world) manifest() messages.Manifest {
	w.t.Helper()
	m, _, err := stages.ReadManifest(w.t.Context(), w.bucket.Store(), &messages.StoreUse{})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// day lets every device write a row and sync once a minute, for so many minutes, and
// counts the snapshots of each.
func (w *world) minutes(n int, devices ...*device) (made map[string]int) {
	w.t.Helper()
	made = map[string]int{}
	for range n {
		for _, d := range devices {
			d.write(1)
			if d.sync() {
				made[d.st.Device]++
			}
		}
		w.now = w.now.Add(time.Minute)
	}
	return made
}

const aDay = 24 * 60 // minutes

func put(t *testing.T, w *world, m messages.Manifest) {
	t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.bucket.Store().Put(t.Context(), messages.ManifestKey, bytes.NewReader(raw), messages.Condition{}); err != nil {
		t.Fatal(err)
	}
}
