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

// overlap: uploadedOn is taken when a commit starts and shows only when it ends,
// up to 270 s later. The margin costs a record or two and is the only clock in the
// download.
const overlap = 300 * time.Second

// Tracker remembers what has been seen of every device.
type Tracker interface {
	StageDone(ctx context.Context, cycle string, round int, stage string) (bool, error)
	// Clock is the clock that stamps rows, in Unix ms.
	Clock(ctx context.Context) (int64, error)
	Standing(ctx context.Context) (messages.Standing, error)
	// Checked records a check's answer; see persistence.
	Checked(ctx context.Context, readTime int64, clock messages.ClockReading, targets []messages.Target, whole, unknown []string, step messages.Step) error
	Acknowledge(ctx context.Context, token string, updateTime int64) (messages.Counts, error)
	NewIdentity(ctx context.Context) error
	// Fenced prepares to read every table whole: tombstones that this device has not
	// seen may be gone from the server.
	Fenced(ctx context.Context) error
}

// CheckDevices is the first stage: which devices uploaded since we looked, and
// which tables did they touch?
type CheckDevices struct {
	remote  DeviceReader
	tracker Tracker
}

// NewCheckDevices returns the stage.
func NewCheckDevices(remote DeviceReader, tracker Tracker) *CheckDevices {
	return &CheckDevices{remote, tracker}
}

// Handle asks once a round, also when its message is repeated: a second answer would
// set targets that nobody downloads. An idle answer is empty and billed one read.
func (s *CheckDevices) Handle(ctx context.Context, in messages.SyncRequested) ([]messages.DevicesChecked, error) {
	if done, err := s.tracker.StageDone(ctx, in.Cycle, in.Round, messages.StageCheckDevices); err != nil || done {
		return nil, err
	}
	step := messages.Step{Cycle: in.Cycle, Round: in.Round, Stage: messages.StageCheckDevices, Started: time.Now()}
	st, err := s.tracker.Standing(ctx)
	if err != nil {
		return nil, err
	}
	since := int64(0) // a table that was never read may have been written by any device, at any time
	if len(st.Whole) == 0 && !in.Full && st.CheckedTill > 0 {
		since = max(st.CheckedTill/1000-overlap.Milliseconds(), 1)
	}
	var clock messages.ClockReading
	if clock.Asked, err = s.tracker.Clock(ctx); err != nil {
		return nil, err
	}
	list, err := s.remote.Devices(ctx, since)
	if err != nil {
		return nil, fmt.Errorf("ask which devices uploaded: %w", err)
	}
	if clock.Answered, err = s.tracker.Clock(ctx); err != nil {
		return nil, err
	}
	step.Counts.Billed.Reads = list.Reads
	if list.ReadTime < st.CheckedTill {
		return nil, fmt.Errorf("the server answered as of %d, before what was already downloaded (%d): %w", list.ReadTime, st.CheckedTill, messages.ErrUnavailable)
	}
	if scopeForgotten(list.Devices) {
		return nil, errScopeForgotten
	}
	// Our own record first: somebody else may be writing under our id, and then no
	// cursor may move.
	if i := slices.IndexFunc(list.Devices, func(d messages.Device) bool { return d.ID == st.InstallationID }); i >= 0 {
		renewed, err := own(ctx, s.tracker, st, list.Devices[i])
		if err != nil {
			return nil, err
		}
		if renewed {
			if st, err = s.tracker.Standing(ctx); err != nil {
				return nil, err
			}
		}
	}
	fenced, reads, err := s.fenced(ctx, st, list.Devices)
	step.Counts.Billed.Reads += reads
	if err != nil {
		return nil, err
	}
	if fenced {
		if err := s.tracker.Fenced(ctx); err != nil {
			return nil, err
		}
		return s.Handle(ctx, in)
	}
	var targets []messages.Target
	touched := map[string]bool{}
	changed := map[string]bool{}
	for _, d := range list.Devices {
		for t := range d.Tables {
			touched[t] = true
		}
		if d.ID == st.InstallationID || d.Seq <= st.Seen[d.ID] {
			continue
		}
		targets = append(targets, messages.Target{Device: d.ID, Seq: d.Seq, Tables: d.Tables})
		for t, n := range d.Tables {
			if n > st.Seen[d.ID] {
				changed[t] = true
			}
		}
	}
	var whole, unknown, tables []string
	for _, t := range st.Tables {
		isWhole := slices.Contains(st.Whole, t)
		switch {
		case in.Full, isWhole && touched[t]:
			whole = append(whole, t)
			tables = append(tables, t)
		case isWhole:
			unknown = append(unknown, t)
		case changed[t]:
			tables = append(tables, t)
		}
	}
	if err := s.tracker.Checked(ctx, list.ReadTime, clock, targets, whole, unknown, step); err != nil {
		return nil, err
	}
	return []messages.DevicesChecked{{Cycle: in.Cycle, Round: in.Round, ReadTime: list.ReadTime, Tables: tables, Full: in.Full}}, nil
}

// fenced reports whether tombstones were purged that this device has not seen. In
// its first download it has seen none, and needs none: it reads what lives. A fence
// above its writer's own number is a lie or a damaged record, and would have this
// device read everything in every cycle.
func (s *CheckDevices) fenced(ctx context.Context, st messages.Standing, devices []messages.Device) (yes bool, reads int64, err error) {
	if len(st.Whole) == len(st.Tables) {
		return false, 0, nil
	}
	behind := messages.Vector{}
	for _, d := range devices {
		for p, n := range d.Fence {
			if p == st.InstallationID || n <= st.Seen[p] || behind[p] != 0 && n >= behind[p] {
				continue
			}
			behind[p] = n // the lowest: one that holds is enough
		}
	}
	for _, p := range slices.Sorted(maps.Keys(behind)) {
		n := behind[p]
		i := slices.IndexFunc(devices, func(d messages.Device) bool { return d.ID == p })
		if i >= 0 && devices[i].Seq >= n {
			return true, reads, nil
		}
		if i >= 0 {
			continue
		}
		if reads == maxFences {
			return true, reads, nil // to read too much loses nothing
		}
		reads++
		writer, err := s.remote.Device(ctx, p)
		if errors.Is(err, messages.ErrRejected) { // no device can be called that
			continue
		}
		if err != nil {
			return false, reads, fmt.Errorf("ask how far a device has come that others speak of: %w", err)
		}
		if writer.Seq >= n {
			return true, reads, nil
		}
	}
	return false, reads, nil
}

// maxFences bounds what it costs to look into a record that names a thousand devices.
const maxFences = 20

// own compares our record with what we wrote last. Our token in it: a lost
// acknowledgement, that commit succeeded. A stranger's: this file is a clone, was
// rolled back, or lost its last transactions; it takes a new id. It reports whether
// the id changed or rows were acknowledged.
func own(ctx context.Context, tracker interface {
	Acknowledge(ctx context.Context, token string, updateTime int64) (messages.Counts, error)
	NewIdentity(ctx context.Context) error
}, st messages.Standing, record messages.Device,
) (bool, error) {
	switch {
	case record.UpdateTime == st.RecordVersion:
		return false, nil
	case record.UpdateTime < st.RecordVersion:
		return false, fmt.Errorf("the server answered with an older version of our own record: %w", messages.ErrUnavailable)
	case slices.Contains(st.Tokens, record.Token):
		_, err := tracker.Acknowledge(ctx, record.Token, record.UpdateTime)
		return true, err
	default:
		return true, tracker.NewIdentity(ctx)
	}
}
