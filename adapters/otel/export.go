package otel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/tidemark-sync/tidemark/messages"
)

// Exporter is a Tracer that sends its spans to a collector.
type Exporter struct {
	*Tracer
	provider *trace.TracerProvider
}

// Wanted reports whether the standard environment variables ask for an export:
// OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, and neither
// OTEL_SDK_DISABLED nor OTEL_TRACES_EXPORTER=none says otherwise.
func Wanted() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// Open makes an Exporter by the standard OTEL_… environment variables: endpoint, headers,
// certificates, protocol (http/protobuf or grpc), sampler, service name. service and
// version are what the variables do not say. Nothing is sent yet; a collector that is
// down costs spans, never a cycle. Errors wrap messages.ErrRejected.
func Open(ctx context.Context, service, version string) (*Exporter, error) {
	var client otlptrace.Client
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "", "http/protobuf":
		client = otlptracehttp.NewClient()
	case "grpc":
		client = otlptracegrpc.NewClient()
	default:
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL names a protocol that is not known: it takes http/protobuf or grpc: %w", messages.ErrRejected)
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("start the export of traces: check the OTEL_EXPORTER_OTLP variables: %w", errors.Join(messages.ErrRejected, err))
	}
	// What the environment says comes last and wins.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: it is a list of name=value: %w", errors.Join(messages.ErrRejected, err))
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(about))
	return &Exporter{New(provider), provider}, nil
}

// OnError hears what OpenTelemetry could not do, such as spans that a collector did not
// take, for the whole process. Without it OpenTelemetry prints that to standard error,
// and a header that it cannot read with its value.
func OnError(f func(error)) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(f))
	otel.SetLogger(logr.Discard())
}

// Flush sends what is left, until ctx ends.
func (e *Exporter) Flush(ctx context.Context) error {
	if err := e.provider.ForceFlush(ctx); err != nil {
		return fmt.Errorf("send the last spans: %w", err)
	}
	return nil
}

// Close sends what is left, until ctx ends, and stops.
func (e *Exporter) Close(ctx context.Context) error {
	if err := e.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("send the last spans: %w", err)
	}
	return nil
}
