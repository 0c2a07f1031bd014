package messages

import (
	"context"
	"strings"
)

// Span is a piece of work as a tracer sees it. Nothing in it is a secret or a value of
// a row.
type Span struct {
	Kind SpanKind
	// Name is the stage's or the call's.
	Name string
	Work
	// Links are other spans that this work goes on with, in W3C form: those in which
	// rows failed that are tried again.
	Links []string
}

// SpanKind tells what kind of work a span is.
type SpanKind int

// The kinds, from the outside in.
const (
	SpanCycle SpanKind = iota
	SpanStage
	// SpanCall is one call of the server or the store.
	SpanCall
	// SpanReplay hands a dead letter to its stage again.
	SpanReplay
)

// Outcome is what a span came to. Of an error there is only the class: its text may
// hold what a server said about a row.
type Outcome struct {
	Billed Billed
	Store  StoreUse
	// Documents is how many were read or written.
	Documents int64
	// Class is that of the error, "" without one.
	Class string
}

type traceparentKey struct{}

// WithTraceparent says which span what happens in ctx belongs to, in W3C form.
func WithTraceparent(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return context.WithValue(ctx, traceparentKey{}, traceparent)
}

// Traceparent is the span that ctx belongs to, in W3C form; "" when nobody traces.
func Traceparent(ctx context.Context) string {
	s, _ := ctx.Value(traceparentKey{}).(string)
	return s
}

// TraceID is the trace that ctx belongs to, in 32 hexadecimal digits; "" when nobody
// traces.
func TraceID(ctx context.Context) string {
	const version, digits = 2, 32
	parts := strings.Split(Traceparent(ctx), "-")
	if len(parts) < 4 || len(parts[0]) != version || len(parts[1]) != digits {
		return ""
	}
	return parts[1]
}
