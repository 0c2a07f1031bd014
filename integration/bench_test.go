package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
	"github.com/tidemark-sync/tidemark/stages"
)

const (
	applyRows = 100_000
	boxes     = 1000
	far       = "0123456789abcdef0123456789abcdef" // a device elsewhere
)

const benchSchema = `
CREATE TABLE box (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, quantity INTEGER, price REAL, note TEXT, tag TEXT);
CREATE TABLE kept (id INTEGER PRIMARY KEY, box INTEGER NOT NULL REFERENCES box(id), name TEXT NOT NULL, quantity INTEGER, price REAL, note TEXT);
`

// ratio collects what two ways of doing the same took, one after the other in one
// run: the machine's mood is the same for both.
type ratio struct{ raw, ours []time.Duration }

func (r *ratio) report(b *testing.B, rows int, unit string) {
	b.Helper()
	raw, ours := median(r.raw), median(r.ours)
	b.ReportMetric(raw.Seconds()/ours.Seconds(), unit)
	b.ReportMetric(float64(rows)/ours.Seconds(), "rows/s")
	b.ReportMetric(float64(rows)/raw.Seconds(), "raw-rows/s")
	b.ReportMetric(0, "ns/op")
}

func median(ds []time.Duration) time.Duration {
	ds = slices.Clone(ds)
	slices.Sort(ds)
	return ds[len(ds)/2]
}

func timed(b *testing.B, fn func() error) time.Duration {
	b.Helper()
	start := time.Now()
	if err := fn(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// Applying downloaded documents, against one prepared upsert a row in one
// transaction on a table with the same columns and indexes, by the same driver.
func BenchmarkApply(b *testing.B) {
	for _, table := range []string{"item", "kept"} {
		for _, what := range []string{"inserts", "updates"} {
			b.Run(fmt.Sprintf("table=%s/%s", table, what), func(b *testing.B) {
				var r ratio
				for b.Loop() {
					first := benchDocuments(table, 1)
					raw, ours := benchDatabase(b, false), benchDatabase(b, true)
					if what == "inserts" {
						r.raw = append(r.raw, timed(b, func() error { return upsert(b.Context(), raw, table, first) }))
						r.ours = append(r.ours, timed(b, func() error { return apply(b.Context(), ours, table, first) }))
						continue
					}
					timed(b, func() error { return upsert(b.Context(), raw, table, first) })
					timed(b, func() error { return apply(b.Context(), ours, table, first) })
					second := benchDocuments(table, 2)
					r.raw = append(r.raw, timed(b, func() error { return upsert(b.Context(), raw, table, second) }))
					r.ours = append(r.ours, timed(b, func() error { return apply(b.Context(), ours, table, second) }))
				}
				r.report(b, applyRows, "ratio-to-prepared-upsert")
			})
		}
	}
}

// benchDocuments are what another device uploaded, in the order in which a download
// reads them: version 1 is new, 2 changes every row.
func benchDocuments(table string, version int64) []messages.Document {
	rnd := rand.New(rand.NewPCG(1, 2))
	ids := make([]string, applyRows)
	for i := range ids {
		ids[i] = fmt.Sprintf("%016x%016x", rnd.Uint64(), rnd.Uint64())
	}
	numbers := rnd.Perm(applyRows)
	slices.Sort(ids)
	docs := make([]messages.Document, applyRows)
	for i := range docs {
		docs[i] = messages.Document{
			Table: table, ID: ids[i], CreatedOn: 1_750_000_000_000, UpdatedOn: 1_750_000_000_000 + version, UpdatedBy: far,
			Stamp: messages.Stamp{Device: far, Seq: version}, UpdateTime: 1_750_000_000_000_000 + version,
			Fields: map[string]any{
				"id": int64(numbers[i] + 1), "name": fmt.Sprintf("the item with the number %d", i), "quantity": int64(i) * version,
				"price": float64(i)/7 + float64(version), "note": fmt.Sprintf("%040d of version %d, as long as notes are", i, version),
			},
		}
		if table == "kept" {
			docs[i].Fields["box"] = boxID(numbers[i] % boxes)
		} else {
			docs[i].Fields["tag"] = "blue"
		}
	}
	return docs
}

func boxID(n int) string { return fmt.Sprintf("%032x", n) }

// benchDatabase is an attached database with the boxes in it; without the triggers
// when the engine does not write there.
func benchDatabase(b *testing.B, triggers bool) *bun.DB {
	b.Helper()
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "app.db")+"?_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)")
	if err != nil {
		b.Fatal(err)
	}
	db := bun.NewDB(raw, sqlitedialect.New())
	b.Cleanup(func() { _ = db.Close() })
	if _, err := db.DB.Exec(benchSchema); err != nil {
		b.Fatal(err)
	}
	if _, err := tidemark.Attach(b.Context(), db); err != nil {
		b.Fatal(err)
	}
	if !triggers {
		rows, err := db.DB.Query(`SELECT name FROM sqlite_master WHERE type = 'trigger'`)
		if err != nil {
			b.Fatal(err)
		}
		var names []string
		for rows.Next() {
			var n string
			if err := rows.Scan(&n); err != nil {
				b.Fatal(err)
			}
			names = append(names, n)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			b.Fatal(err)
		}
		for _, n := range names {
			if _, err := db.DB.Exec(`DROP TRIGGER "` + n + `"`); err != nil {
				b.Fatal(err)
			}
		}
	}
	if _, err := db.DB.Exec(`UPDATE tidemark_state SET applying = 1`); err != nil {
		b.Fatal(err)
	}
	for n := range boxes {
		if _, err := db.DB.Exec(`INSERT INTO box (id, name, clientId, serverId, createdOn, updatedOn, updatedBy, isDirty, serverVersion) VALUES (?, 'box', ?, ?, 1, 1, ?, 0, 1)`,
			n+1, boxID(n), boxID(n), far); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := db.DB.Exec(`UPDATE tidemark_state SET applying = 0`); err != nil {
		b.Fatal(err)
	}
	return db
}

func upsert(ctx context.Context, db *bun.DB, table string, docs []messages.Document) error {
	tx, err := db.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // committed below
	last := "tag"
	if table == "kept" {
		last = "box"
	}
	stmt, err := tx.PrepareContext(ctx, `INSERT INTO `+table+` (id, clientId, serverId, createdOn, updatedOn, updatedBy, isDirty, serverVersion, name, quantity, price, note, `+last+`)
		VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET serverId = excluded.serverId, createdOn = excluded.createdOn,
		updatedOn = excluded.updatedOn, updatedBy = excluded.updatedBy, isDirty = 0, serverVersion = excluded.serverVersion, name = excluded.name,
		quantity = excluded.quantity, price = excluded.price, note = excluded.note, `+last+` = excluded.`+last)
	if err != nil {
		return err
	}
	defer stmt.Close()
	for i := range docs {
		d := &docs[i]
		x := d.Fields["tag"]
		if table == "kept" {
			x = d.Fields["id"].(int64)%boxes + 1
		}
		if _, err := stmt.Exec(d.Fields["id"], d.ID, d.ID, d.CreatedOn, d.UpdatedOn, d.UpdatedBy, d.UpdateTime,
			d.Fields["name"], d.Fields["quantity"], d.Fields["price"], d.Fields["note"], x); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// apply downloads the documents from a remote that is as quick as memory.
func apply(ctx context.Context, db *bun.DB, table string, docs []messages.Document) error {
	local, err := persistence.Open(ctx, db, persistence.DeviceInfo{})
	if err != nil {
		return err
	}
	version := docs[0].UpdateTime
	targets := []messages.Target{{Device: far, Seq: docs[0].Stamp.Seq, Tables: map[string]int64{table: docs[0].Stamp.Seq}}}
	var whole []string
	if docs[0].Stamp.Seq == 1 {
		whole = []string{table}
	}
	if err := local.Checked(ctx, version, messages.ClockReading{Asked: version / 1000, Answered: version / 1000}, targets, whole, nil, messages.Step{}); err != nil {
		return err
	}
	reader := &slice{docs: docs}
	in := messages.TableRequested{Cycle: strconv.FormatInt(version, 10), ReadTime: version, Table: table, Tables: []string{table}}
	if _, err := stages.NewDownload(reader, local).Handle(ctx, in); err != nil {
		return err
	}
	if _, err := local.Settle(ctx, nil, nil, messages.Step{}); err != nil {
		return err
	}
	var n int
	if err := db.DB.QueryRowContext(ctx, `SELECT count(*) FROM `+table+` WHERE serverVersion = ?`, version).Scan(&n); err != nil {
		return err
	}
	if n != len(docs) {
		return fmt.Errorf("%d of %d documents were applied", n, len(docs))
	}
	return nil
}

// slice reads documents from memory, in order of id.
type slice struct {
	stages.DocumentReader
	docs []messages.Document
}

func (s *slice) Read(_ context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	from, _ := slices.BinarySearchFunc(s.docs, q.After.ID, func(d messages.Document, id string) int {
		if d.ID <= id {
			return -1
		}
		return 1
	})
	docs := s.docs[from:min(from+q.Limit, len(s.docs))]
	for _, d := range docs {
		if err := yield(d); err != nil {
			return 0, err
		}
	}
	return int64(len(docs)), nil
}
