package main

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/otel"
	"github.com/tidemark-sync/tidemark/messages"
)

// flushWithin is how long the end of a command waits for a collector.
const flushWithin = 2 * time.Second

type closing func() error

func (f closing) Close() error { return f() }

// tracer is nil unless the standard environment variables name a collector.
func (a *app) tracer(ctx context.Context) (tidemark.Tracer, io.Closer, error) {
	if !otel.Wanted() {
		return nil, nil, nil
	}
	var once sync.Once
	otel.OnError(func(error) { // its text may hold the collector's URL, and that a password
		once.Do(func() {
			a.complain(2, "pipeline: ", "the collector of traces does not take them: check OTEL_EXPORTER_OTLP_ENDPOINT. Nothing else suffers.")
		})
	})
	e, err := otel.Open(ctx, "pipeline", version())
	if err != nil {
		return nil, nil, usageError{err}
	}
	return e, closing(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushWithin)
		defer cancel()
		return e.Close(ctx)
	}), nil
}

// traceReplay makes a span of a replay in the trace in which the letter failed.
func traceReplay(ctx context.Context, t tidemark.Tracer, r tidemark.Replayed) {
	if t == nil || r.Traceparent == "" {
		return
	}
	_, end := t.Start(messages.WithTraceparent(ctx, r.Traceparent), messages.Span{
		Kind: messages.SpanReplay, Name: "replay", Work: messages.Work{Stage: r.Stage, Table: r.Table, Attempt: 1},
	})
	var o messages.Outcome
	if r.Outcome == "failed" {
		o.Class = messages.ErrRejected.Error()
	}
	end(o)
}
