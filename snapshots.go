package tidemark

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// SnapshotInfo is one snapshot that can be restored.
type SnapshotInfo struct {
	Generation string `json:"generation"`
	// MadeOn is by the remote's clock.
	MadeOn time.Time `json:"madeOn"`
	// DeviceID is the maker's.
	DeviceID string `json:"deviceId"`
	// Bytes is the size of the database file, StoredBytes what its object takes.
	Bytes       int64 `json:"bytes"`
	StoredBytes int64 `json:"storedBytes"`
	// Rows is how many rows each table has; nil where an older version made it.
	Rows map[string]int64 `json:"rows"`
	// Encrypted: it needs a key.
	Encrypted bool `json:"encrypted"`
	// Current is the newest one, which Restore takes unless told otherwise.
	Current bool `json:"current"`
}

// Snapshots lists what can be restored, newest first; none is no error. It costs one
// GET.
func Snapshots(ctx context.Context, store SnapshotStore) ([]SnapshotInfo, error) {
	m, _, err := stages.ReadManifest(ctx, store, &messages.StoreUse{})
	if noneYet(err) {
		return []SnapshotInfo{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the snapshots: %w", err)
	}
	list := []SnapshotInfo{}
	for i, s := range m.Snapshots() {
		list = append(list, SnapshotInfo{s.Generation, time.UnixMilli(s.MadeOn).UTC(), s.Device, s.RawSize, s.Size, s.Rows, s.Encrypted, i == 0})
	}
	return list, nil
}

// noneYet reports whether a store that is there has no manifest.
func noneYet(err error) bool {
	return errors.Is(err, ErrNotFound) && !errors.Is(err, messages.ErrNoStore)
}

// RestoreGeneration chooses an older snapshot by its name.
func RestoreGeneration(generation string) RestoreOption {
	return func(s *restoreSettings) { s.generation = generation }
}

// RestoreAsOf chooses the newest snapshot that was not made after a moment.
func RestoreAsOf(moment time.Time) RestoreOption {
	return func(s *restoreSettings) { s.asOf = moment }
}

// choose finds the snapshot to restore.
func (s restoreSettings) choose(m messages.Manifest) (messages.Snapshot, error) {
	all := m.Snapshots()
	i, wanted := 0, ""
	switch {
	case s.generation != "" && !s.asOf.IsZero():
		return messages.Snapshot{}, fmt.Errorf("%w: RestoreGeneration and RestoreAsOf exclude each other", ErrInvalidOption)
	case s.generation != "":
		wanted = fmt.Sprintf("of generation %q", s.generation)
		i = slices.IndexFunc(all, func(x messages.Snapshot) bool { return x.Generation == s.generation })
	case !s.asOf.IsZero():
		wanted = "from " + s.asOf.UTC().Format(time.RFC3339) + " or before"
		i = slices.IndexFunc(all, func(x messages.Snapshot) bool { return x.MadeOn <= s.asOf.UnixMilli() })
	}
	if i < 0 {
		return messages.Snapshot{}, messages.Saying(ErrNotFound, "there is no snapshot %s; there is %s", wanted, listed(all))
	}
	return all[i], nil
}

// listed names snapshots, newest first, the middle of a long list left out.
func listed(all []messages.Snapshot) string {
	const most = 12
	var names []string
	for i, s := range all {
		if len(all) > most && i == most-1 {
			names = append(names, fmt.Sprintf("%d more", len(all)-most))
		}
		if len(all) > most && i >= most-1 && i < len(all)-1 {
			continue
		}
		names = append(names, s.Generation)
	}
	return strings.Join(names, ", ")
}
