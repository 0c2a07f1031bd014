package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/uptrace/bun"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/file"
)

// maxGrowth is what a hundred times as many rows may cost in memory.
const maxGrowth = 64 << 20

// memorySteps is what each child process does, in this order, in one folder: a
// database uploads everything, another downloads everything, the first is backed
// up, and a third is restored from that.
var memorySteps = []string{"prepare", "upload", "download", "snapshot", "restore"}

// Peak memory must not grow with the table. Each step runs in a process of its own,
// this test binary again, which reports its peak resident set (VmHWM). It takes
// minutes: run it with
//
//	go test ./integration -run '^$' -bench Memory -benchtime 1x -timeout 60m
func BenchmarkMemory(b *testing.B) {
	if runtime.GOOS != "linux" {
		b.Skip("NOT RUN: the peak of a process is read from /proc, which only Linux has")
	}
	for b.Loop() {
		few, many := memoryRun(b, 10_000), memoryRun(b, 1_000_000)
		for _, step := range memorySteps[1:] {
			b.ReportMetric(float64(few[step])/(1<<20), step+"-10k-MiB")
			b.ReportMetric(float64(many[step])/(1<<20), step+"-1M-MiB")
			if grown := many[step] - few[step]; grown > maxGrowth {
				b.Errorf("%s: a peak of %d MiB with 10,000 rows and of %d MiB with 1,000,000", step, few[step]>>20, many[step]>>20)
			}
		}
	}
}

// memoryRun returns the peak of each step in bytes.
func memoryRun(b *testing.B, rows int) map[string]int64 {
	b.Helper()
	dir := b.TempDir()
	peaks := map[string]int64{}
	for _, step := range memorySteps {
		cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestMemoryChild$", "-test.v")
		cmd.Env = append(os.Environ(), "TIDEMARK_MEMORY_STEP="+step, "TIDEMARK_MEMORY_ROWS="+strconv.Itoa(rows), "TIDEMARK_MEMORY_DIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%s of %d rows: %v\n%s", step, rows, err, out)
		}
		_, rest, _ := strings.Cut(string(out), "peak=")
		number, _, _ := strings.Cut(rest, "\n")
		if peaks[step], err = strconv.ParseInt(number, 10, 64); err != nil {
			b.Fatalf("%s of %d rows did not say its peak:\n%s", step, rows, out)
		}
		b.Logf("%s of %d rows: %d MiB", step, rows, peaks[step]>>20)
	}
	return peaks
}

// TestMemoryChild is one step of BenchmarkMemory; by itself it does nothing.
func TestMemoryChild(t *testing.T) {
	step, dir := os.Getenv("TIDEMARK_MEMORY_STEP"), os.Getenv("TIDEMARK_MEMORY_DIR")
	if step == "" {
		return
	}
	rows, err := strconv.Atoi(os.Getenv("TIDEMARK_MEMORY_ROWS"))
	if err != nil {
		t.Fatal(err)
	}
	if err := memoryStep(t, step, dir, rows); err != nil {
		t.Fatal(err)
	}
	peak, err := peakResident()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("peak=%d\n", peak)
}

const memorySchema = `
CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT NOT NULL, body TEXT, stars INTEGER);
CREATE TABLE comment (id INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES note(id), text TEXT);
`

func memoryStep(t *testing.T, step, dir string, rows int) error {
	t.Helper()
	ctx := t.Context()
	first, second := filepath.Join(dir, "first.db"), filepath.Join(dir, "second.db")
	if err := os.MkdirAll(filepath.Join(dir, "store"), 0o700); err != nil {
		return err
	}
	store, err := file.OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	defer store.Close()
	switch step {
	case "prepare":
		db := openDB(t, first)
		if _, err := db.DB.ExecContext(ctx, memorySchema); err != nil {
			return err
		}
		for _, q := range []string{
			`INSERT INTO note (title, body, stars) SELECT 'note ' || i, printf('%080d', i), i % 5 FROM n`,
			`INSERT INTO comment (note, text) SELECT 1 + (i * 7919) % (?1), printf('%0120d', i) FROM n`,
		} {
			if _, err := db.DB.ExecContext(ctx, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) `+q, rows/2); err != nil {
				return err
			}
		}
		_, err := tidemark.Attach(ctx, db)
		return err
	case "upload":
		return memorySync(ctx, t, openDB(t, first), dir, nil, func(r tidemark.Report) bool { return r.Total().Uploaded == int64(rows) })
	case "download":
		db := openDB(t, second)
		if _, err := db.DB.ExecContext(ctx, memorySchema); err != nil {
			return err
		}
		if _, err := tidemark.Attach(ctx, db); err != nil {
			return err
		}
		return memorySync(ctx, t, db, dir, nil, func(r tidemark.Report) bool { return r.Total().Applied == int64(rows) })
	case "snapshot":
		return memorySync(ctx, t, openDB(t, first), dir, store, func(r tidemark.Report) bool { return r.Snapshot != nil })
	case "restore":
		_, err := tidemark.Restore(ctx, filepath.Join(dir, "third.db"), store)
		return err
	}
	return fmt.Errorf("no step %q", step)
}

func memorySync(ctx context.Context, t *testing.T, db *bun.DB, dir string, store tidemark.SnapshotStore, done func(tidemark.Report) bool) error {
	t.Helper()
	remote, err := file.OpenRemote(filepath.Join(dir, "remote"))
	if err != nil {
		return err
	}
	defer remote.Close()
	p, err := tidemark.New(ctx, db, remote, store)
	if err != nil {
		return err
	}
	r, err := p.Sync(ctx)
	if err == nil && !done(r) {
		err = fmt.Errorf("it did not do what it should: %+v", r)
	}
	return err
}

// peakResident is the greatest resident set of this process so far, in bytes.
func peakResident() (int64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if kib, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("/proc/self/status has no VmHWM")
}
