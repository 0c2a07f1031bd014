package tidemark

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Report is what one cycle moved and what it cost.
type Report struct {
	Cycle    string `json:"cycle"`
	DeviceID string `json:"deviceId"`
	// InStep: everything that could move has moved.
	InStep bool                            `json:"inStep"`
	Tables map[string]messages.TableCounts `json:"tables"`
	Billed messages.Billed                 `json:"billed"`
	Store  messages.StoreUse               `json:"store"`
	Stages []StageTime                     `json:"stages"`
	// Snapshot is the generation of a snapshot that this cycle made, or nil.
	Snapshot *string `json:"snapshot"`
	// Encrypted: the snapshots of this pipeline are.
	Encrypted bool `json:"encrypted"`
	// Warnings are what a person should look at: a store that somebody tampered with.
	Warnings []string `json:"warnings,omitempty"`
}

// StageTime is how long one step took, in milliseconds.
type StageTime struct {
	Name  string  `json:"name"`
	Table string  `json:"table"`
	Ms    float64 `json:"ms"`
	Error string  `json:"error,omitempty"`
}

// Total adds up the tables.
func (r Report) Total() messages.TableCounts {
	var t messages.TableCounts
	for _, c := range r.Tables {
		t = t.Plus(c)
	}
	return t
}

// report reads what a cycle did from the step ledger.
func (p *Pipeline) report(ctx context.Context, cycle string) (Report, error) {
	r := Report{Cycle: cycle, Tables: map[string]messages.TableCounts{}, Stages: []StageTime{}}
	h, err := p.local.Health(ctx)
	if err != nil {
		return r, err
	}
	r.DeviceID, r.Encrypted = h.InstallationID, p.set.encrypt != nil
	steps, err := p.local.Steps(ctx, cycle)
	if err != nil {
		return r, err
	}
	var sum messages.Counts
	for _, s := range steps {
		sum.Add(s.Counts)
		r.Stages = append(r.Stages, StageTime{s.Stage, s.Table, float64(s.Took.Microseconds()) / 1000, s.Error})
		if s.Counts.Snapshot != "" {
			r.Snapshot = &s.Counts.Snapshot
		}
	}
	if sum.Tables != nil {
		r.Tables = sum.Tables
	}
	r.Billed, r.Store, r.Warnings = sum.Billed, sum.Store, sum.Warnings
	return r, nil
}

// Status is how a database stands, without asking the server.
type Status struct {
	DeviceID string `json:"deviceId"`
	// InStep: nothing is left to upload, waiting or set aside, a cycle has ended, and the
	// device was not forgotten.
	InStep bool  `json:"inStep"`
	Tables int   `json:"tables"`
	Dirty  int64 `json:"dirty"`
	// Waiting documents want a parent; Dead ones, and rows, were set aside with the
	// reason; Conflicts were decided and the loser was kept.
	Waiting   int64 `json:"waiting"`
	Dead      int64 `json:"dead"`
	Conflicts int64 `json:"conflicts"`
	// LastCycle is the last that came to its end, or nil.
	LastCycle *CycleStatus `json:"lastCycle"`
	// LastError is the newest failure since then, or nil.
	LastError *FailureStatus `json:"lastError"`
	// BehindSince is when the oldest edit that is here only was made, or the first
	// failure happened that stands; nil when there is none.
	BehindSince *time.Time `json:"behindSince"`
	// Snapshot is the newest one this device knows of, or nil.
	Snapshot *SnapshotStatus `json:"snapshot"`
	// BigBrother is the installation id of the device that made it, or nil.
	BigBrother *string `json:"bigBrother"`
	// ClockOffsetMs is the server's clock minus ours.
	ClockOffsetMs int64 `json:"clockOffsetMs"`
	// ForgottenOn is when this device was forgotten, which syncs no more; nil: it was not.
	ForgottenOn *time.Time `json:"forgottenOn"`
}

// CycleStatus names a cycle and when it ended.
type CycleStatus struct {
	Cycle   string    `json:"cycle"`
	EndedOn time.Time `json:"endedOn"`
}

// FailureStatus is a step of a cycle that failed. Error starts with its class.
type FailureStatus struct {
	Cycle    string    `json:"cycle"`
	Stage    string    `json:"stage"`
	Table    string    `json:"table"`
	FailedOn time.Time `json:"failedOn"`
	Error    string    `json:"error"`
}

// SnapshotStatus names a snapshot and when it was made, by its maker's clock.
type SnapshotStatus struct {
	Generation string    `json:"generation"`
	MadeOn     time.Time `json:"madeOn"`
	// Encrypted: it is; nil when this device does not know.
	Encrypted *bool `json:"encrypted"`
}

// Status reads how the database stands. It uses no network.
func (p *Pipeline) Status(ctx context.Context) (Status, error) { return statusOf(ctx, p.local) }

func statusOf(ctx context.Context, local interface {
	Health(ctx context.Context) (messages.Health, error)
	LastCycle(ctx context.Context) (string, int64, error)
	LastFailure(ctx context.Context) (messages.Step, bool, error)
	BehindSince(ctx context.Context) (int64, error)
},
) (Status, error) {
	h, err := local.Health(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	s := Status{
		DeviceID: h.InstallationID, Tables: h.Tables, Dirty: h.Dirty, Waiting: h.Waiting, Dead: h.Dead, Conflicts: h.Conflicts,
		ClockOffsetMs: h.ClockOffsetMs,
	}
	cycle, on, err := local.LastCycle(ctx)
	if err != nil {
		return s, fmt.Errorf("read the status: %w", err)
	}
	if cycle != "" {
		s.LastCycle = &CycleStatus{cycle, time.UnixMilli(on).UTC()}
	}
	failure, failed, err := local.LastFailure(ctx)
	if err != nil {
		return s, fmt.Errorf("read the status: %w", err)
	}
	if failed {
		s.LastError = &FailureStatus{failure.Cycle, failure.Stage, failure.Table, failure.Started, failure.Error}
	}
	since, err := local.BehindSince(ctx)
	if err != nil {
		return s, fmt.Errorf("read the status: %w", err)
	}
	if since > 0 {
		at := time.UnixMilli(since).UTC()
		s.BehindSince = &at
	}
	if h.Generation != "" {
		s.Snapshot = &SnapshotStatus{h.Generation, time.UnixMilli(h.BackedUpOn).UTC(), h.Encrypted}
		s.BigBrother = &h.Maker
	}
	if h.ForgottenOn != 0 {
		at := time.UnixMilli(h.ForgottenOn).UTC()
		s.ForgottenOn = &at
	}
	s.InStep = h.ForgottenOn == 0 && h.Dirty == 0 && h.Waiting == 0 && h.Dead == 0 && !h.Open && cycle != ""
	return s, nil
}
