package integration

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// breaking is a store whose line breaks: each Get of a snapshot brings at most so many
// bytes.
type breaking struct {
	tidemark.SnapshotStore
	bytes int64
}

func (b breaking) Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error) {
	body, o, err := b.SnapshotStore.Get(ctx, key, from)
	if err != nil || !strings.HasPrefix(key, messages.SnapshotPrefix) {
		return body, o, err
	}
	return &struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(body, b.bytes), failing{}), body}, o, nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, messages.ErrUnavailable }

// A line that breaks again and again is taken up where it broke.
func TestACutDownloadGoesOn(t *testing.T) {
	t.Parallel()
	for name, real := range map[string]bool{"memory": false, "s3": true} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, notesSchema)
			if real {
				onS3(t, f, "resume")
			}
			s := newBackedUp(t, f, nil)
			r, err := tidemark.Restore(t.Context(), s.path, breaking{s.store(), 20_000})
			if err != nil {
				t.Fatal(err)
			}
			s.a.holds(s.path)
			if all := s.good.Current.Download() + int64(len(get(t, s.store(), messages.ManifestKey))); r.Store.BytesDown != all {
				t.Errorf("%d bytes were downloaded of %d", r.Store.BytesDown, all)
			}
			if s.good.Current.Download() < 100_000 || r.Store.Gets < 6 {
				t.Errorf("the test is void: %d bytes in %d GETs", s.good.Current.Download(), r.Store.Gets)
			}
		})
	}
}

// A restore that was given up goes on with what it had, also in another process; and a
// line that stays dead ends with an error.
func TestARestoreThatWasGivenUpGoesOn(t *testing.T) {
	t.Parallel()
	s := newBackedUp(t, newFleet(t, notesSchema), nil)
	total := s.good.Current.Download()
	ctx, cancel := context.WithCancel(t.Context())
	first, err := tidemark.Restore(ctx, s.path, breaking{s.store(), 30_000}, tidemark.RestoreProgress(func(_ tidemark.Phase, done, _ int64) {
		if done > total/2 {
			cancel()
		}
	}))
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.untouched(t)
	second, err := tidemark.Restore(t.Context(), s.path, breaking{s.store(), 0})
	if !errors.Is(err, tidemark.ErrUnavailable) {
		t.Fatalf("a dead line: %v", err)
	}
	s.untouched(t)
	third, err := tidemark.Restore(t.Context(), s.path, s.store())
	if err != nil {
		t.Fatal(err)
	}
	s.a.holds(s.path)
	if third.StoredBytes != total {
		t.Errorf("a snapshot of %d bytes, want %d, whatever was here before", third.StoredBytes, total)
	}
	manifests := 3 * int64(len(get(t, s.store(), messages.ManifestKey)))
	if got := first.Store.BytesDown + second.Store.BytesDown + third.Store.BytesDown; got != total+manifests {
		t.Errorf("%d bytes were downloaded of %d", got, total+manifests)
	}
	if left, _ := filepath.Glob(s.path + ".tidemark-*"); !slices.Equal(left, []string{s.path + ".tidemark-lock"}) {
		t.Errorf("left behind: %q", left)
	}
}

// What another snapshot's download left, or somebody scribbled into, does no harm.
func TestALeftDownloadOfSomethingElse(t *testing.T) {
	t.Parallel()
	s := newBackedUp(t, newFleet(t, notesSchema), nil)
	dir := s.path + ".tidemark-download"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, o := range s.good.Current.Chain() {
		garbage := make([]byte, []int64{o.Size / 2, o.Size, o.Size * 2}[i])
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(o.Key)), garbage, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "of another snapshot"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.a.holds(s.path)
}

// Cancelled in any phase, a restore leaves the destination as it was.
func TestARestoreIsCancelled(t *testing.T) {
	t.Parallel()
	s := newBackedUp(t, newFleet(t, notesSchema), nil)
	for _, phase := range []tidemark.Phase{tidemark.PhaseDownload, tidemark.PhaseUnpack, tidemark.PhaseCheck, tidemark.PhaseInstall} {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.restore(ctx, tidemark.RestoreProgress(func(p tidemark.Phase, _, _ int64) {
			if p == phase {
				cancel()
			}
		}))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at %s: %v", phase, err)
		}
		s.untouched(t)
	}
}

// killAt is where a child process ends itself.
const killAt = "TIDEMARK_TEST_KILL_AT"

// The places: while the copy is streamed, after the object is there, after the manifest
// is, and in each phase of a restore.
var killedSyncs, killedRestores = []string{"upload", "before the manifest", "after the manifest"},
	[]string{tidemark.PhaseDownload, tidemark.PhaseUnpack, tidemark.PhaseCheck, tidemark.PhaseInstall, "end"}

func die() {
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		_ = p.Signal(syscall.SIGKILL)
	}
	select {} // the signal is on its way
}

// deadly is a store in whose calls the process ends.
type deadly struct {
	tidemark.SnapshotStore
	at string
}

func (d deadly) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	isManifest := key == messages.ManifestKey
	if d.at == "upload" && !isManifest {
		body = io.MultiReader(io.LimitReader(body, 10_000), readFunc(func([]byte) (int, error) { die(); return 0, io.EOF }))
	}
	if d.at == "before the manifest" && isManifest {
		die()
	}
	o, err := d.SnapshotStore.Put(ctx, key, body, cond)
	if d.at == "after the manifest" && isManifest {
		die()
	}
	return o, err
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// TestKilledChild is the process that TestKilled kills.
func TestKilledChild(t *testing.T) {
	at := os.Getenv(killAt)
	if at == "" {
		return // TestKilled asks
	}
	dir := os.Getenv("TIDEMARK_TEST_DIR")
	var bucket servers.S3Server
	if err := json.Unmarshal([]byte(os.Getenv("TIDEMARK_TEST_BUCKET")), &bucket); err != nil {
		t.Fatal(err)
	}
	store, err := openBucket(t.Context(), bucket, 0)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(killedSyncs, at) {
		f := lasting(t, dir, bucket)
		f.store = func() tidemark.SnapshotStore { return deadly{store, at} }
		path := filepath.Join(dir, "a.db")
		f.on(path, openDB(t, path), eager()...).sync()
		return
	}
	if _, err := tidemark.Restore(t.Context(), filepath.Join(dir, "mine.db"), store, tidemark.RestoreProgress(func(p tidemark.Phase, done, total int64) {
		if p == at && done >= total/2 {
			die()
		}
	})); err != nil {
		t.Fatal(err)
	}
	die()
}

// lasting is a fleet whose server and bucket outlive a process.
func lasting(t *testing.T, dir string, bucket servers.S3Server) *fleet {
	t.Helper()
	f := newFleet(t, notesSchema)
	f.dir, f.server = dir, nil
	f.remote = func() tidemark.Remote {
		r, err := file.OpenRemote(filepath.Join(dir, "remote"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	f.store = func() tidemark.SnapshotStore {
		s, err := openBucket(t.Context(), bucket, 0)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return f
}

// A process that is killed while it backs up to a real S3 server, or restores, leaves a snapshot that
// restores, a whole file, and nothing that the next one does not clear away.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, at := range slices.Concat(killedSyncs, killedRestores) {
		t.Run(at, func(t *testing.T) {
			bucket := servers.S3(t)
			address, err := json.Marshal(bucket)
			if err != nil {
				t.Fatal(err)
			}
			s := newBackedUp(t, lasting(t, t.TempDir(), bucket), nil)
			s.a.edits(newRand(7), 3)
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$", "-test.v")
			child.Env = append(os.Environ(), killAt+"="+at, "TIDEMARK_TEST_DIR="+s.dir, "TIDEMARK_TEST_BUCKET="+string(address))
			out, err := child.CombinedOutput()
			if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || status.Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v\n%s", err, out)
			}
			if got := s.a.value(`PRAGMA integrity_check`); got != `"ok"` {
				t.Fatalf("the database: %s", got)
			}
			if at != "end" && slices.Contains(killedRestores, at) {
				db := openDB(t, s.path)
				for table, rows := range contents(t.Context(), t, db.DB) {
					if !slices.Equal(rows, s.was[table]) {
						t.Fatalf("table %s of the destination has changed", table)
					}
				}
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := tidemark.Verify(t.Context(), s.store()); err != nil {
				t.Fatalf("the newest snapshot: %v", err)
			}
			for seed := range uint64(2) { // the first sync may have to learn of a snapshot that is there
				s.a.edits(newRand(seed), 2)
				s.a.sync()
			}
			if err := s.restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.a.holds(s.path)
			for _, pattern := range []string{"*.tidemark-tmp-*", "*.tidemark-download"} {
				if left, err := filepath.Glob(filepath.Join(s.dir, pattern)); err != nil || len(left) > 0 {
					t.Errorf("left behind: %q, %v", left, err)
				}
			}
		})
	}
}

// A snapshot of zeros is read at once, and is written for long.
func TestARestoreThatIsCancelledWritesNoFurther(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, body BLOB);`)
	a := f.device("a")
	for range 16 {
		a.exec(`INSERT INTO note (body) VALUES (zeroblob(1000000))`)
	}
	a.sync()
	enough := errors.New("the user pressed Ctrl-C")
	ctx, cancel := context.WithCancelCause(t.Context())
	var written, all int64
	_, err := tidemark.Restore(ctx, filepath.Join(f.dir, "b.db"), f.store(), tidemark.RestoreProgress(func(p tidemark.Phase, done, total int64) {
		if p == tidemark.PhaseUnpack && done > 0 {
			cancel(enough)
			written, all = done, total
		}
	}))
	if !errors.Is(err, enough) || errors.Is(err, tidemark.ErrDamaged) {
		t.Errorf("cancelled: %v", err)
	}
	if written > all/2 {
		t.Errorf("%d of %d bytes were written", written, all)
	}
}
