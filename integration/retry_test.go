package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// faulty makes every remote of the fleet fail as fault says; it counts the calls.
func (f *fleet) faulty(fault func(memory.Call) memory.Fault) *atomic.Int64 {
	var calls atomic.Int64
	f.remote = func() tidemark.Remote {
		r := f.server.Remote()
		r.Fault = func(c memory.Call) memory.Fault {
			calls.Add(1)
			return fault(c)
		}
		return r
	}
	return &calls
}

// What is tried again, and how often, is what the policy says about the class of the
// failure and the stage.
func TestRetriesByClass(t *testing.T) {
	t.Parallel()
	policy := tidemark.DefaultRetryPolicy()
	policy.Unavailable.Times, policy.Conflict.Times, policy.Rejected.Times = 3, 1, 0
	policy.Stages = map[string]int{messages.StageUpload: 2}
	for _, c := range []struct {
		name  string
		op    string
		err   error
		calls int64
	}{
		{"unavailable", memory.OpDevices, messages.ErrUnavailable, 1 + 3},
		{"unavailable, limited by the stage", memory.OpCommit, messages.ErrUnavailable, 1 + 2},
		{"conflict", memory.OpDevices, messages.ErrConflict, 1 + 1},
		{"rejected", memory.OpDevices, messages.ErrRejected, 1},
		{"unauthorized", memory.OpDevices, messages.ErrUnauthorized, 1},
		{"of no class", memory.OpDevices, errors.New("what is this"), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, oneTable)
				var calls atomic.Int64
				f.faulty(func(call memory.Call) memory.Fault {
					if call.Op != c.op {
						return memory.Fault{}
					}
					calls.Add(1)
					return memory.Fault{Before: fmt.Errorf("no: %w", c.err)}
				})
				a := f.device("a", tidemark.WithRetryPolicy(policy))
				defer a.db.Close()
				a.notes(1)
				if _, err := a.p.Sync(t.Context()); !errors.Is(err, c.err) {
					t.Errorf("error %v, want %v", err, c.err)
				}
				if calls.Load() != c.calls {
					t.Errorf("%d calls, want %d", calls.Load(), c.calls)
				}
			})
		})
	}
}

type busyError struct {
	error
	wait time.Duration
}

func (r busyError) RetryAfter() time.Duration { return r.wait }
func (r busyError) Unwrap() error             { return r.error }

// A server that says when to come back is not asked before; when that is long, the
// cycle ends and Run waits.
func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		var asked []time.Time
		ask := 12 * time.Second
		f.faulty(func(c memory.Call) memory.Fault {
			asked = append(asked, time.Now())
			if len(asked) > 2 {
				return memory.Fault{}
			}
			return memory.Fault{Before: busyError{fmt.Errorf("busy: %w", messages.ErrUnavailable), ask}}
		})
		a := f.device("a")
		defer a.db.Close()
		a.sync()
		for i := range 2 {
			if d := asked[i+1].Sub(asked[i]); d < ask || d > ask+time.Second {
				t.Errorf("asked again after %v, want %v", d, ask)
			}
		}
		asked, ask = nil, 20*time.Minute
		ctx, stop := context.WithCancel(t.Context())
		failed := 0
		if err := a.p.Run(ctx, func(_ tidemark.Report, err error) {
			if err == nil {
				stop()
			} else {
				failed++
			}
		}); err != nil {
			t.Fatal(err)
		}
		if d := asked[2].Sub(asked[0]); failed != 2 || d < 2*ask || d > 2*ask+time.Minute {
			t.Errorf("%d cycles failed and the answer came after %v", failed, d)
		}
	})
}

// An hour's outage costs few requests, and the first cycle after it comes within a
// minute and a half. What was edited meanwhile goes up with it.
func TestRunWaitsOutAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		var down atomic.Bool
		down.Store(true)
		calls := f.faulty(func(memory.Call) memory.Fault {
			if down.Load() {
				return memory.Fault{Before: fmt.Errorf("nobody there: %w", messages.ErrUnavailable)}
			}
			return memory.Fault{}
		})
		a := f.device("a")
		defer a.db.Close()
		ctx, stop := context.WithCancel(t.Context())
		var back time.Time
		done := make(chan error, 1)
		go func() {
			done <- a.p.Run(ctx, func(r tidemark.Report, err error) {
				if err == nil && back.IsZero() {
					back = time.Now()
					if r.Total().Uploaded != 40 {
						t.Errorf("the first cycle moved %+v", r.Total())
					}
					stop()
				}
			})
		}()
		for range 40 { // edits do not make it knock more often
			<-time.After(90 * time.Second)
			a.notes(1)
		}
		n := calls.Load()
		down.Store(false)
		mended := time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n > 90 || n < 40 {
			t.Errorf("%d requests in an hour without an answer", n)
		}
		if d := back.Sub(mended); d > 90*time.Second {
			t.Errorf("it was back %v after the server", d)
		}
	})
}

// A stage that panics ends its cycle with an error and leaves a letter without any of
// the row's data; no edit is lost, nothing else stops, and the next cycles are not hot.
// When the cause is gone, the letter is replayed and goes.
func TestAPanicBecomesALetter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		var broken atomic.Bool
		broken.Store(true)
		f.faulty(func(c memory.Call) memory.Fault {
			if broken.Load() && c.Op == memory.OpCommit {
				panic(fmt.Sprint("cannot encode ", c.Commit.Writes[0].Document.Fields))
			}
			return memory.Fault{}
		})
		a := f.device("a")
		defer a.db.Close()
		a.exec(`INSERT INTO note (title) VALUES ('a secret')`)
		_, err := a.p.Sync(t.Context())
		if err == nil || !strings.Contains(err.Error(), `stage "upload" panicked`) || strings.Contains(err.Error(), "secret") {
			t.Fatalf("error: %v", err)
		}
		letters := a.failed(tidemark.DeadLetterFilter{})
		if len(letters) != 1 || letters[0].Stage != messages.StageUpload || letters[0].Class != "bug" || letters[0].Replay {
			t.Fatalf("letters: %+v", letters)
		}
		x, err := tidemark.ReadDeadLetter(t.Context(), a.db, letters[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(x.Message), `"cycle":"`) || len(x.Stack) < 3 || !strings.Contains(strings.Join(x.Stack, "\n"), "stages.(*Upload)") ||
			!strings.Contains(x.Stack[0], "retry_test.go") || strings.Contains(fmt.Sprint(x), "secret") {
			t.Errorf("letter: %+v", x)
		}
		if w := a.waiting(); len(w) != 0 {
			t.Errorf("waiting: %v", w)
		}

		// Run goes on, slowly.
		ctx, stop := context.WithCancel(t.Context())
		var cycles, ended atomic.Int64
		done := make(chan error, 1)
		go func() {
			done <- a.p.Run(ctx, func(_ tidemark.Report, err error) {
				cycles.Add(1)
				if err == nil {
					ended.Add(1)
				}
			})
		}()
		<-time.After(6 * time.Hour)
		if n := cycles.Load(); n < 5 || n > 40 {
			t.Errorf("%d cycles in six hours of the same panic", n)
		}
		letters = a.failed(tidemark.DeadLetterFilter{})
		if len(letters) != 1 || letters[0].ID != x.ID || letters[0].Attempts != cycles.Load()+1 {
			t.Errorf("letters after %d cycles: %+v", cycles.Load(), letters)
		}

		// A new version of the program; the replay does not wait for the next cycle's time.
		broken.Store(false)
		before := cycles.Load()
		if got := a.replay(tidemark.DeadLetterFilter{IDs: []int64{x.ID}}, true); got != " requested" || a.failed(tidemark.DeadLetterFilter{})[0].Replay {
			t.Errorf("dry run: %q", got)
		}
		if got := a.replay(tidemark.DeadLetterFilter{IDs: []int64{x.ID}}, false); got != " requested" || !a.failed(tidemark.DeadLetterFilter{})[0].Replay {
			t.Errorf("replay: %q", got)
		}
		<-time.After(5 * time.Second)
		if cycles.Load() != before+1 || ended.Load() != 1 {
			t.Errorf("%d cycles after the replay, %d came to their end", cycles.Load()-before, ended.Load())
		}
		if letters := a.failed(tidemark.DeadLetterFilter{Discarded: true}); len(letters) != 0 {
			t.Errorf("the letter did not go: %+v", letters)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(f.server.Dump()); n != 1 {
			t.Errorf("%d documents", n)
		}
	})
}
