package stages

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// PurgePolicy says when tombstones leave the server.
type PurgePolicy struct {
	// Every is how often a device looks for some; 0 is never.
	Every time.Duration
	// Unseen is how long ago a device was last heard of when it no longer counts. When
	// it comes back it reads everything again.
	Unseen time.Duration
}

// Purger is what a purge needs of the local side.
type Purger interface {
	Outbox
	// PurgeDue reports whether it is our turn to look; asked, it counts as having
	// looked.
	PurgeDue(ctx context.Context, every time.Duration, snapshots bool) (bool, error)
	// Buried lists, per device that uploaded tombstones, the tables they are in.
	Buried(ctx context.Context) (map[string][]string, error)
	// PreparePurge makes a commit that also publishes the fence.
	PreparePurge(ctx context.Context, fence messages.Vector, writes []messages.Write) (messages.Commit, error)
}

// Purge removes tombstones from the server that every device and every kept snapshot
// has seen. The fence, up to which number of each device they may be gone, is
// published in the same commit: whoever has seen less must read everything again,
// or it would bring the dead back.
type Purge struct {
	remote CommitReader
	store  ObjectStore
	local  Purger
	policy PurgePolicy
}

// NewPurge returns the stage. store may be nil.
func NewPurge(remote CommitReader, store ObjectStore, local Purger, policy PurgePolicy) *Purge {
	return &Purge{remote, store, local, policy}
}

// Handle purges when it is due.
func (s *Purge) Handle(ctx context.Context, in messages.DeviceRegistered) ([]messages.TombstonesPurged, error) {
	out := []messages.TombstonesPurged{{Cycle: in.Cycle, Round: in.Round, Again: in.Again}}
	if in.Again || s.policy.Every <= 0 {
		return out, nil
	}
	due, err := s.local.PurgeDue(ctx, s.policy.Every, s.store != nil)
	if err != nil || !due {
		return out, err
	}
	step := messages.Step{Cycle: in.Cycle, Round: in.Round, Stage: messages.StagePurge, Started: time.Now()}
	again, err := s.purge(ctx, &step.Counts)
	if err != nil {
		return nil, fmt.Errorf("purge tombstones: %w", err)
	}
	out[0].Again = again
	return out, s.local.Step(ctx, step)
}

func (s *Purge) purge(ctx context.Context, counts *messages.Counts) (again bool, err error) {
	list, err := s.remote.Devices(ctx, -1)
	if err != nil {
		return false, err
	}
	counts.Billed.Reads += list.Reads
	st, err := s.local.Standing(ctx)
	if err != nil {
		return false, err
	}
	if scopeForgotten(list.Devices) {
		return false, errScopeForgotten
	}
	records := map[string]messages.Device{}
	fence := messages.Vector{}
	for _, d := range list.Devices {
		records[d.ID] = d
	}
	for _, d := range list.Devices {
		for p, n := range d.Fence {
			// Nobody has purged what was not written: above its writer's number it is a lie, or
			// a damaged record, and would end all purges.
			if r, known := records[p]; !known || n <= r.Seq {
				fence.Raise(p, n)
			}
		}
	}
	if records[st.InstallationID].UpdateTime != st.RecordVersion {
		return false, nil // somebody else writes under our id: the next check will see
	}
	var read []messages.Vector // how far each that counts has read
	for _, d := range list.Devices {
		if !d.Forgotten && time.Duration(list.ReadTime-d.UpdateTime)*time.Microsecond <= s.policy.Unseen {
			seen := d.Seen.Clone()
			seen.Raise(d.ID, d.Seq) // its own
			read = append(read, seen)
		}
	}
	if s.store != nil {
		m, _, err := ReadManifest(ctx, s.store, &counts.Store)
		if err != nil && !errors.Is(err, messages.ErrNotFound) {
			return false, err
		}
		if err == nil {
			read = append(read, m.Current.Seen)
			for _, older := range m.Older {
				read = append(read, older.Seen)
			}
		}
	}
	buried, err := s.local.Buried(ctx)
	if err != nil {
		return false, err
	}
	for _, p := range slices.Sorted(maps.Keys(buried)) {
		n := records[p].Seq
		for _, v := range read {
			n = min(n, v[p])
		}
		if n <= fence[p] {
			continue
		}
		// From the beginning: what was purged is not read, and not billed.
		q := messages.Query{Device: p, ReadTime: list.ReadTime, Tombstones: true, Till: n, After: messages.Position{Stamp: messages.Stamp{Device: p}}}
		for _, q.Table = range buried[p] {
			var writes []messages.Write
			flush := func() error {
				err := s.remove(ctx, messages.Vector{p: n}, writes, counts)
				writes = writes[:0]
				return err
			}
			reads, err := s.remote.Read(ctx, q, func(d messages.Document) error {
				writes = append(writes, messages.Write{Document: messages.Document{Table: q.Table, ID: d.ID}, Expect: d.UpdateTime, Purge: true})
				if len(writes) < messages.MaxCommitWrites-1 {
					return nil
				}
				return flush()
			})
			counts.Billed.Reads += reads
			if err == nil {
				err = flush()
			}
			if errors.Is(err, errAnotherIdentity) {
				return true, nil
			}
			if err != nil {
				return false, fmt.Errorf("table %q: %w", q.Table, err)
			}
		}
	}
	return false, nil
}

// remove deletes one commit's worth of tombstones, and publishes the fence with it.
func (s *Purge) remove(ctx context.Context, fence messages.Vector, writes []messages.Write, counts *messages.Counts) error {
	for len(writes) > 0 {
		c, err := s.local.PreparePurge(ctx, fence, writes)
		if err != nil {
			return err
		}
		done, err := s.remote.Commit(ctx, c)
		if err == nil {
			counts.Billed.Writes += done.Writes
			counts.Billed.Deletes += done.Deletes
			_, err = s.local.Acknowledge(ctx, c.Device.Token, done.UpdateTime)
			return err
		}
		if !perhapsMoved(err) {
			return err
		}
		refusal := err
		settled, n, err := ownRecord(ctx, s.remote, s.local, c)
		counts.Add(n)
		if err != nil {
			return err
		}
		if settled {
			continue // the next look finds these gone
		}
		rest, err := s.unmoved(ctx, writes, counts)
		if err != nil {
			return err
		}
		if len(rest) == len(writes) && errors.Is(refusal, messages.ErrConflict) {
			return errHolds
		}
		if len(rest) == len(writes) {
			return refusal
		}
		writes = rest
	}
	return nil
}

// unmoved are the tombstones that are still what was read: the others were revived,
// or purged by somebody else.
func (s *Purge) unmoved(ctx context.Context, writes []messages.Write, counts *messages.Counts) ([]messages.Write, error) {
	ids := map[string][]string{}
	for _, w := range writes {
		ids[w.Document.Table] = append(ids[w.Document.Table], w.Document.ID)
	}
	now := map[messages.DocumentKey]int64{}
	for _, table := range slices.Sorted(maps.Keys(ids)) {
		page, err := s.remote.Documents(ctx, table, ids[table], 0)
		if err != nil {
			return nil, err
		}
		counts.Billed.Reads += page.Reads
		for _, d := range page.Documents {
			now[messages.DocumentKey{Table: table, ID: d.ID}] = d.UpdateTime
		}
	}
	return slices.DeleteFunc(slices.Clone(writes), func(w messages.Write) bool {
		return now[messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}] != w.Expect
	}), nil
}
