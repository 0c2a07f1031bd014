package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/otel"
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
			fmt.Fprintln(a.err, "pipeline: the collector of traces does not take them: check OTEL_EXPORTER_OTLP_ENDPOINT. Nothing else suffers.")
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
