package otel

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/tidemark-sync/tidemark/messages"
)

// scope is the name of what makes the spans.
const scope = "github.com/tidemark-sync/tidemark"

// Tracer makes OpenTelemetry spans; give it to tidemark.WithTracer. It is safe for
// concurrent use.
type Tracer struct {
	tracer trace.Tracer
	w3c    propagation.TraceContext
}

// New returns a Tracer on a provider that the application owns.
func New(provider trace.TracerProvider) *Tracer {
	return &Tracer{tracer: provider.Tracer(scope)}
}

// Start begins a span inside the one that messages.Traceparent(ctx) names or, where it
// names none, the one that ctx carries.
func (t *Tracer) Start(ctx context.Context, s messages.Span) (context.Context, func(messages.Outcome)) {
	ctx = t.inside(ctx)
	options := []trace.SpanStartOption{trace.WithAttributes(attributes(s)...)}
	if s.Kind == messages.SpanCall {
		options = append(options, trace.WithSpanKind(trace.SpanKindClient))
	}
	for _, l := range s.Links {
		if sc := t.parse(l); sc.IsValid() {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: sc}))
		}
	}
	ctx, span := t.tracer.Start(ctx, s.Name, options...) //nolint:spancheck // the function that is returned ends it
	carrier := propagation.MapCarrier{}
	t.w3c.Inject(ctx, carrier)
	ctx = messages.WithTraceparent(ctx, carrier["traceparent"])
	return ctx, func(o messages.Outcome) { //nolint:spancheck // as above
		span.SetAttributes(results(o)...)
		if o.Class != "" {
			span.SetAttributes(attribute.String("error.type", o.Class))
			span.SetStatus(codes.Error, o.Class)
		}
		span.End()
	}
}

// inside makes the span that a message names the parent: its context need not be that
// of the stage which sent it.
func (t *Tracer) inside(ctx context.Context) context.Context {
	sc := t.parse(messages.Traceparent(ctx))
	if have := trace.SpanContextFromContext(ctx); !sc.IsValid() || have.TraceID() == sc.TraceID() && have.SpanID() == sc.SpanID() {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, sc)
}

func (t *Tracer) parse(traceparent string) trace.SpanContext {
	if traceparent == "" {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(t.w3c.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent}))
}

func attributes(s messages.Span) []attribute.KeyValue {
	kv := []attribute.KeyValue{attribute.String("tidemark.cycle", s.Cycle)}
	if s.Stage != "" {
		kv = append(kv, attribute.String("tidemark.stage", s.Stage), attribute.Int("tidemark.round", s.Round), attribute.Int("tidemark.attempt", s.Attempt))
	}
	if s.Table != "" {
		kv = append(kv, attribute.String("tidemark.table", s.Table))
	}
	return kv
}

func results(o messages.Outcome) []attribute.KeyValue {
	var kv []attribute.KeyValue
	for _, c := range []struct {
		name string
		n    int64
	}{
		{"tidemark.documents", o.Documents},
		{"tidemark.billed.reads", o.Billed.Reads},
		{"tidemark.billed.writes", o.Billed.Writes},
		{"tidemark.billed.deletes", o.Billed.Deletes},
		{"tidemark.store.puts", o.Store.Puts},
		{"tidemark.store.gets", o.Store.Gets},
		{"tidemark.store.bytes_up", o.Store.BytesUp},
		{"tidemark.store.bytes_down", o.Store.BytesDown},
	} {
		if c.n != 0 {
			kv = append(kv, attribute.Int64(c.name, c.n))
		}
	}
	return kv
}
