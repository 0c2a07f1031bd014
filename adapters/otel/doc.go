// Package otel traces with OpenTelemetry: a span for every cycle, every attempt of a
// stage (of a table, where a stage handles one at a time) and every call of the server
// and the store. Open exports them over OTLP as the standard environment variables say;
// New uses a provider that the application has set up.
//
// Spans carry names of stages and tables, counts, and classes of errors: no value of a
// row, no document's id, no text of an error, no address and no secret.
package otel
