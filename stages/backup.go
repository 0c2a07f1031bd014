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
	"io"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Snapshots makes snapshots of the local database.
type Snapshots interface {
	BackupStanding(ctx context.Context) (messages.BackupStanding, error)
	// Snapshot makes a consistent, compressed copy while the application goes on.
	// Closing the body removes what it left on disk. Size, SHA256, Key and
	// Generation are for the caller to fill in.
	Snapshot(ctx context.Context) (messages.Snapshot, io.ReadCloser, error)
	// BackedUp remembers the newest snapshot that we know of.
	BackedUp(ctx context.Context, s messages.Snapshot) error
	Step(ctx context.Context, step messages.Step) error
}

// BackupPolicy says when a snapshot is worth its upload.
type BackupPolicy struct {
	// MinRows changed, or MaxAge passed with at least one row changed.
	MinRows int64
	MaxAge  time.Duration
	// Keep is how many older snapshots stay.
	Keep int
}

// BackUp keeps one fresh snapshot in the store. Only a device with the newest data
// may replace it: freshness is compared by what has been seen of every device,
// never by a clock.
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
		if out.Generation, err = s.backUp(ctx, &step.Counts.Store); err != nil {
			return nil, fmt.Errorf("back up: %w", err)
		}
		step.Counts.Snapshot = out.Generation
	}
	if err := s.snapshots.Step(ctx, step); err != nil {
		return nil, err
	}
	return []messages.BackupReady{out}, nil
}

func (s *BackUp) backUp(ctx context.Context, use *messages.StoreUse) (string, error) {
	st, err := s.snapshots.BackupStanding(ctx)
	if err != nil {
		return "", err
	}
	if st.Open || st.Dirty > 0 || len(st.Seen) == 0 || st.Generation != "" && st.BackedUp.Covers(st.Seen) {
		return "", nil
	}
	age := time.Since(time.UnixMilli(st.BackedUpOn))
	if st.Generation != "" && st.Changed < s.policy.MinRows && age < s.policy.MaxAge {
		return "", nil
	}
	old, etag, err := ReadManifest(ctx, s.store, use)
	switch {
	case errors.Is(err, messages.ErrNotFound):
	case err != nil:
		return "", err
	case old.Current.Generation != st.Generation && (old.Current.Seen.Covers(st.Seen) || !st.Seen.Covers(old.Current.Seen)):
		// Somebody else's is as fresh, or has what we have not seen.
		return "", s.snapshots.BackedUp(ctx, old.Current)
	case !st.Seen.Covers(old.Current.Seen):
		return "", nil
	case st.Generation == "" && time.Since(time.UnixMilli(old.Current.MadeOn)) < s.policy.MaxAge:
		// New here, and there is a snapshot: what changed is counted from now on.
		return "", s.snapshots.BackedUp(ctx, old.Current)
	}
	return s.replace(ctx, old, etag, use)
}

// replace uploads a snapshot and makes it the current one, if nobody was quicker.
func (s *BackUp) replace(ctx context.Context, old messages.Manifest, etag string, use *messages.StoreUse) (string, error) {
	snap, body, err := s.snapshots.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	defer body.Close()
	if !snap.Seen.Covers(old.Current.Seen) {
		return "", nil
	}
	snap.Generation = newGeneration(time.Now())
	snap.Key = messages.SnapshotPrefix + snap.Generation + ".db.zst"
	sum := &summed{r: body, h: sha256.New()}
	obj, err := s.store.Put(ctx, snap.Key, sum, messages.Condition{IfAbsent: true})
	use.Puts += obj.Requests
	use.BytesUp += sum.n
	if err != nil {
		return "", fmt.Errorf("upload the snapshot: %w", err)
	}
	snap.Size, snap.SHA256 = sum.n, hex.EncodeToString(sum.h.Sum(nil))
	next := messages.Manifest{Format: messages.ManifestFormat, Current: snap}
	if old.Current.Generation != "" {
		next.Older = append([]messages.Snapshot{old.Current}, old.Older...)
	}
	var dropped []messages.Snapshot
	if len(next.Older) > s.policy.Keep {
		next.Older, dropped = next.Older[:s.policy.Keep], next.Older[s.policy.Keep:]
	}
	raw, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return "", err
	}
	cond := messages.Condition{IfMatch: etag}
	if etag == "" {
		cond = messages.Condition{IfAbsent: true}
	}
	obj, err = s.store.Put(ctx, messages.ManifestKey, bytes.NewReader(raw), cond)
	use.Puts += obj.Requests
	use.BytesUp += int64(len(raw))
	if errors.Is(err, messages.ErrConflict) {
		return "", s.lost(ctx, snap, use)
	}
	if err != nil {
		return "", fmt.Errorf("replace the manifest: %w", err) // it may name the snapshot: that stays
	}
	if err := s.snapshots.BackedUp(ctx, snap); err != nil {
		return "", err
	}
	for _, d := range dropped { // what no manifest names; a failure leaves an object behind, no more
		_ = s.store.Delete(ctx, d.Key)
	}
	return snap.Generation, nil
}

// lost: somebody else replaced the manifest first – or we did, and the answer was
// lost on a retry inside the adapter.
func (s *BackUp) lost(ctx context.Context, snap messages.Snapshot, use *messages.StoreUse) error {
	now, _, err := ReadManifest(ctx, s.store, use)
	if err != nil {
		return err
	}
	if now.Current.Generation == snap.Generation {
		return s.snapshots.BackedUp(ctx, snap)
	}
	for _, o := range now.Older {
		if o.Generation == snap.Generation {
			return nil
		}
	}
	return s.store.Delete(ctx, snap.Key)
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
