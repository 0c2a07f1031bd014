package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/prometheus"
)

// metricsFlags are those of run that are about metrics.
type metricsFlags struct {
	address string
	open    bool
}

// listen checks the address and opens it; nil without one. What is served tells how
// much an application writes, so only this machine may ask, unless the owner says so.
func (m metricsFlags) listen(ctx context.Context) (net.Listener, error) {
	if m.address == "" {
		return nil, nil
	}
	host, port, err := net.SplitHostPort(m.address)
	if err != nil {
		return nil, misuse("--metrics takes an address and a port, such as 127.0.0.1:9464")
	}
	ip := net.ParseIP(host)
	if local := host == "localhost" || ip != nil && ip.IsLoopback(); !local && !m.open {
		return nil, misuse("--metrics %s: other machines could read it, without a password: listen on 127.0.0.1, or add --metrics-open", plain(m.address))
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("serve metrics: choose another port with --metrics: %w", err)
	}
	return l, nil
}

// served is what run serves; nil is nothing.
type served struct {
	listener net.Listener
	server   *http.Server
	metrics  *prometheus.Metrics
	ended    chan struct{} // nil: it has not begun
}

// serveMetrics opens the address, if there is one, and lets every pipeline that is
// opened from now on be observed. It answers when watch says where to look.
func (a *app) serveMetrics(ctx context.Context, flags metricsFlags) (*served, error) {
	l, err := flags.listen(ctx)
	if l == nil || err != nil {
		return nil, err
	}
	s := &served{listener: l, metrics: prometheus.New()}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.Handler())
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, `<!doctype html><title>tidemark</title><a href="/metrics">metrics</a>`+"\n")
	})
	s.server = &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	a.options = append(a.options, tidemark.WithObserver(s.metrics.Observe))
	return s, nil
}

// watch says which pipeline's database is looked at.
func (s *served) watch(a *app, w *work) {
	if s == nil {
		return
	}
	s.metrics.Watch(w.pipeline.Gauges)
	if s.ended != nil {
		return
	}
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		_ = s.server.Serve(s.listener) // it ends with close
	}()
	a.out.printf("Metrics are at http://%s/metrics.\n", s.listener.Addr())
}

func (s *served) close() {
	if s == nil {
		return
	}
	_ = s.listener.Close()
	_ = s.server.Close() // who asks just now asks again
	if s.ended != nil {
		<-s.ended
	}
}
