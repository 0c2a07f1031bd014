package tidemark

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// Forgotten says what was forgotten, or with ForgetDryRun what would be.
type Forgotten struct {
	// Scope is the remote's; DeviceID this device's, "" when a scope was forgotten.
	Scope    string `json:"scope"`
	DeviceID string `json:"deviceId"`
	// Registered: this device had a record in Devices.
	Registered bool `json:"registered"`
	// Unsynced is how many of its rows and deletes no other device has, LocalOnly how
	// many rows lie in tables that are not synced, Conflicts how many versions are kept
	// that lost. All of them go with the database file.
	Unsynced  int64            `json:"unsynced"`
	LocalOnly map[string]int64 `json:"localOnly"`
	Conflicts int64            `json:"conflicts"`
	// Documents per table (tombstones included), Devices and Objects of a scope.
	Documents   map[string]int64 `json:"documents"`
	Devices     int64            `json:"devices"`
	Objects     int64            `json:"objects"`
	ObjectBytes int64            `json:"objectBytes"`
	// Marked: the scope is marked as forgotten; an earlier run may have been cut off.
	Marked bool              `json:"marked"`
	Billed messages.Billed   `json:"billed"`
	Store  messages.StoreUse `json:"store"`
	// Remains says, a sentence each, what is not gone.
	Remains []string `json:"remains"`
}

type forgetSettings struct {
	dryRun, unsynced bool
	tables           []string
	progress         func(removed int64)
}

// ForgetOption changes how something is forgotten.
type ForgetOption func(*forgetSettings)

// ForgetDryRun only says what would go.
func ForgetDryRun() ForgetOption { return func(s *forgetSettings) { s.dryRun = true } }

// ForgetUnsynced forgets a device although it has rows that exist nowhere else.
func ForgetUnsynced() ForgetOption { return func(s *forgetSettings) { s.unsynced = true } }

// ForgetTables names tables whose documents go with a scope beside those that a device
// ever uploaded to.
func ForgetTables(names ...string) ForgetOption {
	return func(s *forgetSettings) { s.tables = append(s.tables, names...) }
}

// ForgetProgress is called with how many documents and objects were removed so far.
func ForgetProgress(f func(removed int64)) ForgetOption {
	return func(s *forgetSettings) { s.progress = f }
}

func forgetting(opts []ForgetOption) forgetSettings {
	s := forgetSettings{progress: func(int64) {}}
	for _, o := range opts {
		o(&s)
	}
	return s
}

// Forget forgets this device: its record loses name, platform and version, and no longer
// holds back the purge of tombstones. Its number stays in Devices, because the others
// compare it, and so do its documents: they are everybody's. The database is marked and
// is not synced any more; the application closes it and removes the files.
//
// With rows that exist nowhere else it is refused with ErrUnsynced, see ForgetUnsynced.
// After an error nothing is lost, and another Forget goes on.
func (p *Pipeline) Forget(ctx context.Context, opts ...ForgetOption) (Forgotten, error) {
	s := forgetting(opts)
	p.mu.Lock()
	defer p.mu.Unlock()
	out := Forgotten{Scope: p.remote.Scope(), LocalOnly: map[string]int64{}, Documents: map[string]int64{}, Remains: []string{}}
	unlock, err := p.acquire(ctx)
	if err != nil {
		return out, err
	}
	defer unlock()
	if err := p.local.CheckScope(ctx, out.Scope); err != nil && !errors.Is(err, ErrForgotten) {
		return out, fmt.Errorf("forget this device: %w", err)
	}
	st, err := p.local.Standing(ctx)
	if err != nil {
		return out, fmt.Errorf("forget this device: %w", err)
	}
	out.DeviceID, out.Registered = st.InstallationID, st.RecordVersion != 0
	if out.Unsynced, out.LocalOnly, out.Conflicts, err = p.local.OnlyHere(ctx); err != nil {
		return out, fmt.Errorf("forget this device: %w", err)
	}
	out.Remains = []string{
		"The record of this device stays in Devices with its number, without name, platform and version.",
		"The documents that it uploaded, and the snapshots, are everybody's and stay; each names this device by its random id.",
	}
	if s.dryRun {
		return out, nil
	}
	if !s.unsynced && (out.Unsynced > 0 || len(out.LocalOnly) > 0) {
		return out, fmt.Errorf("forget this device: %s exist nowhere else: sync first, copy away what is not synced, or give them up: %w", onlyHere(out), ErrUnsynced)
	}
	if out.Registered, err = stages.ForgetDevice(ctx, p.remote, p.local, &out.Billed); err != nil {
		return out, fmt.Errorf("forget this device: %w", err)
	}
	return out, nil
}

// onlyHere counts what exists nowhere else.
func onlyHere(f Forgotten) string {
	var n int64
	for _, rows := range f.LocalOnly {
		n += rows
	}
	switch {
	case n == 0:
		return fmt.Sprintf("%d rows and deletes that were never uploaded", f.Unsynced)
	case f.Unsynced == 0:
		return fmt.Sprintf("%d rows of tables that are not synced (%s)", n, someOf(slices.Sorted(maps.Keys(f.LocalOnly))))
	}
	return fmt.Sprintf("%d rows and deletes that were never uploaded, and %d rows of tables that are not synced (%s)", f.Unsynced, n, someOf(slices.Sorted(maps.Keys(f.LocalOnly))))
}

// ForgetScope forgets everything below a remote's scope and in a store (which may be
// nil): documents, devices and snapshots, for every device. There is no way back. A store
// with snapshots of another scope is refused with ErrOtherScope, and nothing is done.
//
// First it leaves a marker, a record with the id "forgotten", which stays: every device
// finds it at its next check and stops with ErrForgotten, its own rows untouched. Then no
// device can upload on top of what it wrote last. Only then anything is removed, so one
// that was cut off hurts nobody, and another ForgetScope goes on from there. It is billed
// a read and a delete a document, and with ForgetDryRun a read.
func ForgetScope(ctx context.Context, remote Remote, store SnapshotStore, opts ...ForgetOption) (Forgotten, error) {
	s := forgetting(opts)
	out := Forgotten{Scope: remote.Scope(), LocalOnly: map[string]int64{}}
	var objects stages.ObjectStore
	if store != nil {
		objects = store
	}
	var removed int64
	f := stages.NewForgetScope(remote, objects, out.Scope, s.tables, rand.Text, func(n int64) {
		removed += n
		s.progress(removed)
	})
	work := f.Remove
	if s.dryRun {
		work = f.Look
	}
	in, err := work(ctx)
	out.Documents, out.Devices = in.Documents, int64(len(in.Devices))
	out.Objects, out.ObjectBytes = int64(len(in.Objects)), in.ObjectBytes
	out.Marked, out.Billed, out.Store = in.Marked, in.Billed, in.Store
	out.Remains = scopeRemains(in, store)
	if err != nil {
		return out, fmt.Errorf("forget the scope: %w", err)
	}
	if a, ok := store.(interface {
		AbortUploads(ctx context.Context) (known bool, err error)
	}); ok && !s.dryRun {
		known, err := a.AbortUploads(ctx)
		if err != nil {
			return out, fmt.Errorf("forget the scope: %w", err)
		}
		if !known {
			out.Remains = append(out.Remains, "Unfinished uploads of snapshots, if there are any: this account may not list them. The bucket's lifecycle rule aborts them (pipeline s3-policy).")
		}
	}
	return out, nil
}

func scopeRemains(in stages.Inventory, store SnapshotStore) []string {
	remains := []string{
		`A record with the id "forgotten" in Devices, with no data in it: devices that come back later stop there. Remove it by hand when no copy of the database is left anywhere.`,
		"The database files of the devices, and copies of them: each is removed where it is (pipeline forget --db FILE).",
		"Documents that programs of your own wrote into collections which no device ever uploaded to.",
		"What the server keeps of the past: point-in-time recovery (an hour, or seven days), backups, exports and audit logs. They go as their settings say.",
	}
	if !in.Empty() {
		remains = append(remains, "What a device had on its way at this moment: run this once more when every device was told.")
	}
	if store == nil {
		return remains
	}
	remains = append(remains, "In the store, older versions of the objects if it keeps versions, replicas, and access logs.")
	if in.Unlisted {
		remains = append(remains, "Objects that a crash left behind: this store lists nothing, and only what the manifest named was removed.")
	}
	if in.Foreign > 0 {
		remains = append(remains, fmt.Sprintf("%d objects beside ours in the store that are none of tidemark's.", in.Foreign))
	}
	return remains
}
