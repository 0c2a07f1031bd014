package prometheus

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tidemark-sync/tidemark/messages"
)

// readWithin is how long a scrape waits for the database.
const readWithin = 5 * time.Second

// Metrics is a collector of Prometheus that a pipeline's events and gauges fill. It is
// safe for concurrent use.
type Metrics struct {
	cycles    *prometheus.CounterVec
	took      prometheus.Histogram
	stages    *prometheus.HistogramVec
	failures  *prometheus.CounterVec
	rows      *prometheus.CounterVec
	conflicts prometheus.Counter
	letters   prometheus.Counter
	billed    *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	snapshots prometheus.Counter

	gauges atomic.Pointer[func(context.Context) (messages.Gauges, error)]
}

var (
	readable   = gauge("status_readable", "1 when the database could be read for this scrape, 0 when not")
	dirty      = gauge("dirty_rows", "rows and deletes to be uploaded")
	oldest     = gauge("oldest_dirty_seconds", "how long ago the oldest edit was made that is to be uploaded and was not set aside; 0 without one")
	waiting    = gauge("waiting_documents", "documents that wait for a parent")
	dead       = gauge("dead_letters", "rows and documents that were set aside")
	kept       = gauge("conflicts_kept", "conflicts whose losing version is kept")
	lastCycle  = gauge("last_cycle_timestamp_seconds", "when the last cycle came to its end, Unix time; 0: never")
	snapshotOn = gauge("snapshot_timestamp_seconds", "when the newest snapshot was made that this device knows of, Unix time; 0: it knows of none")
	snapshotSz = gauge("snapshot_bytes", "size of that snapshot in the store")
	clock      = gauge("clock_offset_seconds", "the server's clock minus this machine's")
)

func gauge(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("tidemark_"+name, help, nil, nil)
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tidemark_" + name, Help: help}, labels)
}

// New returns Metrics that count from 0. Every series is there from the beginning, so
// that its first increase shows.
func New() *Metrics {
	seconds := prometheus.ExponentialBuckets(0.005, 4, 9) // 5 ms to 5 min
	m := &Metrics{
		cycles: counter("cycles_total", "cycles, by the class of their error; ok without one", "result"),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidemark_cycle_seconds", Help: "how long a cycle took", Buckets: seconds,
		}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tidemark_stage_seconds", Help: "how long one attempt of a stage took", Buckets: seconds,
		}, []string{"stage"}),
		failures:  counter("stage_failures_total", "attempts of a stage that failed, by the class of the error", "stage", "class"),
		rows:      counter("rows_total", "rows moved", "direction"),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_conflicts_total", Help: "conflicts decided"}),
		letters:   prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_letters_total", Help: "rows and documents set aside"}),
		billed:    counter("billed_operations_total", "billed operations of the server (read, write, delete) and the store (put, get)", "operation"),
		bytes:     counter("store_bytes_total", "bytes to (up) and from (down) the snapshot store", "direction"),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_snapshots_total", Help: "snapshots made by this device"}),
	}
	classes := []string{"unavailable", "conflict", "rejected", "unauthorized", "not found", "read time too old", "local", "bug", "cancelled"}
	m.cycles.WithLabelValues("ok")
	for _, c := range classes {
		m.cycles.WithLabelValues(c)
	}
	for _, s := range stages {
		m.stages.WithLabelValues(s)
		for _, c := range classes {
			m.failures.WithLabelValues(s, c)
		}
	}
	m.count(messages.Counts{}) // begins the other series
	return m
}

var stages = []string{
	messages.StageCheckDevices, messages.StageDownload, messages.StageSettle, messages.StageUpload,
	messages.StageRegister, messages.StagePurge, messages.StageBackUp,
}

// Watch says where the gauges are read, tidemark's Pipeline.Gauges. Without it there
// are none.
func (m *Metrics) Watch(gauges func(context.Context) (messages.Gauges, error)) {
	m.gauges.Store(&gauges)
}

// Observe is for tidemark.WithObserver.
func (m *Metrics) Observe(e messages.Event) {
	switch e := e.(type) {
	case messages.StageDone:
		m.stages.WithLabelValues(e.Stage).Observe(e.Took.Seconds())
	case messages.StageFailed:
		m.stages.WithLabelValues(e.Stage).Observe(e.Took.Seconds())
		m.failures.WithLabelValues(e.Stage, e.Class).Inc()
	case messages.CycleDone:
		result := e.Class
		if result == "" {
			result = "ok"
		}
		m.cycles.WithLabelValues(result).Inc()
		m.took.Observe(e.Took.Seconds())
		m.count(e.Counts)
	}
}

func (m *Metrics) count(c messages.Counts) {
	var t messages.TableCounts
	for _, n := range c.Tables {
		t = t.Plus(n)
	}
	add := func(v *prometheus.CounterVec, label string, n int64) { v.WithLabelValues(label).Add(float64(n)) }
	add(m.rows, "downloaded", t.Downloaded)
	add(m.rows, "applied", t.Applied)
	add(m.rows, "uploaded", t.Uploaded)
	m.conflicts.Add(float64(t.Conflicts))
	m.letters.Add(float64(t.Dead))
	add(m.billed, "read", c.Billed.Reads)
	add(m.billed, "write", c.Billed.Writes)
	add(m.billed, "delete", c.Billed.Deletes)
	add(m.billed, "put", c.Store.Puts)
	add(m.billed, "get", c.Store.Gets)
	add(m.bytes, "up", c.Store.BytesUp)
	add(m.bytes, "down", c.Store.BytesDown)
	if c.Snapshot != "" {
		m.snapshots.Inc()
	}
}

func (m *Metrics) parts() []prometheus.Collector {
	return []prometheus.Collector{m.cycles, m.took, m.stages, m.failures, m.rows, m.conflicts, m.letters, m.billed, m.bytes, m.snapshots}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, c := range m.parts() {
		c.Describe(to)
	}
	for _, d := range []*prometheus.Desc{readable, dirty, oldest, waiting, dead, kept, lastCycle, snapshotOn, snapshotSz, clock} {
		to <- d
	}
}

// Collect implements prometheus.Collector. What cannot be read is left out of the
// answer, and tidemark_status_readable is 0.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	for _, c := range m.parts() {
		c.Collect(to)
	}
	read := m.gauges.Load()
	if read == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), readWithin)
	defer cancel()
	g, err := (*read)(ctx)
	tell := func(d *prometheus.Desc, v float64) { to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	if err != nil {
		tell(readable, 0)
		return
	}
	tell(readable, 1)
	tell(dirty, float64(g.Dirty))
	tell(oldest, float64(g.OldestDirtyMs)/1000)
	tell(waiting, float64(g.Waiting))
	tell(dead, float64(g.Dead))
	tell(kept, float64(g.Conflicts))
	tell(lastCycle, float64(g.LastCycleOn)/1000)
	tell(snapshotOn, float64(g.SnapshotOn)/1000)
	tell(snapshotSz, float64(g.SnapshotBytes))
	tell(clock, float64(g.ClockOffsetMs)/1000)
}

// Handler answers scrapes with these metrics and those of the process.
func (m *Metrics) Handler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}
