package integration

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/messages"
)

// leftoverVariable holds the job of a test binary that is killed in the middle of it.
const leftoverVariable = "TIDEMARK_TEST_LEFTOVER_JOB"

type leftoverJob struct {
	Path, Remote, Store string
	Work                string // sync, restore or verify
}

// leftoverChild does its work until its temporary files are there, says so, and stands
// still.
func leftoverChild(raw string) int {
	var job leftoverJob
	err := json.Unmarshal([]byte(raw), &job)
	if err == nil {
		err = job.run(context.Background())
	}
	fmt.Println("ended:", err)
	return 1
}

func hold() {
	fmt.Println("holding")
	select {}
}

type holdingStore struct{ tidemark.SnapshotStore }

func (s holdingStore) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	if strings.HasPrefix(key, messages.SnapshotPrefix) {
		if _, err := body.Read(make([]byte, 1)); err != nil {
			return messages.Object{}, err
		}
		hold()
	}
	return s.SnapshotStore.Put(ctx, key, body, cond)
}

func (j leftoverJob) run(ctx context.Context) error {
	store, err := file.OpenStore(j.Store)
	if err != nil {
		return err
	}
	atCheck := tidemark.RestoreProgress(func(phase tidemark.Phase, _, _ int64) {
		if phase == tidemark.PhaseCheck {
			hold()
		}
	})
	switch j.Work {
	case "restore":
		_, err = tidemark.Restore(ctx, j.Path, store, atCheck)
		return err
	case "verify":
		_, err = tidemark.Verify(ctx, store, atCheck)
		return err
	}
	raw, err := sql.Open("sqlite", deviceDSN(j.Path))
	if err != nil {
		return err
	}
	remote, err := file.OpenRemote(j.Remote)
	if err != nil {
		return err
	}
	p, err := tidemark.New(ctx, bun.NewDB(raw, sqlitedialect.New()), remote, holdingStore{store})
	if err == nil {
		_, err = p.Sync(ctx)
	}
	return err
}

// killed runs a job until it stands still, and kills it.
func (j leftoverJob) killed(t *testing.T) {
	t.Helper()
	raw, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), leftoverVariable+"="+string(raw))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "holding" {
		t.Errorf("the child says %q", lines.Text())
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// A process that is killed in the middle of a snapshot, a restore or a check leaves a
// copy of the rows beside the database or among the temporary files. The next one to
// begin removes it, whatever the database is called, and leaves those in use alone.
func TestWhatAKilledProcessLeavesIsRemoved(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	if runtime.GOOS == "windows" {
		t.Setenv("TMP", temp)
	}
	f := backends["file"](t, oneTable)
	dirs := t.TempDir()
	a := f.device("no*te[1]")
	remote, err := file.OpenRemote(filepath.Join(dirs, "remote"))
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	store, err := file.OpenStore(filepath.Join(dirs, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	job := leftoverJob{Path: a.path, Remote: filepath.Join(dirs, "remote"), Store: filepath.Join(dirs, "store")}
	p, err := tidemark.New(t.Context(), a.db, remote, store)
	if err != nil {
		t.Fatal(err)
	}
	a.p = p
	left := func(folder string, others ...string) (out []string) {
		t.Helper()
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if (strings.Contains(e.Name(), "tmp") || strings.Contains(e.Name(), "verify")) && !slices.Contains(others, e.Name()) {
				out = append(out, e.Name())
			}
		}
		return out
	}
	a.exec(`INSERT INTO note (title) VALUES ('a row')`)

	job.Work = "sync"
	job.killed(t)
	if len(left(f.dir)) != 1 {
		t.Fatalf("beside the database: %q", left(f.dir))
	}
	a.sync()
	if l := left(f.dir); len(l) != 0 {
		t.Errorf("a killed sync left %q beside the database, and the next one did not remove it", l)
	}

	job.Work, job.Path = "restore", filepath.Join(f.dir, "new?*[.db")
	job.killed(t)
	if len(left(f.dir)) != 1 {
		t.Fatalf("beside the database: %q", left(f.dir))
	}
	if _, err := tidemark.Restore(t.Context(), job.Path, store); err != nil {
		t.Fatal(err)
	}
	if l := left(f.dir); len(l) != 0 {
		t.Errorf("a killed restore left %q beside the database, and the next one did not remove it", l)
	}

	job.Work = "verify"
	job.killed(t)
	if len(left(temp)) != 2 { // and its lock
		t.Fatalf("among the temporary files: %q", left(temp))
	}
	others := left(temp)
	seen := false
	if _, err := tidemark.Verify(t.Context(), store, tidemark.RestoreProgress(func(phase tidemark.Phase, _, _ int64) {
		if phase != tidemark.PhaseCheck || seen {
			return
		}
		seen = true
		if _, err := tidemark.Verify(t.Context(), store); err != nil { // beside one that is at work
			t.Error(err)
		}
		if l := left(temp, others...); len(l) != 2 {
			t.Errorf("while a snapshot is checked: %q", l)
		}
	})); err != nil {
		t.Error(err)
	}
	if l := left(temp); !seen || len(l) != 0 {
		t.Errorf("a killed check left %q, and the next one did not remove it", l)
	}
}
