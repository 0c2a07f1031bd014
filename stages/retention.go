package stages

import (
	"context"
	"regexp"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// sweepEvery is how often the store is listed for what a crash left behind; a
// listing is billed like an upload.
const sweepEvery = 24 * time.Hour

// maxRemovals bounds what one backup removes: it should end.
const maxRemovals = 100

// ours is what a snapshot's object is called; a file that somebody else put beside
// them is left alone.
var ours = regexp.MustCompile(`^` + messages.SnapshotPrefix + `\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}\.`)

// next is the manifest with a new current snapshot. Objects that nothing needs any
// more are retired, not removed: a restore may be reading them.
func (p BackupPolicy) next(old messages.Manifest, snap messages.Snapshot) messages.Manifest {
	m := messages.Manifest{Format: messages.ManifestFormat, Current: snap, Retired: old.Retired, SweptOn: old.SweptOn}
	if old.Current.Generation == "" {
		m.SweptOn = snap.MadeOn // an empty store
		return m
	}
	var dropped []messages.Snapshot
	m.Older, dropped = p.retain(old.Snapshots(), snap.MadeOn)
	for _, d := range dropped {
		m = retire(m, d.Objects(), snap.MadeOn)
	}
	return m
}

// retain splits snapshots, newest first, into those that stay and the others: the
// newest few, and the last of each day.
func (p BackupPolicy) retain(all []messages.Snapshot, now int64) (keep, drop []messages.Snapshot) {
	day := func(ms int64) int64 { return ms / (24 * time.Hour).Milliseconds() } // UTC
	last := map[int64]bool{}
	for i, s := range all {
		d := day(s.MadeOn)
		daily := p.Days > 0 && d > day(now)-int64(p.Days) && !last[d]
		last[d] = true
		if i < p.Keep || daily {
			keep = append(keep, s)
		} else {
			drop = append(drop, s)
		}
	}
	return keep, drop
}

// needed are the objects of all snapshots that a manifest names. A snapshot that is
// built on another's objects names those too: they stay as long as it does.
func needed(m messages.Manifest) map[string]bool {
	keys := map[string]bool{}
	for _, s := range m.Snapshots() {
		for _, k := range s.Objects() {
			keys[k] = true
		}
	}
	return keys
}

// retire puts objects that no snapshot of m needs on its list.
func retire(m messages.Manifest, keys []string, now int64) messages.Manifest {
	need := needed(m)
	for _, k := range keys {
		if !need[k] && !slices.ContainsFunc(m.Retired, func(r messages.Retired) bool { return r.Key == k }) {
			m.Retired = append(slices.Clip(m.Retired), messages.Retired{Key: k, On: now})
		}
	}
	return m
}

// tidy removes what has been retired for the grace time, and once a day retires
// objects that no manifest ever named. What fails is tried again next time: it costs
// room and no more.
//
// An object that an upload has stored and its manifest does not name yet is safe:
// retiring it replaces the manifest, and the upload then loses the race for it.
func (s *BackUp) tidy(ctx context.Context, m messages.Manifest, now int64, use *messages.StoreUse) messages.Manifest {
	need := needed(m)
	var left []messages.Retired
	removed, failed := 0, false
	for _, r := range m.Retired {
		r.On = min(r.On, now)
		switch {
		case need[r.Key]:
		case failed || removed >= maxRemovals || now-r.On < s.policy.Grace.Milliseconds():
			left = append(left, r)
		default:
			removed++
			if err := s.store.Delete(ctx, r.Key); err != nil {
				failed = true
				left = append(left, r)
			}
		}
	}
	m.Retired = left
	if now-m.SweptOn < sweepEvery.Milliseconds() && m.SweptOn <= now {
		return m
	}
	list, err := s.store.List(ctx, messages.SnapshotPrefix)
	for _, o := range list {
		use.Puts += o.Requests
		if ours.MatchString(o.Key) {
			m = retire(m, []string{o.Key}, now)
		}
	}
	if err == nil {
		m.SweptOn = now
	}
	return m
}
