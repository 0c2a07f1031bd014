package tidemark

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type askingError struct {
	error
	wait time.Duration
}

func (a askingError) RetryAfter() time.Duration { return a.wait }
func (a askingError) Unwrap() error             { return a.error }

// Every wait is drawn around its doubling, up to the limit, and never below what the
// server asked for.
func TestBackoffDoublesToItsLimit(t *testing.T) {
	b := Backoff{time.Second, 10 * time.Second}
	for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 5: 10 * time.Second, 5000: 10 * time.Second} {
		seen := map[time.Duration]bool{}
		for range 200 {
			d := b.wait(n, nil)
			seen[d] = true
			if d < want/2 || d >= want/2+want {
				t.Errorf("wait %d is %v, want around %v", n, d, want)
			}
		}
		if len(seen) < 100 {
			t.Errorf("wait %d has no jitter: %d values of 200", n, len(seen))
		}
	}
	if d := b.wait(1, fmt.Errorf("try again: %w", askingError{ErrUnavailable, time.Minute})); d != time.Minute {
		t.Errorf("a server that asks for a minute gets %v", d)
	}
	if d := b.wait(1, askingError{ErrUnavailable, 300 * time.Hour}); d != maxAsked {
		t.Errorf("a server that asks for days gets %v", d)
	}
}

// The circuit opens after some cycles that found nobody, closes with the first answer,
// and the waits between cycles grow to a minute and no further.
func TestPaceOfAnOutage(t *testing.T) {
	p := &pace{policy: DefaultRetryPolicy(), interval: 30 * time.Second}
	down := fmt.Errorf("nobody there: %w", ErrUnavailable)
	for n := range 12 {
		if got, want := p.knock(), n >= p.policy.Circuit; got != want {
			t.Errorf("cycle %d knocks: %v", n+1, got)
		}
		wait, end := p.after(down)
		if end || wait > 90*time.Second || n == 0 && wait > 10*time.Second || n > 5 && wait < 30*time.Second {
			t.Errorf("after failure %d: %v, %v", n+1, wait, end)
		}
	}
	if wait, _ := p.after(nil); p.knock() || wait < 27*time.Second || wait > 33*time.Second {
		t.Errorf("after it came back: knock %v, wait %v", p.knock(), wait)
	}
	// A bug is no outage; nor is the store's outage a reason to leave the rows.
	p.after(errors.New("no class"))
	if p.knock() || p.class != classBug {
		t.Errorf("a bug: %+v", p)
	}
	for range 5 {
		if wait, _ := p.after(&stageError{"back up", down}); wait > 33*time.Second || !p.store {
			t.Errorf("the store is down: wait %v, %+v", wait, p)
		}
	}
	if !p.knock() {
		t.Error("the store is hammered")
	}
	for _, err := range []error{ErrUnauthorized, ErrNotFound, ErrNotAttached, ErrOtherScope, ErrNotDatabase} {
		if _, end := p.after(fmt.Errorf("no: %w", err)); !end {
			t.Errorf("%v does not end Run", err)
		}
	}
	for _, err := range []error{ErrDiskFull, ErrMassDelete, ErrNoConditions, ErrLocked} {
		if wait, end := p.after(fmt.Errorf("no: %w", err)); end || wait <= 0 {
			t.Errorf("after %v: %v, %v", err, wait, end)
		}
	}
}

// During an outage other network addresses, or SyncSoon, end the wait; in peace the
// addresses are not looked at.
func TestWaitEndsWhenTheNetworkChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Value
		now.Store("10.0.0.1/24")
		p := &Pipeline{set: defaults(), soon: make(chan struct{}, 1)}
		p.set.soonAfter, p.set.addresses = 0, func() string { return now.Load().(string) }
		r := rest{p: p}
		waits := func(failed bool, then func()) time.Duration {
			started := time.Now()
			go func() {
				<-time.After(10 * time.Second)
				then()
			}()
			r.wait(context.Background(), time.Hour, failed)
			return time.Since(started)
		}
		if d := waits(true, func() { now.Store("192.168.7.2/24") }); d > 13*time.Second {
			t.Errorf("the network changed, and the next cycle came after %v", d)
		}
		if d := waits(true, func() { now.Store("") }); d != time.Hour {
			t.Errorf("the network went away, and the next cycle came after %v", d)
		}
		if d := waits(false, func() { now.Store("10.0.0.1/24") }); d != time.Hour {
			t.Errorf("in peace the next cycle came after %v", d)
		}
		if d := waits(false, p.SyncSoon); d != 10*time.Second {
			t.Errorf("after SyncSoon the next cycle came after %v", d)
		}
	})
}

func TestRetryPoliciesThatAreRefused(t *testing.T) {
	for name, change := range map[string]func(*RetryPolicy){
		"no wait":        func(p *RetryPolicy) { p.Conflict = Retry{Times: 1} },
		"negative":       func(p *RetryPolicy) { p.Bug.Times = -1 },
		"max below":      func(p *RetryPolicy) { p.Unavailable.Wait.Max = time.Millisecond },
		"no first":       func(p *RetryPolicy) { p.Rejected.Cycles.First = 0 },
		"no such stage":  func(p *RetryPolicy) { p.Stages["dance"] = 1 },
		"negative stage": func(p *RetryPolicy) { p.Stages["upload"] = -1 },
		"circuit":        func(p *RetryPolicy) { p.Circuit = -1 },
	} {
		p := DefaultRetryPolicy()
		change(&p)
		if err := WithRetryPolicy(p)(&settings{}); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := defaults()
	if err := WithRetryPolicy(DefaultRetryPolicy())(&s); err != nil {
		t.Error(err)
	}
}
