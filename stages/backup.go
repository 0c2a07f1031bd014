package stages

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Snapshots makes snapshots of the local database.
type Snapshots interface {
	BackupStanding(ctx context.Context) (messages.BackupStanding, error)
	// Snapshot makes a consistent, compressed copy while the application goes on, or
	// what changed since current where it can. Its name and time (Unix ms) go into it.
	// Closing the body removes what it left on disk. Size, SHA256 and Key are for the
	// caller to fill in.
	Snapshot(ctx context.Context, generation string, madeOn int64, current messages.Snapshot) (messages.Snapshot, io.ReadCloser, error)
	// BackedUp remembers the newest snapshot that we know of; what changed is counted
	// from then on.
	BackedUp(ctx context.Context, s messages.Snapshot) error
	// AwaitTurn begins to wait for Big Brother.
	AwaitTurn(ctx context.Context) error
	Step(ctx context.Context, step messages.Step) error
}

// BackupPolicy says when a snapshot is worth its upload, whose turn it is, and which
// older ones stay.
type BackupPolicy struct {
	// MinRows changed, or MinBytes of rows, or MaxAge passed with at least one row
	// changed.
	MinRows, MinBytes int64
	MaxAge            time.Duration
	// Takeover is how long a snapshot that is due waits for Big Brother before another
	// device makes it; 0 is not at all.
	Takeover time.Duration
	// Keep is how many older snapshots stay, Days for how many days the last one of
	// each day stays beside them.
	Keep, Days int
	// Grace is how long an object stays that no snapshot needs any more.
	Grace time.Duration
	// Unconditional sends no conditions to the store: the owner knows that it has
	// none.
	Unconditional bool
}

// BackUp keeps one fresh snapshot in the store. Only a device with the newest data
// may replace it: freshness is compared by what has been seen of every device,
// never by a clock. The device that made the current one is Big Brother and makes
// the next; the others do when it lets a time pass.
type BackUp struct {
	store     ObjectStore
	snapshots Snapshots
	policy    BackupPolicy
}

// NewBackUp returns the stage. Without a store it passes everything on.
func NewBackUp(store ObjectStore, snapshots Snapshots, policy BackupPolicy) *BackUp {
	return &BackUp{store, snapshots, policy}
}

// Handle backs up when it is due; losing the race for the manifest is no error.
func (s *BackUp) Handle(ctx context.Context, in messages.TombstonesPurged) ([]messages.BackupReady, error) {
	step := messages.Step{Cycle: in.Cycle, Round: in.Round, Stage: messages.StageBackUp, Started: time.Now()}
	out := messages.BackupReady{Cycle: in.Cycle, Round: in.Round, Again: in.Again}
	if !in.Again && s.store != nil {
		var err error
		if out.Generation, err = s.backUp(ctx, &step.Counts); err != nil {
			return nil, fmt.Errorf("back up: %w", err)
		}
		step.Counts.Snapshot = out.Generation
	}
	if err := s.snapshots.Step(ctx, step); err != nil {
		return nil, err
	}
	return []messages.BackupReady{out}, nil
}

func (s *BackUp) backUp(ctx context.Context, counts *messages.Counts) (string, error) {
	use := &counts.Store
	st, err := s.snapshots.BackupStanding(ctx)
	if err != nil {
		return "", err
	}
	due := s.policy.due(st)
	if st.Open || st.Dirty > 0 || len(st.Seen) == 0 || !due && !st.Look {
		return "", nil
	}
	if wait := s.policy.wait(st); due && wait > 0 && (st.DueSince == 0 || st.Now-st.DueSince < wait.Milliseconds()) {
		if st.DueSince == 0 {
			err = s.snapshots.AwaitTurn(ctx)
		}
		if due = false; err != nil || !st.Look { // not yet
			return "", err
		}
	}
	old, etag, err := ReadManifest(ctx, s.store, use)
	if err != nil && !errors.Is(err, messages.ErrNotFound) {
		return "", err
	}
	found, warning := suspect(st, old.Current)
	if warning != "" {
		counts.Warnings = append(counts.Warnings, warning)
	}
	switch {
	case err != nil || found == rolledBack && st.Seen.Covers(old.Current.Seen):
		// There is none, or it is older than it was: a new one mends both.
	case found == foreign, st.Look && !old.Current.Seen.Covers(st.BackedUp):
		return "", nil // it is no snapshot of this database
	case st.Look && (!due || found == keyMissing):
		return "", s.snapshots.BackedUp(ctx, old.Current) // what is there
	case found == keyMissing:
		return "", nil
	case found == rolledBack:
		return "", s.snapshots.AwaitTurn(ctx) // once we have seen the rest
	case old.Current.Generation != st.Generation:
		return "", s.snapshots.BackedUp(ctx, old.Current) // somebody made the one that was due
	case !st.Seen.Covers(old.Current.Seen):
		return "", s.snapshots.AwaitTurn(ctx)
	}
	return s.replace(ctx, st, old, etag, use)
}

// due reports whether enough changed since the newest snapshot that we know of.
func (p BackupPolicy) due(st messages.BackupStanding) bool {
	switch {
	case st.Generation == "":
		return true
	case st.BackedUp.Covers(st.Seen):
		return false
	}
	return st.Changed >= p.MinRows || st.ChangedBytes >= p.MinBytes || st.Now-st.KnownSince >= p.MaxAge.Milliseconds()
}

// wait is how long this device leaves a snapshot that is due to Big Brother. Each
// device has a wait of its own, and for each generation another one: they do not all
// upload when Big Brother is gone.
func (p BackupPolicy) wait(st messages.BackupStanding) time.Duration {
	if st.Generation == "" || st.Maker == st.Device {
		return 0
	}
	var uploads int64 // tells generations apart
	for _, n := range st.BackedUp {
		uploads += n
	}
	h := fnv.New64a()
	fmt.Fprint(h, uploads, st.Device)
	// FNV's last bytes stir only its lower bits.
	share := float64(h.Sum64()*0x9E3779B97F4A7C15>>11) / (1 << 53)
	return p.Takeover + time.Duration(share*float64(p.Takeover))
}

// replace uploads a snapshot and makes it the current one, if nobody was quicker.
func (s *BackUp) replace(ctx context.Context, st messages.BackupStanding, old messages.Manifest, etag string, use *messages.StoreUse) (string, error) {
	conditional, err := s.conditional(ctx, old, use)
	if err != nil {
		return "", err
	}
	snap, body, err := s.snapshots.Snapshot(ctx, newGeneration(time.UnixMilli(st.Now)), st.Now, old.Current)
	if err != nil {
		return "", err
	}
	defer body.Close()
	if !snap.Seen.Covers(old.Current.Seen) {
		return "", nil
	}
	snap.Key = objectKey(snap)
	sum := &summed{r: body, h: sha256.New()}
	obj, err := s.store.Put(ctx, snap.Key, sum, s.only(messages.Condition{IfAbsent: true}))
	use.Puts += obj.Requests
	use.BytesUp += sum.n
	if err != nil {
		return "", fmt.Errorf("upload the snapshot: %w", err)
	}
	snap.Size, snap.SHA256 = sum.n, hex.EncodeToString(sum.h.Sum(nil))
	next := s.policy.next(old, snap)
	next.Conditional = conditional
	if etag != "" {
		next = s.tidy(ctx, next, st.Now, use)
	}
	raw, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return "", err
	}
	cond := messages.Condition{IfMatch: etag}
	if etag == "" {
		cond = messages.Condition{IfAbsent: true}
	}
	obj, err = s.store.Put(ctx, messages.ManifestKey, bytes.NewReader(raw), s.only(cond))
	use.Puts += obj.Requests
	use.BytesUp += int64(len(raw))
	if errors.Is(err, messages.ErrConflict) {
		return "", s.lost(ctx, snap, use)
	}
	if err != nil {
		return "", fmt.Errorf("replace the manifest: %w", err) // it may name the snapshot: that stays
	}
	return snap.Generation, s.snapshots.BackedUp(ctx, snap)
}

// objectKey names a snapshot's object so that a person sees what it is.
func objectKey(s messages.Snapshot) string {
	key := messages.SnapshotPrefix + s.Generation + ".db"
	if len(s.Parts) > 0 {
		key += ".changes"
	}
	key += ".zst"
	if s.Encrypted {
		key += ".age"
	}
	return key
}

// lost: somebody else replaced the manifest first – or we did, and the answer was
// lost on a retry inside the adapter.
func (s *BackUp) lost(ctx context.Context, snap messages.Snapshot, use *messages.StoreUse) error {
	now, _, err := ReadManifest(ctx, s.store, use)
	if errors.Is(err, messages.ErrNotFound) {
		_ = s.store.Delete(ctx, snap.Key) // somebody emptied the store meanwhile: the next cycle sees why
		return nil
	}
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(now.Snapshots(), func(o messages.Snapshot) bool { return o.Generation == snap.Generation }) {
		_ = s.store.Delete(ctx, snap.Key) // what stays is found by tidy
	}
	return s.snapshots.BackedUp(ctx, now.Current)
}

// maxManifest bounds what is read as a manifest, in bytes.
const maxManifest = 16 << 20

// ReadManifest reads and checks the manifest; messages.ErrNotFound when there is
// none.
func ReadManifest(ctx context.Context, store ObjectStore, use *messages.StoreUse) (messages.Manifest, string, error) {
	use.Gets++
	body, obj, err := store.Get(ctx, messages.ManifestKey, 0)
	if err != nil {
		return messages.Manifest{}, "", fmt.Errorf("read the manifest: %w", err)
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	use.BytesDown += int64(len(raw))
	if err != nil {
		return messages.Manifest{}, "", fmt.Errorf("read the manifest: %w: %w", messages.ErrUnavailable, err)
	}
	if len(raw) > maxManifest {
		return messages.Manifest{}, "", fmt.Errorf("the manifest is larger than %d bytes: %w", maxManifest, messages.ErrRejected)
	}
	m, err := messages.ParseManifest(raw)
	return m, obj.ETag, err
}

// newGeneration names a snapshot: sorted by time for people, unique by chance.
func newGeneration(now time.Time) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return now.UTC().Format("20060102T150405.000Z") + "-" + hex.EncodeToString(b[:])
}

type summed struct {
	r io.Reader
	h hash.Hash
	n int64
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	_, _ = s.h.Write(p[:n]) // never fails
	s.n += int64(n)
	return n, err
}
