package tidemark

import (
	"context"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
)

// CycleTrace is one cycle as the step ledger of the database remembers it, whether or
// not it was traced elsewhere.
type CycleTrace struct {
	Cycle     string    `json:"cycle"`
	StartedOn time.Time `json:"startedOn"`
	// Ms is from the first step's beginning to the last one's end, in milliseconds.
	Ms float64 `json:"ms"`
	// Ended: it came to its end.
	Ended bool `json:"ended"`
	// TraceID is that of the trace elsewhere, "" without one.
	TraceID string            `json:"traceId"`
	Billed  messages.Billed   `json:"billed"`
	Store   messages.StoreUse `json:"store"`
	Steps   []TraceStep       `json:"steps"`
}

// TraceStep is one attempt of a stage: one that did something, or failed.
type TraceStep struct {
	Round   int    `json:"round"`
	Stage   string `json:"stage"`
	Table   string `json:"table"`
	Attempt int    `json:"attempt"`
	// AtMs is when it began after the cycle did, and Ms how long it took, in
	// milliseconds. Beginnings are exact to the millisecond.
	AtMs float64 `json:"atMs"`
	Ms   float64 `json:"ms"`
	// Rows were read or applied, and uploaded. Bytes are those of their documents, and
	// of what went to and came from the store.
	Rows   int64             `json:"rows"`
	Bytes  int64             `json:"bytes"`
	Billed messages.Billed   `json:"billed"`
	Store  messages.StoreUse `json:"store"`
	// Error is "" or begins with its class.
	Error string `json:"error"`
}

// ReadTraces reads the last cycles of an attached database from its step ledger, the
// newest first. It uses no network.
func ReadTraces(ctx context.Context, db *bun.DB, limit int) ([]CycleTrace, error) {
	local := persistence.View(db)
	cycles, err := local.Cycles(ctx, limit)
	if err != nil {
		return nil, err
	}
	out := make([]CycleTrace, 0, len(cycles))
	for _, c := range cycles {
		t, err := readTrace(ctx, local, c)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// ReadTrace reads one cycle by the beginning of its name; ErrNotFound when the ledger
// does not have it (any more).
func ReadTrace(ctx context.Context, db *bun.DB, cycle string) (CycleTrace, error) {
	local := persistence.View(db)
	cycles, err := local.Cycles(ctx, -1)
	if err != nil {
		return CycleTrace{}, err
	}
	for _, c := range cycles {
		if cycle != "" && strings.HasPrefix(c, cycle) {
			return readTrace(ctx, local, c)
		}
	}
	return CycleTrace{}, messages.Saying(ErrNotFound, "the step ledger has no such cycle (it keeps the last 20,000 steps)")
}

func readTrace(ctx context.Context, local *persistence.Local, cycle string) (CycleTrace, error) {
	t := CycleTrace{Cycle: cycle, Steps: []TraceStep{}}
	steps, err := local.Steps(ctx, cycle)
	if err != nil {
		return t, err
	}
	var end time.Time
	for i, s := range steps {
		if i == 0 || s.Started.Before(t.StartedOn) {
			t.StartedOn = s.Started.UTC()
		}
		if e := s.Started.Add(s.Took); e.After(end) {
			end = e
		}
		t.Ended = s.Stage == messages.StageBackUp && s.Error == ""
		if s.TraceID != "" {
			t.TraceID = s.TraceID
		}
	}
	t.Ms = ms(end.Sub(t.StartedOn))
	var sum messages.Counts
	for _, s := range steps {
		sum.Add(s.Counts)
		c := messages.TableCounts{}
		for _, n := range s.Counts.Tables {
			c = c.Plus(n)
		}
		t.Steps = append(t.Steps, TraceStep{
			Round: s.Round, Stage: s.Stage, Table: s.Table, Attempt: s.Attempt,
			AtMs: ms(s.Started.Sub(t.StartedOn)), Ms: ms(s.Took),
			Rows: max(c.Downloaded, c.Applied) + c.Uploaded, Bytes: s.Counts.Bytes + s.Counts.Store.BytesUp + s.Counts.Store.BytesDown,
			Billed: s.Counts.Billed, Store: s.Counts.Store, Error: s.Error,
		})
	}
	t.Billed, t.Store = sum.Billed, sum.Store
	return t, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
