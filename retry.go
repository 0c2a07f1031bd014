package tidemark

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// RetryPolicy is everything about trying again, by the class of a failure. Start from
// DefaultRetryPolicy.
type RetryPolicy struct {
	// Unavailable: the server or the network is down, or another program holds the
	// database.
	Unavailable Retry
	// Conflict: somebody was faster, and the stage could not settle it by itself.
	Conflict Retry
	// Rejected: it can never be accepted as it is, or somebody has to make room, mend
	// rights or decide something first.
	Rejected Retry
	// Unauthorized: what time does not mend: refused credentials, a scope that does not
	// exist, a database that is not attached, damaged, or another remote's.
	Unauthorized Retry
	// Bug: a panic, or an error of no class. A panic is kept as a dead letter.
	Bug Retry
	// Stages bounds how often a stage is tried again within a cycle, whatever the
	// class; by its name in Topology.
	Stages map[string]int
	// Circuit is after how many cycles in a row that found the server unavailable
	// Run's cycles only knock: one request, which is not tried again, until one is
	// answered. 0 never.
	Circuit int
}

// Retry is what is done about one class of failures. A wait that the server itself asks
// for (Retry-After, RetryInfo) is kept when it is longer than ours.
type Retry struct {
	// Times is how often a stage is tried again within a cycle, after Wait.
	Times int
	Wait  Backoff
	// Cycles is what Run waits after a cycle that ended so. The zero Backoff ends Run
	// with the error.
	Cycles Backoff
}

// Backoff is a wait that starts at First and doubles up to Max. What is waited is drawn
// between half of it and one and a half, so that devices do not come back together.
type Backoff struct{ First, Max time.Duration }

// DefaultRetryPolicy is what holds without WithRetryPolicy.
func DefaultRetryPolicy() RetryPolicy {
	const minute = time.Minute
	return RetryPolicy{
		Unavailable: Retry{
			Times: 4, Wait: Backoff{400 * time.Millisecond, 10 * time.Second}, // about six seconds: a lost packet, a server that restarts
			Cycles: Backoff{5 * time.Second, minute}, // nobody waits longer than a minute when it is back; knocking is not billed
		},
		Conflict: Retry{
			Times: 2, Wait: Backoff{100 * time.Millisecond, time.Second}, // the stage reads again
			Cycles: Backoff{5 * time.Second, minute},
		},
		Rejected:     Retry{Cycles: Backoff{30 * time.Second, 5 * minute}},       // each cycle is billed; a person mends it some time
		Unauthorized: Retry{},                                                    // a person has to act: say so by ending
		Bug:          Retry{Cycles: Backoff{30 * time.Second, 30 * time.Minute}}, // the same input panics again, until a new version of the program
		Stages:       map[string]int{messages.StageBackUp: 2},                    // the upload of a snapshot is long and tried again by itself; the next cycle does it too
		Circuit:      3,                                                          // not every lost packet is an outage
	}
}

// maxAsked bounds a wait that a server asks for: it may be a slip.
const maxAsked = time.Hour

func (p RetryPolicy) check() error {
	for _, c := range []struct {
		name string
		r    Retry
	}{
		{"Unavailable", p.Unavailable}, {"Conflict", p.Conflict}, {"Rejected", p.Rejected}, {"Unauthorized", p.Unauthorized}, {"Bug", p.Bug},
	} {
		switch {
		case c.r.Times < 0:
			return fmt.Errorf("%s.Times is negative", c.name)
		case c.r.Times > 0 && c.r.Wait.First <= 0:
			return fmt.Errorf("%s.Wait needs a positive First: without a wait the server is hammered", c.name)
		case c.r.Wait.First > 0 && c.r.Wait.Max < c.r.Wait.First, c.r.Cycles.Max < c.r.Cycles.First:
			return fmt.Errorf("%s has a wait whose Max is below its First", c.name)
		case c.r.Cycles.First < 0 || c.r.Cycles.First == 0 && c.r.Cycles.Max > 0 || c.r.Wait.First < 0:
			return fmt.Errorf("%s has a wait whose First is not positive", c.name)
		}
	}
	known := map[string]bool{}
	var names []string
	for _, e := range Topology().Edges {
		known[e.Stage] = true
		names = append(names, e.Stage)
	}
	for stage, n := range p.Stages {
		switch {
		case !known[stage]:
			return fmt.Errorf("there is no stage %q; there are %s", stage, strings.Join(names, ", "))
		case n < 0:
			return fmt.Errorf("stage %q has a negative limit", stage)
		}
	}
	if p.Circuit < 0 {
		return errors.New("the field Circuit is negative")
	}
	return nil
}

// of is what the policy says about an error, and the name of its class.
func (p RetryPolicy) of(err error) (class string, r Retry) {
	is := func(classes ...error) bool {
		for _, c := range classes {
			if errors.Is(err, c) {
				return true
			}
		}
		return false
	}
	switch {
	case is(messages.ErrReadTimeTooOld, messages.ErrSchemaChanged): // Sync goes round again by itself
		return messages.Class(err), Retry{Cycles: p.Unavailable.Cycles}
	case is(ErrUnauthorized):
		return ErrUnauthorized.Error(), p.Unauthorized
	case is(ErrNotFound):
		return ErrNotFound.Error(), p.Unauthorized
	case is(ErrNotAttached, ErrNotDatabase, ErrOtherScope):
		return classLocal, p.Unauthorized
	case is(ErrDiskFull, ErrReadOnly, ErrMassDelete, ErrNoResolver):
		return classLocal, p.Rejected
	case is(ErrRejected):
		return ErrRejected.Error(), p.Rejected
	case is(messages.ErrConflict):
		return messages.ErrConflict.Error(), p.Conflict
	case is(ErrUnavailable):
		return ErrUnavailable.Error(), p.Unavailable
	case is(ErrLocked):
		return classLocal, p.Unavailable
	}
	return classBug, p.Bug
}

const (
	classLocal = "local" // this device is at fault, not the server
	classBug   = "bug"
)

// times is how often a stage is tried again.
func (p RetryPolicy) times(stage string, r Retry) int {
	if n, ok := p.Stages[stage]; ok {
		return min(n, r.Times)
	}
	return r.Times
}

// wait is what passes before the n-th new attempt, from 1; at least what a server asked
// for.
func (b Backoff) wait(n int, err error) time.Duration {
	d := b.First
	for range n - 1 {
		if d >= b.Max || d > math.MaxInt64/2 {
			break
		}
		d *= 2
	}
	d = min(d, b.Max)
	if d > 0 {
		d = d/2 + rand.N(d)
	}
	return max(d, asked(err))
}

// asked is how long the server wants to be left alone; 0 when it did not say.
func asked(err error) time.Duration {
	var a interface{ RetryAfter() time.Duration }
	if !errors.As(err, &a) {
		return 0
	}
	return max(0, min(a.RetryAfter(), maxAsked))
}

// pace is how Run's cycles follow each other.
type pace struct {
	policy   RetryPolicy
	interval time.Duration
	class    string // of the last failure, "" after a success
	inARow   int    // failures of that class
	store    bool   // it was the snapshot store's: rows go on moving at the usual pace
}

// after says what to wait after a cycle, and whether Run is to end with the error.
func (p *pace) after(err error) (wait time.Duration, end bool) {
	usual := p.interval - p.interval/10 + rand.N(p.interval/5)
	if err == nil {
		p.class, p.inARow, p.store = "", 0, false
		return usual, false
	}
	class, r := p.policy.of(err)
	if class != p.class {
		p.class, p.inARow = class, 0
	}
	p.inARow++
	if r.Cycles == (Backoff{}) {
		return 0, true
	}
	var f *stageError
	p.store = errors.Is(err, ErrUnavailable) && errors.As(err, &f) && f.stage == messages.StageBackUp
	if p.store {
		return max(usual, asked(err)), false
	}
	return r.Cycles.wait(p.inARow, err), false
}

// knock: the circuit is open, and the next cycle tries nothing twice.
func (p *pace) knock() bool {
	return p.policy.Circuit > 0 && p.inARow >= p.policy.Circuit && p.class == ErrUnavailable.Error()
}

// stageError remembers which stage an error ended.
type stageError struct {
	stage string
	error
}

func (e *stageError) Unwrap() error { return e.error }
