package integration

import (
	"database/sql"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uptrace/bun"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/integration/servers"
)

var chinookTimes = flag.Int("chinook", 10, "how many times the Chinook database BenchmarkNewLogin has")

// A new login of a database that is many times Chinook: the snapshot and what came
// after it, against a download of everything, from the Firestore emulator and a real S3
// server. The emulator keeps all documents in memory, some 6 kB each: give it a heap
// with TIDEMARK_FIRESTORE_EMULATOR_HEAP. A hundred times takes half an hour.
//
//	TIDEMARK_FIRESTORE_EMULATOR_HEAP=4g go test ./integration -run '^$' -bench NewLogin -benchtime 1x -timeout 60m -chinook 20
//	TIDEMARK_FIRESTORE_EMULATOR_HEAP=19g go test ./integration -run '^$' -bench NewLogin -benchtime 1x -timeout 170m -chinook 100
func BenchmarkNewLogin(b *testing.B) {
	for b.Loop() {
		servers.Stop()
		cfg := firestore.Config{Emulator: servers.Firestore(b), Project: servers.Project(b), Scope: "users/alice", Timeout: 10 * time.Minute} // the emulator sorts a whole table before its first answer
		store, err := openBucket(b.Context(), servers.S3(b), 0)
		if err != nil {
			b.Fatal(err)
		}
		dir := b.TempDir()
		login := func(db *bun.DB) tidemark.Report {
			b.Helper()
			remote, err := firestore.Open(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer remote.Close()
			if _, err := tidemark.Attach(b.Context(), db); err != nil {
				b.Fatal(err)
			}
			p, err := tidemark.New(b.Context(), db, remote, store, tidemark.WithBackup(1<<40, 1000*time.Hour, 2), tidemark.WithBackupBytes(1<<50))
			if err != nil {
				b.Fatal(err)
			}
			r, err := p.Sync(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			return r
		}

		first := openBench(b, filepath.Join(dir, "first.db"))
		schema, rows := manyChinooks(b, first, *chinookTimes)
		var up tidemark.Report
		took := timed(b, func() error { up = login(first); return nil })
		if up.Total().Uploaded != rows || up.Snapshot == nil {
			b.Fatalf("%d of %d rows went up, snapshot %v", up.Total().Uploaded, rows, up.Snapshot)
		}
		b.Logf("%d rows went up in %v, billed %+v; the snapshot sent %+v", rows, took.Round(time.Second), up.Billed, up.Store)
		run(b, first, `UPDATE Track SET UnitPrice = UnitPrice + 1 WHERE TrackId % 100 = 7`)
		delta := login(first).Total().Uploaded

		var restored tidemark.Restored
		var caught, all tidemark.Report
		bySnapshot := timed(b, func() (err error) {
			if restored, err = tidemark.Restore(b.Context(), filepath.Join(dir, "second.db"), store); err != nil {
				return err
			}
			second := openBench(b, filepath.Join(dir, "second.db"))
			caught = login(second)
			return second.Close()
		})
		third := openBench(b, filepath.Join(dir, "third.db"))
		for _, q := range schema {
			run(b, third, q)
		}
		everything := timed(b, func() error { all = login(third); return nil })
		if caught.Total().Applied != delta || all.Total().Applied != rows {
			b.Fatalf("%d of %d rows came after the snapshot, %d of %d without it", caught.Total().Applied, delta, all.Total().Applied, rows)
		}
		tracks := `SELECT count(*) || ', ' || sum(Milliseconds) || ', ' || round(sum(UnitPrice)) || ', ' || count(DISTINCT clientId) FROM Track`
		want := column(b, first.DB, tracks)
		for _, db := range []*bun.DB{openBench(b, filepath.Join(dir, "second.db")), third} {
			if got := column(b, db.DB, tracks); !slices.Equal(got, want) {
				b.Errorf("the tracks are %q, want %q", got, want)
			}
		}
		b.ReportMetric(float64(rows), "rows")
		b.ReportMetric(float64(delta), "rows-after-it")
		b.ReportMetric(bySnapshot.Seconds(), "snapshot-s")
		b.ReportMetric(float64(caught.Billed.Reads), "snapshot-reads")
		b.ReportMetric(float64(restored.Store.Gets), "snapshot-GETs")
		b.ReportMetric(float64(restored.Store.BytesDown)/1e6, "snapshot-MB")
		b.ReportMetric(everything.Seconds(), "everything-s")
		b.ReportMetric(float64(all.Billed.Reads), "everything-reads")
		b.ReportMetric(0, "ns/op")
	}
}

// manyChinooks fills db with so many times the rows of Chinook, with keys of their own,
// and counts them; schema makes the empty tables.
func manyChinooks(b *testing.B, db *bun.DB, times int) (schema []string, rows int64) {
	b.Helper()
	source := filepath.Join("..", "..", "shared", "data", "chinook.sqlite")
	if _, err := os.Stat(source); err != nil {
		b.Fatal("put chinook.sqlite into ../shared/data beside the repository")
	}
	db.SetMaxOpenConns(1) // ATTACH is a connection's own
	run(b, db, `PRAGMA journal_mode = WAL`)
	run(b, db, `ATTACH ? AS chinook`, source)
	schema = column(b, db.DB, `SELECT sql FROM chinook.sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY type DESC, rowid`)
	for _, q := range schema {
		run(b, db, q)
	}
	for _, table := range column(b, db.DB, `SELECT name FROM chinook.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`) {
		keys := column(b, db.DB, `SELECT name FROM pragma_table_info('`+table+`') WHERE pk > 0 UNION SELECT "from" FROM pragma_foreign_key_list('`+table+`')`)
		var columns []string
		for _, c := range column(b, db.DB, `SELECT name FROM pragma_table_info('`+table+`')`) {
			if slices.Contains(keys, c) {
				c += ` + i * 1000000`
			}
			columns = append(columns, c)
		}
		run(b, db, `INSERT INTO `+table+` WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ? - 1) SELECT `+strings.Join(columns, ", ")+` FROM n, chinook.`+table, times)
		var n int64
		if err := db.DB.QueryRowContext(b.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
			b.Fatal(err)
		}
		rows += n
	}
	run(b, db, `DETACH chinook`)
	db.SetMaxOpenConns(0)
	return schema, rows
}

func column(b *testing.B, db *sql.DB, query string) (values []string) {
	b.Helper()
	rows, err := db.QueryContext(b.Context(), query)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			b.Fatal(err)
		}
		values = append(values, v)
	}
	if err := rows.Err(); err != nil {
		b.Fatal(err)
	}
	return values
}
