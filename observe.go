package tidemark

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-sync/tidemark/messages"
)

// traceparent is the key of W3C's trace context in a message's metadata: it crosses
// any bus, retries and replays.
const traceparent = "traceparent"

// Event is something that happens in a cycle: one of the six types below.
type Event = messages.Event

type (
	// CycleStarted begins a cycle.
	CycleStarted = messages.CycleStarted
	// StageStarted begins one attempt of a stage.
	StageStarted = messages.StageStarted
	// Progress says how far an attempt is.
	Progress = messages.Progress
	// StageDone ends an attempt.
	StageDone = messages.StageDone
	// StageFailed ends an attempt, too; the stage may be tried again.
	StageFailed = messages.StageFailed
	// CycleDone ends a cycle, well or with an error.
	CycleDone = messages.CycleDone
)

// WithObserver tells f what happens in a cycle. f is called one event at a time, in
// order, by a goroutine that Sync starts and that is gone when Sync returns. A slow f
// delays no stage: Progress that it has not taken yet is replaced by the newer one, and
// Sync waits at its end for at most a second until f has heard everything. What f
// panics with is logged. Given several times, each f hears everything.
func WithObserver(f func(Event)) Option {
	return func(s *settings) error {
		if f == nil {
			return fmt.Errorf("%w: WithObserver needs a function", ErrInvalidOption)
		}
		s.observers = append(s.observers, f)
		return nil
	}
}

// Tracer makes spans of cycles, of their stages, and of the calls of the server and
// the store; adapters/otel has one. It is used by many goroutines at once and must
// not block.
type Tracer interface {
	// Start begins a span inside the one that messages.Traceparent(ctx) names, or,
	// where it names none, the one that ctx carries. The context it returns carries
	// the new span, and names it for messages.Traceparent. end is called once.
	Start(ctx context.Context, s messages.Span) (inside context.Context, end func(messages.Outcome))
}

// WithTracer traces every cycle. The span of a cycle is inside the one that Sync's ctx
// carries.
func WithTracer(t Tracer) Option {
	return func(s *settings) error {
		if t == nil {
			return fmt.Errorf("%w: WithTracer needs a tracer", ErrInvalidOption)
		}
		s.tracer = t
		return nil
	}
}

// start begins a span where somebody traces.
func start(ctx context.Context, t Tracer, s messages.Span) (context.Context, func(messages.Outcome)) {
	if t == nil {
		return ctx, func(messages.Outcome) {}
	}
	return t.Start(ctx, s)
}

// watch is one cycle as observers and the tracer see it. Without one only what is
// billed is counted.
type watch struct {
	cycle  string
	round  int
	tracer Tracer
	feed   *feed // nil: nobody listens
	dirty  func(context.Context) int64
	links  func(ctx context.Context, stage string) []string
}

type watchKey struct{}

func watchOf(ctx context.Context) *watch {
	w, _ := ctx.Value(watchKey{}).(*watch)
	return w
}

// on is the same watch in one round of the cycle.
func (w *watch) on(round int) *watch {
	if w == nil {
		return nil
	}
	n := *w
	n.round = round
	return &n
}

// begin starts to watch a cycle; the function it returns ends that.
func (p *Pipeline) begin(ctx context.Context, cycle string, full bool) (context.Context, func(Report, error)) {
	started := time.Now()
	w := &watch{cycle: cycle, tracer: p.set.tracer, links: p.links, dirty: func(ctx context.Context) int64 {
		h, _ := p.local.Health(ctx) // a total that is not known is 0
		return h.Dirty
	}}
	if len(p.set.observers) > 0 {
		w.feed = newFeed(p.set.observers, p.set.log)
	}
	w.tell(CycleStarted{Cycle: cycle, Full: full})
	ctx, end := start(ctx, w.tracer, messages.Span{Kind: messages.SpanCycle, Name: "cycle", Work: messages.Work{Cycle: cycle}})
	return context.WithValue(ctx, watchKey{}, w), func(r Report, err error) {
		counts := messages.Counts{Tables: r.Tables, Billed: r.Billed, Store: r.Store}
		if r.Snapshot != nil {
			counts.Snapshot = *r.Snapshot
		}
		end(messages.Outcome{Billed: r.Billed, Store: r.Store, Class: class(err)})
		w.tell(CycleDone{Cycle: cycle, Took: time.Since(started), Counts: counts, InStep: r.InStep, Class: class(err), Err: err})
		w.feed.close()
	}
}

// links are the spans in which failed what a stage is asked to try again.
func (p *Pipeline) links(ctx context.Context, stage string) []string {
	l, err := p.local.ReplayedTraces(ctx, stage)
	if err != nil {
		p.set.log.Debug("the traces of replayed rows could not be read", zap.Error(err))
	}
	return l
}

// class is that of an error, for others to see.
func class(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	name, _ := RetryPolicy{}.of(err)
	return name
}

func (w *watch) tell(e Event) {
	if w != nil && w.feed != nil {
		w.feed.tell(e)
	}
}

// effort is one attempt of a stage: the calls it makes find it in their context.
type effort struct {
	watch *watch
	work  messages.Work
	total int64 // rows to upload; 0: not known

	mu    sync.Mutex
	spent messages.Counts
	done  map[messages.Unit]int64
}

type effortKey struct{}

func effortOf(ctx context.Context) *effort {
	e, _ := ctx.Value(effortKey{}).(*effort)
	return e
}

// attempt starts to watch one attempt of a stage. The function it returns ends that
// and says what was billed.
func (w *watch) attempt(ctx context.Context, stage, table string, n int) (context.Context, func(error) messages.Counts) {
	started := time.Now()
	e := &effort{watch: w, work: messages.Work{Stage: stage, Table: table, Attempt: n}, done: map[messages.Unit]int64{}}
	end := func(messages.Outcome) {}
	if w != nil {
		e.work.Cycle, e.work.Round = w.cycle, w.round
		span := messages.Span{Kind: messages.SpanStage, Name: stage, Work: e.work}
		if stage == messages.StageUpload && w.feed != nil {
			e.total = w.dirty(ctx)
		}
		if w.tracer != nil {
			span.Links = w.links(ctx, stage)
		}
		ctx, end = start(ctx, w.tracer, span)
		w.tell(StageStarted{Work: e.work})
	}
	return context.WithValue(ctx, effortKey{}, e), func(err error) messages.Counts {
		e.mu.Lock()
		spent := e.spent
		e.mu.Unlock()
		end(messages.Outcome{Billed: spent.Billed, Store: spent.Store, Class: class(err)})
		if err == nil {
			w.tell(StageDone{Work: e.work, Took: time.Since(started), Billed: spent.Billed, Store: spent.Store})
		} else {
			w.tell(StageFailed{Work: e.work, Took: time.Since(started), Billed: spent.Billed, Store: spent.Store, Class: class(err), Err: err})
		}
		return spent
	}
}

// spend adds what a call cost.
func (e *effort) spend(b messages.Billed, s messages.StoreUse) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spent.Add(messages.Counts{Billed: b, Store: s})
}

// moved tells how far an attempt is.
func (e *effort) moved(unit messages.Unit, n int64) {
	if e == nil || e.watch == nil || e.watch.feed == nil || n == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done[unit] += n
	p := Progress{Work: e.work, Unit: unit, Done: e.done[unit]}
	if unit == messages.RowsUploaded {
		p.Total = max(e.total, p.Done)
	}
	e.watch.tell(p)
}

// feed hands events to the observers, so that no stage waits for them.
type feed struct {
	observers []func(Event)
	log       *zap.Logger
	wake      chan struct{} // one is enough
	done      chan struct{}

	mu     sync.Mutex
	queue  []Event
	closed bool
}

// patience is how long the end of a cycle waits for observers.
const patience = time.Second

func newFeed(observers []func(Event), log *zap.Logger) *feed {
	f := &feed{observers: observers, log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go f.deliver()
	return f
}

func (f *feed) tell(e Event) {
	f.mu.Lock()
	if p, ok := e.(Progress); !ok || !f.replace(p) {
		f.queue = append(f.queue, e)
	}
	f.mu.Unlock()
	f.signal()
}

// replace puts newer progress in the place of what was not heard yet: so the queue
// holds a few events a stage, however slow the observer is.
func (f *feed) replace(p Progress) bool {
	for i := len(f.queue) - 1; i >= 0; i-- {
		switch q := f.queue[i].(type) {
		case Progress:
			if q.Work == p.Work && q.Unit == p.Unit {
				f.queue[i] = p
				return true
			}
		case StageStarted:
			if q.Work == p.Work {
				return false
			}
		}
	}
	return false
}

func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *feed) deliver() {
	defer close(f.done)
	for range f.wake {
		f.mu.Lock()
		queue, closed := f.queue, f.closed
		f.queue = nil
		f.mu.Unlock()
		for _, e := range queue {
			for _, o := range f.observers {
				f.call(o, e)
			}
		}
		if closed {
			return
		}
	}
}

func (f *feed) call(o func(Event), e Event) {
	defer func() {
		if r := recover(); r != nil {
			f.log.Error("an observer panicked", zap.Any("panic", r))
		}
	}()
	o(e)
}

// close waits until everything was heard, but not for ever.
func (f *feed) close() {
	if f == nil {
		return
	}
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.signal()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-f.done:
	case <-timer.C:
		f.log.Warn("an observer did not hear all of a cycle in time")
	}
}

// Gauges reads how the database stands, in numbers for a monitor such as
// adapters/prometheus. It uses no network.
func (p *Pipeline) Gauges(ctx context.Context) (messages.Gauges, error) { return p.local.Gauges(ctx) }
