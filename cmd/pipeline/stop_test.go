package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	stops    = flag.Int("stops", 5, "how often TestStopAnywhere stops a running pipeline")
	stopSeed = flag.Uint64("stopseed", 0, "the seed of TestStopAnywhere; 0 draws one")
)

// stopLimit is what the help promises, and what a loaded machine may take beside it.
const stopLimit = 10*time.Second + 20*time.Second

// A running pipeline is asked to stop at any moment of its cycles. It ends by itself in
// its time with exit code 0, the next one goes on, and in the end both devices hold
// every row that anybody wrote, once.
func TestStopAnywhere(t *testing.T) {
	t.Parallel()
	seed := *stopSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("again with: go test ./cmd/pipeline -run TestStopAnywhere -stops %d -stopseed %d", *stops, seed)
	s := &stopping{t: t, dir: t.TempDir(), rnd: rand.New(rand.NewPCG(seed, 1))}
	for _, name := range []string{"a", "b"} {
		s.write(name, `CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT)`, `CREATE TABLE note (id INTEGER PRIMARY KEY, book INTEGER REFERENCES book, text TEXT)`)
		s.run("attach", "--db", s.file(name))
	}
	moments := map[string]int{}
	for i := range *stops {
		s.edit("a", 400)
		if i%2 == 1 {
			s.edit("b", 300)
			s.sync("b")
		}
		moments[s.stop("a")]++
	}
	s.sync("a")
	s.sync("b")
	s.sync("a")
	t.Logf("%d rows; stopped after: %v", s.written, moments)
	const all = `SELECT group_concat(text, ',') FROM (SELECT n.text || '/' || b.title AS text FROM note n JOIN book b ON b.id = n.book ORDER BY 1)`
	a, b := s.value("a", all), s.value("b", all)
	if a != b {
		t.Error("the devices differ")
	}
	for _, name := range []string{"a", "b"} {
		if got, want := s.value(name, `SELECT count(*) || ' ' || count(DISTINCT text) FROM note`), fmt.Sprintf("%d %d", s.written, s.written); got != want {
			t.Errorf("%s has %s notes, want %s", name, got, want)
		}
		if got := s.value(name, `SELECT (SELECT group_concat(integrity_check) FROM pragma_integrity_check) || (SELECT count(*) FROM pragma_foreign_key_check)
			|| (SELECT count(*) FROM note WHERE isDirty) || (SELECT count(*) FROM tidemark_dead_letters)`); got != "ok000" {
			t.Errorf("%s is not sound: %s", name, got)
		}
	}
}

type stopping struct {
	t       *testing.T
	dir     string
	rnd     *rand.Rand
	written int
}

func (s *stopping) file(name string) string { return filepath.Join(s.dir, name+".db") }

func (s *stopping) with(name string, f func(*sql.DB) error) {
	s.t.Helper()
	db, err := openTest(s.file(name))
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	if err := f(db); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stopping) write(name string, statements ...string) {
	s.t.Helper()
	s.with(name, func(db *sql.DB) error {
		for _, q := range statements {
			if _, err := db.ExecContext(s.t.Context(), q); err != nil {
				return err
			}
		}
		return nil
	})
}

// edit adds a book with notes.
func (s *stopping) edit(name string, notes int) {
	s.t.Helper()
	book := fmt.Sprintf("%s%d", name, s.written)
	s.write(name, `INSERT INTO book (title) VALUES ('`+book+`')`,
		fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO note (book, text) SELECT (SELECT id FROM book WHERE title = '%s'), '%s-' || i FROM n`, notes, book, book))
	s.written += notes
}

func (s *stopping) value(name, query string) (out string) {
	s.t.Helper()
	s.with(name, func(db *sql.DB) error { return db.QueryRowContext(s.t.Context(), query).Scan(&out) })
	return out
}

func (s *stopping) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "pipeline", args...)
	cmd.Dir = s.dir
	cmd.Env = append(cmd.Environ(), "GORACE=atexit_sleep_ms=0")
	return cmd
}

func (s *stopping) run(args ...string) {
	s.t.Helper()
	if out, err := s.command(s.t.Context(), args...).CombinedOutput(); err != nil {
		s.t.Fatalf("pipeline %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (s *stopping) urls(name string) []string {
	return []string{"--db", s.file(name), "--remote", "file://" + s.dir + "/remote", "--store", "file://" + s.dir + "/store"}
}

func (s *stopping) sync(name string) {
	s.t.Helper()
	s.run(append([]string{"sync"}, s.urls(name)...)...)
}

// stop runs a pipeline, and stops it a moment after some step that its log tells of. It
// returns that step.
func (s *stopping) stop(name string) (after string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute+stopLimit)
	defer cancel()
	cmd := s.command(ctx, append([]string{"run", "-v", "--every", "1s"}, s.urls(name)...)...)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	log, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	step, moment := s.rnd.IntN(12), time.Duration(s.rnd.IntN(40_000))*time.Microsecond
	var said []string
	var asked time.Time
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		said = append(said, lines.Text())
		if len(said)-1 != step {
			continue
		}
		<-time.After(moment) // into the step that follows
		asked = time.Now()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil || asked.IsZero() {
		s.t.Fatalf("stopped after %d lines: %v\n%s\n%s", step, err, strings.Join(said, "\n"), stdout.String())
	}
	if took := time.Since(asked); took > stopLimit {
		s.t.Errorf("it took %v to stop", took)
	}
	if !strings.Contains(stdout.String(), "stopped after") {
		s.t.Errorf("it does not say how it stopped: %s", stdout.String())
	}
	_, after, _ = strings.Cut(said[step], `"stage": "`)
	after, _, _ = strings.Cut(after, `"`)
	return after
}
