package integration

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
)

// snapshotRows make a database of about 200 MB.
const snapshotRows = 330_000

// snapshotDatabase is an attached database whose rows are all with the server.
func snapshotDatabase(b *testing.B, rows int) *bun.DB {
	b.Helper()
	db := openBench(b, filepath.Join(b.TempDir(), "app.db"))
	run(b, db, `PRAGMA journal_mode = WAL`)
	run(b, db, `CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL, n INTEGER, body TEXT)`)
	rnd := rand.New(rand.NewPCG(1, 2))
	tx, err := db.DB.BeginTx(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	for i := range rows {
		if _, err := tx.ExecContext(b.Context(), `INSERT INTO item (name, n, body) VALUES (?, ?, ?)`, fmt.Sprintf("item %d", i), i, prose(rnd, 50)); err != nil {
			b.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
	if _, err := tidemark.Attach(b.Context(), db); err != nil {
		b.Fatal(err)
	}
	acknowledge(b, db)
	return db
}

func openBench(b *testing.B, path string) *bun.DB {
	b.Helper()
	raw, err := openerOf(b)(path)
	if err != nil {
		b.Fatal(err)
	}
	db := bun.NewDB(raw, sqlitedialect.New())
	b.Cleanup(func() { _ = db.Close() })
	return db
}

func openerOf(tb testing.TB) persistence.Opener {
	tb.Helper()
	return func(path string) (*sql.DB, error) {
		return sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)")
	}
}

func run(b *testing.B, db *bun.DB, query string, args ...any) {
	b.Helper()
	if _, err := db.DB.ExecContext(b.Context(), query, args...); err != nil {
		b.Fatalf("%s: %v", query, err)
	}
}

// prose is about six bytes a word, and compresses as text does.
func prose(rnd *rand.Rand, words int) string {
	var s strings.Builder
	for range words {
		w := rnd.Uint32N(1<<12) * rnd.Uint32N(1<<12) >> 12 // some words are frequent
		fmt.Fprintf(&s, "%s ", strings.ToLower(hex.EncodeToString([]byte{byte(w >> 8), byte(w), byte(w*7 + 1)})[1:]))
	}
	return s.String()
}

// acknowledge does to the rows what an upload does to them.
func acknowledge(b *testing.B, db *bun.DB) {
	b.Helper()
	run(b, db, `UPDATE tidemark_state SET applying = 1`)
	run(b, db, `UPDATE item SET isDirty = 0, serverId = clientId, serverVersion = updatedOn * 1000 WHERE isDirty = 1`)
	run(b, db, `UPDATE tidemark_state SET applying = 0, seq = seq + 1`)
}

// snapshots makes them as the backup stage does, into a folder.
type snapshots struct {
	local   *persistence.Local
	dir     string
	current messages.Snapshot
	n       int
}

func (s *snapshots) take(ctx context.Context) (int64, error) {
	s.n++
	snap, body, err := s.local.Snapshot(ctx, fmt.Sprintf("g%03d", s.n), int64(s.n), s.current)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	snap.Key = messages.SnapshotPrefix + snap.Generation
	f, err := os.Create(filepath.Join(s.dir, snap.Generation))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sum := sha256.New()
	if snap.Size, err = io.Copy(io.MultiWriter(f, sum), body); err != nil {
		return 0, err
	}
	snap.SHA256 = hex.EncodeToString(sum.Sum(nil))
	s.current = snap
	return snap.Size, s.local.BackedUp(ctx, snap)
}

// What one percent of changed rows costs to upload, beside a whole snapshot and beside
// litestream, when that is in PATH: the log that it writes for the same edits, without
// its compactions, which upload some of that again.
func BenchmarkSnapshotBytes(b *testing.B) {
	for _, what := range []struct{ name, change string }{
		{"appended", `INSERT INTO item (name, n, body) SELECT name || ' again', n, substr(body, 100) || substr(body, 1, 100) FROM item WHERE id % 100 = 7`},
		{"scattered-same-size", `UPDATE item SET n = n + 1, name = replace(name, 'item', 'ITEM') WHERE (id * 2654435761) % 100 = 7`},
		{"scattered-resized", `UPDATE item SET body = substr(body, 1, 200) || ' and some more of it' || substr(body, 200) WHERE (id * 2654435761) % 100 = 7`},
	} {
		b.Run(what.name, func(b *testing.B) {
			for b.Loop() {
				db := snapshotDatabase(b, snapshotRows)
				local, err := persistence.Open(b.Context(), db, persistence.DeviceInfo{})
				if err != nil {
					b.Fatal(err)
				}
				s := &snapshots{local: local, dir: b.TempDir()}
				var whole, changes int64
				timed(b, func() (err error) { whole, err = s.take(b.Context()); return err })
				db.SetMaxOpenConns(1)
				run(b, db, `PRAGMA wal_checkpoint(TRUNCATE)`)
				run(b, db, `PRAGMA wal_autocheckpoint = 0`) // litestream wants to do that itself
				log := newLitestream(b, db)
				log.upload(b)
				run(b, db, what.change)
				acknowledge(b, db)
				took := timed(b, func() (err error) { changes, err = s.take(b.Context()); return err })
				if len(s.current.Parts) != 1 {
					b.Fatal("the second snapshot is a whole one")
				}
				b.ReportMetric(float64(s.current.RawSize)/1e6, "file-MB")
				b.ReportMetric(float64(whole)/1e6, "whole-MB")
				b.ReportMetric(float64(changes)/1e6, "changes-MB")
				b.ReportMetric(float64(whole)/float64(changes), "times-less")
				if log != nil {
					n := log.upload(b)
					b.ReportMetric(float64(n)/1e6, "litestream-MB")
					b.ReportMetric(float64(n)/float64(changes), "litestream-times")
				}
				b.ReportMetric(took.Seconds(), "s/changes")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// litestream is one that replicates a database into a folder.
type litestream struct{ program, db, replica string }

// newLitestream is nil where the program is missing.
func newLitestream(b *testing.B, db *bun.DB) *litestream {
	b.Helper()
	program, err := exec.LookPath("litestream")
	if err != nil {
		b.Log("NOT COMPARED with litestream: go build -modfile=.ci/bench.mod -o DIR github.com/benbjohnson/litestream/cmd/litestream, and put DIR into PATH")
		return nil
	}
	var seq int
	var name, path string
	if err := db.DB.QueryRowContext(b.Context(), `SELECT seq, name, file FROM pragma_database_list WHERE name = 'main'`).Scan(&seq, &name, &path); err != nil {
		b.Fatal(err)
	}
	return &litestream{program, path, filepath.Join(b.TempDir(), "replica")}
}

// upload replicates what is new and counts its bytes. The database stays open
// meanwhile, else its log would end and litestream begin anew.
func (l *litestream) upload(b *testing.B) (bytes int64) {
	b.Helper()
	if l == nil {
		return 0
	}
	before := l.size(b)
	if err := shell(b.Context(), ".", fmt.Sprintf("'%s' replicate -once '%s' 'file://%s'", l.program, l.db, l.replica)); err != nil {
		b.Fatal(err)
	}
	return l.size(b) - before
}

func (l *litestream) size(b *testing.B) (bytes int64) {
	b.Helper()
	err := filepath.WalkDir(l.replica, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		bytes += info.Size()
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return bytes
}
