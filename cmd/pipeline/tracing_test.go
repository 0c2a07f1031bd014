package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collectedCommand plays a collector for a command and prints what spans it sent, a
// line a span.
func collectedCommand(args []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var broken error
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var in collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &in)
		}
		mu.Lock()
		defer mu.Unlock()
		broken = errors.Join(broken, err)
		for _, rs := range in.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					fmt.Printf("span %s of %x: %s\n", s.GetName(), s.GetTraceId(), s.GetStatus().GetMessage())
				}
			}
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	cmd := child(args, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+l.Addr().String())
	cmd.Stdout = os.Stderr
	err = cmd.Run()
	_ = server.Close()
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(err, broken)
}
