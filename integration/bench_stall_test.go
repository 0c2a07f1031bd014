package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/adapters/age"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
)

// stall is what a snapshot under a writer came to.
type stall struct {
	File, Object        int64 // bytes
	Took                time.Duration
	Alone, Beside       []time.Duration // one write each
	PeakAlone, PeakMade int64           // bytes resident
}

// A whole snapshot while the application writes a row every two milliseconds: the
// writer's 99th percentile and worst stall with and without it, and the peak of a
// process that does nothing else. Each size is made in a process of its own:
//
//	go test ./integration -run '^$' -bench Stall/100MB -benchtime 3x
//	go test ./integration -run '^$' -bench Stall/1GB -benchtime 1x -timeout 60m
func BenchmarkStall(b *testing.B) {
	for _, size := range []struct {
		name string
		rows int
	}{{"100MB", 175_000}, {"1GB", 1_750_000}} {
		b.Run(size.name, func(b *testing.B) {
			db := snapshotDatabase(b, size.rows)
			run(b, db, `PRAGMA wal_checkpoint(TRUNCATE)`)
			var path string
			for _, p := range column(b, db.DB, `SELECT file FROM pragma_database_list WHERE name = 'main'`) {
				path = p
			}
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
			for _, key := range []string{"open", "passphrase"} {
				b.Run(key, func(b *testing.B) {
					var alone, beside []time.Duration
					var peakAlone, peak, size int64
					var took time.Duration
					for b.Loop() {
						cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestStallChild$", "-test.v")
						cmd.Env = append(os.Environ(), "TIDEMARK_STALL_DB="+path, "TIDEMARK_STALL_KEY="+key)
						out, err := cmd.CombinedOutput()
						if err != nil {
							b.Fatalf("%v\n%s", err, out)
						}
						_, text, _ := strings.Cut(string(out), "stall=")
						text, _, _ = strings.Cut(text, "\n")
						var s stall
						if err := json.Unmarshal([]byte(text), &s); err != nil {
							b.Fatalf("%v\n%s", err, out)
						}
						alone, beside = append(alone, s.Alone...), append(beside, s.Beside...)
						peakAlone = max(peakAlone, s.PeakAlone)
						peak, size, took = max(peak, s.PeakMade), s.File, took+s.Took
					}
					slices.Sort(alone)
					slices.Sort(beside)
					ms := func(d time.Duration) float64 { return d.Seconds() * 1000 }
					b.ReportMetric(ms(alone[len(alone)*99/100]), "alone-p99-ms")
					b.ReportMetric(ms(alone[len(alone)-1]), "alone-worst-ms")
					b.ReportMetric(ms(beside[len(beside)*99/100]), "p99-ms")
					b.ReportMetric(ms(beside[len(beside)-1]), "worst-ms")
					b.ReportMetric(float64(len(beside)), "writes")
					b.ReportMetric(float64(peakAlone)/(1<<20), "alone-MiB")
					b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
					b.ReportMetric(float64(size)*float64(b.N)/1e6/took.Seconds(), "MB/s")
					b.ReportMetric(0, "ns/op")
				})
			}
		})
	}
}

// TestStallChild is the process of BenchmarkStall; by itself it does nothing.
func TestStallChild(t *testing.T) {
	path := os.Getenv("TIDEMARK_STALL_DB")
	if path == "" {
		return
	}
	db, writer := openDB(t, path), openDB(t, path)
	local, err := persistence.Open(t.Context(), db, persistence.DeviceInfo{})
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("TIDEMARK_STALL_KEY") == "passphrase" {
		local.ForSnapshots("", keyOf(t, age.Config{Passphrase: "correct horse battery staple"}))
	}
	_ = os.Remove(path + ".tidemark-pages")
	var s stall
	s.Alone = writeUntil(t, writer, time.After(3*time.Second))
	if s.PeakAlone, err = peakResident(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan time.Time)
	go func() {
		defer close(ended)
		begun := time.Now()
		snap, body, err := local.Snapshot(t.Context(), "g", 1, messages.Snapshot{})
		if err != nil {
			t.Error(err)
			return
		}
		defer body.Close()
		if s.Object, err = io.Copy(io.Discard, body); err != nil {
			t.Error(err)
		}
		s.File, s.Took = snap.RawSize, time.Since(begun)
	}()
	s.Beside = writeUntil(t, writer, ended)
	if s.PeakMade, err = peakResident(); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("stall=%s\n", out)
	if left, _ := filepath.Glob(path + ".tidemark-tmp*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// writeUntil changes a row every two milliseconds and says how long each took.
func writeUntil(t *testing.T, db *bun.DB, end <-chan time.Time) (took []time.Duration) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-end:
			return took
		case <-tick.C:
		}
		begun := time.Now()
		if _, err := db.DB.ExecContext(t.Context(), `UPDATE item SET n = n + 1 WHERE id = ?`, i*7919%100_000+1); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begun))
	}
}
