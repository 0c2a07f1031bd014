// Package prometheus counts what a pipeline does, for Prometheus:
//
//	m := prometheus.New()
//	p, err := tidemark.New(ctx, db, remote, store, tidemark.WithObserver(m.Observe))
//	m.Watch(p.Gauges)
//	http.Handle("/metrics", m.Handler())
//
// Counters begin with 0 when the process does; gauges are read from the database at
// each scrape. A dashboard and alert rules for them are in the folder ops. No label
// holds a table's name or anything of a row.
package prometheus
