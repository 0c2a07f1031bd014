package tidemark

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"

	"github.com/tidemark-sync/tidemark/messages"
)

// topic knows the type that travels on it: a stage wired to the wrong one does not
// compile.
type topic[T any] struct{ name string }

// wiring collects the stages and, for a cycle, puts them on a bus. Without a bus it
// is only a picture.
type wiring struct {
	set    settings
	graph  Graph
	router *message.Router
	bus    Bus
	knock  bool // nothing is tried again: the server was down for a while
	watch  *watch
	failed func(error)         // resolves the cycle
	record func(messages.Step) // a failed attempt, for the ledger
	// panicked keeps a message as a dead letter, recovered takes it away.
	panicked  func(topic, table string, message any, p *panicError)
	recovered func(stage, table string)
}

// Bus carries messages between stages. It owes them no order and may deliver one
// several times; it must not lose any before it is closed. A message's context ends
// with that of its subscription, and the next message of a subscription need not
// wait for the last one.
type Bus interface {
	message.Publisher
	message.Subscriber
}

type stageKey struct{}

// StageOf names the stage that subscribes with ctx: what a Bus calls its consumer
// group.
func StageOf(ctx context.Context) string {
	name, _ := ctx.Value(stageKey{}).(string)
	return name
}

// subscriber tells the bus which stage subscribes.
type subscriber struct {
	message.Subscriber
	stage string
}

func (s subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	return s.Subscriber.Subscribe(context.WithValue(ctx, stageKey{}, s.stage), topic)
}

// newWiring makes the bus of one cycle. Messages live as long as their cycle;
// SQLite, not the bus, remembers the work.
func newWiring(set settings) (*wiring, error) {
	logger := watermill.NewSlogLogger(slog.New(zapslog.NewHandler(warnings(set.log.Core()))))
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: time.Minute}, logger)
	if err != nil {
		return nil, fmt.Errorf("make the message router: %w", err)
	}
	w := &wiring{set: set, router: router}
	if set.bus != nil {
		w.bus = set.bus()
	} else {
		// The default, non-blocking mode: blocking would deadlock on the loop from
		// table to table. Order comes from causality and joins on sets.
		w.bus = gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 16}, logger)
	}
	return w, nil
}

// warnings keeps what the bus says of its own comings and goings out of the log.
func warnings(core zapcore.Core) zapcore.Core {
	if quiet, err := zapcore.NewIncreaseLevelCore(core, zapcore.WarnLevel); err == nil {
		return quiet
	}
	return core // it wants to hear even less
}

// connect wires one stage: it alone knows both the bus and the vocabulary. At most
// parallel messages are handled at a time.
func connect[In, Out any](w *wiring, in topic[In], name string, parallel int, handle func(context.Context, In) ([]Out, error), out topic[Out]) {
	w.graph.add(in.name, name, out.name)
	if w.router == nil {
		return
	}
	slots := make(chan struct{}, parallel)
	w.router.AddHandler(name, in.name, subscriber{w.bus, name}, out.name, w.bus, func(msg *message.Message) ([]*message.Message, error) {
		ctx := msg.Context()
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return nil, nil // the cycle is over
		}
		m, err := messages.Decode[In](in.name, msg.Payload)
		if err != nil {
			w.failed(err)
			return nil, nil
		}
		ctx = messages.WithTraceparent(ctx, msg.Metadata.Get(traceparent))
		outs, err := attempt(ctx, w, in, name, m, handle)
		if err != nil {
			w.failed(err)
			return nil, nil // acknowledged: an unacknowledged message would come back at once, for ever
		}
		produced := make([]*message.Message, 0, len(outs))
		for _, o := range outs {
			payload, err := messages.Encode(out.name, o)
			if err != nil {
				w.failed(err)
				return nil, nil
			}
			next := message.NewMessage(watermill.NewShortUUID(), payload)
			for k, v := range msg.Metadata {
				next.Metadata.Set(k, v)
			}
			next.Metadata.Set("caused-by", msg.UUID)
			produced = append(produced, next)
		}
		return produced, nil
	})
}

// finish ends the chain: whatever arrives on the topic resolves the cycle.
func finish[In any](w *wiring, in topic[In], done func(In)) {
	if w.router == nil {
		return
	}
	w.router.AddConsumerHandler("finish", in.name, subscriber{w.bus, "finish"}, func(msg *message.Message) error {
		m, err := messages.Decode[In](in.name, msg.Payload)
		if err != nil {
			w.failed(err)
			return nil
		}
		done(m)
		return nil
	})
}

// attempt calls a stage, again as the retry policy says.
func attempt[In, Out any](ctx context.Context, w *wiring, in topic[In], name string, m In, handle func(context.Context, In) ([]Out, error)) ([]Out, error) {
	about := aboutMessage(m)
	for n := 1; ; n++ {
		started := time.Now()
		inside, ended := w.watch.attempt(ctx, name, about.Table, n)
		outs, err := recovered(inside, name, m, handle)
		spent := ended(err)
		took := time.Since(started)
		log := w.set.log.With(about.fields(name)...).With(zap.Int("attempt", n), zap.Duration("took", took))
		if err == nil {
			log.Debug("step done", zap.Int("messages", len(outs)))
			w.recovered(name, about.Table)
			return outs, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		class, r := w.set.retry.of(err)
		w.record(messages.Step{Stage: name, Table: about.Table, Attempt: n, Counts: spent, Started: started, Took: took, Error: class + ": " + err.Error()})
		if p, ok := errors.AsType[*panicError](err); ok {
			w.panicked(in.name, about.Table, m, p)
		}
		wait := r.Wait.wait(n, err)
		if n > w.set.retry.times(name, r) || w.knock || wait > r.Wait.Max*3/2 {
			log.Debug("step failed", zap.String("class", class), zap.Error(err)) // the cycle's end says it aloud
			return nil, &stageError{name, err}
		}
		log.Warn("step failed, trying again", zap.String("class", class), zap.Error(err), zap.Duration("wait", wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// run puts one message on the bus and waits until the cycle is resolved.
func run[In any](ctx context.Context, w *wiring, in topic[In], m In, resolved <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var runErr error
	wg.Go(func() { runErr = w.router.Run(ctx) })
	defer func() {
		cancel()
		_ = w.router.Close()
		_ = w.bus.Close()
		wg.Wait()
	}()
	select {
	case <-w.router.Running():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	payload, err := messages.Encode(in.name, m)
	if err != nil {
		return err
	}
	first := message.NewMessage(watermill.NewShortUUID(), payload)
	if tp := messages.Traceparent(ctx); tp != "" {
		first.Metadata.Set(traceparent, tp)
	}
	if err := w.bus.Publish(in.name, first); err != nil {
		return fmt.Errorf("start a cycle: %w", errors.Join(err, runErr))
	}
	select {
	case <-resolved:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
