package integration

import (
	"context"
	"database/sql"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/adapters/prometheus"
)

// BenchmarkWatch measures what looking costs a cycle, each against the line before it,
// side by side in one run: the step ledger, an observer (Prometheus), and a tracer that
// sends every span to a collector in this process.
func BenchmarkWatch(b *testing.B) {
	for name, edits := range map[string]int{"idle": 0, "upload1000": 1000} {
		b.Run(name, func(b *testing.B) {
			m := prometheus.New()
			overHTTP(b)
			e := exporter(b)
			// Without the ledger nothing is written of a step; the transactions stay.
			const noLedger = `CREATE TRIGGER bench_ledger BEFORE INSERT ON tidemark_ledger BEGIN SELECT RAISE(IGNORE); END;
				CREATE TRIGGER bench_cost BEFORE INSERT ON tidemark_cost BEGIN SELECT RAISE(IGNORE); END`
			variants := []struct {
				name string
				opts []tidemark.Option
				ddl  string
			}{
				{"nothing", nil, noLedger},
				{"ledger", nil, ""},
				{"observer", []tidemark.Option{tidemark.WithObserver(m.Observe)}, ""},
				{"tracer", []tidemark.Option{tidemark.WithObserver(m.Observe), tidemark.WithTracer(e)}, ""},
			}
			devices := make([]*benchDevice, len(variants))
			for i, v := range variants {
				devices[i] = newBenchDevice(b, v.name, v.opts...)
				for range max(1, edits) {
					devices[i].exec(b, `INSERT INTO note (title) VALUES ('a note of some length, as people write them')`)
				}
				devices[i].sync(b)
				if v.ddl != "" {
					devices[i].exec(b, v.ddl)
					devices[i].sync(b)
				}
			}
			took := make([][]time.Duration, len(variants))
			for n := 0; b.Loop(); n++ {
				for k := range devices {
					i := (k + n) % len(devices) // what the last one left to be done hits each in turn
					d := devices[i]
					if edits > 0 {
						d.exec(b, `UPDATE note SET title = title || '.'`)
					}
					began := time.Now()
					d.sync(b)
					took[i] = append(took[i], time.Since(began))
				}
			}
			quartiles := make([]float64, len(variants))
			for i := range took {
				slices.Sort(took[i])
				quartiles[i] = took[i][len(took[i])/4].Seconds() // a busy machine makes the slower half
			}
			for i := 1; i < len(variants); i++ {
				b.ReportMetric(quartiles[i]/quartiles[i-1], variants[i].name+"-ratio")
			}
			b.ReportMetric(quartiles[0]*1000, "ms/cycle")
			_ = e.Flush(context.Background())
		})
	}
}

// benchDevice syncs with a server of its own and without a store: a snapshot would be
// most of what is measured.
type benchDevice struct {
	db *bun.DB
	p  *tidemark.Pipeline
}

func newBenchDevice(b *testing.B, name string, opts ...tidemark.Option) *benchDevice {
	b.Helper()
	raw, err := sql.Open("sqlite", deviceDSN(filepath.Join(b.TempDir(), name+".db")))
	if err != nil {
		b.Fatal(err)
	}
	d := &benchDevice{db: bun.NewDB(raw, sqlitedialect.New())}
	b.Cleanup(func() { _ = d.db.Close() })
	d.exec(b, oneTable)
	if _, err = tidemark.Attach(b.Context(), d.db); err == nil {
		d.p, err = tidemark.New(b.Context(), d.db, memory.NewRemote(), nil, opts...)
	}
	if err != nil {
		b.Fatal(err)
	}
	return d
}

func (d *benchDevice) exec(b *testing.B, query string) {
	b.Helper()
	if _, err := d.db.DB.ExecContext(b.Context(), query); err != nil {
		b.Fatal(err)
	}
}

func (d *benchDevice) sync(b *testing.B) {
	b.Helper()
	if _, err := d.p.Sync(b.Context()); err != nil {
		b.Fatal(err)
	}
}
