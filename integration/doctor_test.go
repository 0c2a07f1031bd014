package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// doctor renders what is not in order, a line a finding.
func (d *device) doctor(remote tidemark.Remote, store tidemark.SnapshotStore) string {
	d.t.Helper()
	var out []string
	checks := 0
	for f := range tidemark.Doctor(d.t.Context(), d.db, tidemark.Checkup{Remote: remote, Store: store, Sample: 20}) {
		checks++
		if f.Level == tidemark.OK || strings.HasSuffix(f.Text, ", not encrypted") {
			continue
		}
		if f.Remedy == "" {
			d.t.Errorf("no remedy for %+v", f)
		}
		out = append(out, fmt.Sprintf("%s %s: %s", f.Level, f.Check, f.Text))
	}
	if checks < 8 {
		d.t.Errorf("only %d checks", checks)
	}
	return strings.Join(out, "\n")
}

func want(t *testing.T, got string, parts ...string) {
	t.Helper()
	lines := 0
	if got != "" {
		lines = strings.Count(got, "\n") + 1
	}
	if lines != len(parts) {
		t.Errorf("%d findings, want %d:\n%s", lines, len(parts), got)
	}
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("want %q in:\n%s", p, got)
		}
	}
}

// The doctor finds on the server and in the store what is wrong there, and leaves both
// as they were.
func TestDoctorFindsWhatIsWrongElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		bucket := memory.NewBucket()
		f.store = func() tidemark.SnapshotStore { return bucket.Store() }
		a := f.device("a")
		b := f.device("b")
		defer closeAll([]*device{a, b})
		a.db.SetMaxOpenConns(1) // as some applications do
		a.notes(3)
		a.sync()
		b.sync()
		devices, documents := fmt.Sprint(f.server.DumpDevices()), fmt.Sprint(f.server.Dump())
		objects, _ := bucket.Store().List(t.Context(), "")
		want(t, a.doctor(f.remote(), f.store()))
		left, _ := bucket.Store().List(t.Context(), "")
		if fmt.Sprint(f.server.DumpDevices()) != devices || fmt.Sprint(f.server.Dump()) != documents || fmt.Sprint(left) != fmt.Sprint(objects) {
			t.Error("the doctor changed something")
		}

		other := newFleet(t, oneTable)
		x := other.device("x")
		x.notes(1)
		x.sync()
		want(t, a.doctor(f.remote(), other.store()), "problem snapshot: the snapshots in the store are of")
		_ = x.db.Close()

		deaf := bucket.Store()
		deaf.IgnoreConditions = true
		want(t, a.doctor(f.remote(), deaf), "problem conditions: the store ignores the conditions of writes")

		f.server.Put(messages.Document{Table: "note", ID: "by-hand", Fields: map[string]any{"title": "console"}})
		want(t, a.doctor(f.remote(), f.store()), "warning documents: of 4 looked at, no device wrote 1, in note")
		f.server.Remove("note", "by-hand")

		// B is forgotten in a drawer while A goes on.
		for range 20 {
			<-time.After(24 * time.Hour)
			a.notes(1)
			a.sync()
		}
		want(t, a.doctor(f.remote(), f.store()), "warning devices: 1 holds back the removal of old tombstones: ")
		<-time.After(100 * 24 * time.Hour)
		a.sync()
		if got := a.doctor(f.remote(), f.store()); strings.Contains(got, "devices") {
			t.Errorf("it still waits for a device that does not count: %s", got)
		}
	})
}

// A sync that the delete guard stopped is no old news.
func TestDoctorTellsThatTheLastSyncFailed(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a, b := f.device("a"), f.device("b", tidemark.WithDeleteGuard(0.5, 1))
	a.notes(10)
	rounds(1, a, b)
	a.exec(`DELETE FROM note`)
	a.sync()
	if _, err := b.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrMassDelete) {
		t.Fatalf("the guard let it through: %v", err)
	}
	if got := b.doctor(nil, nil); !strings.Contains(got, "problem last sync: the last one failed") || !strings.Contains(got, "delete") {
		t.Errorf("it finds %s", got)
	}
}

// A file that opens and cannot be written fails only when it is tried.
func TestDoctorTriesToWrite(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(1)
	if got := a.doctor(f.remote(), f.store()); strings.Contains(got, " file: ") {
		t.Errorf("nothing is wrong with the file: %s", got)
	}
	raw, err := sql.Open("sqlite", "file:"+filepath.Join(f.dir, "a.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	a.db = bun.NewDB(raw, sqlitedialect.New())
	defer a.db.Close()
	if got := a.doctor(f.remote(), f.store()); !strings.Contains(got, "problem file: the database cannot be read and written: ") {
		t.Errorf("want that the file cannot be written, in:\n%s", got)
	}
	if _, err := tidemark.New(t.Context(), a.db, f.remote(), f.store()); !errors.Is(err, tidemark.ErrReadOnly) {
		t.Errorf("New says %v, want ErrReadOnly", err)
	}
}

// Each right that is missing is a problem of its own, and a server that is down is one
// that ends no other check.
func TestDoctorFindsMissingRights(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(1)
	a.sync()
	refused := func(op string) func(memory.Call) memory.Fault {
		return func(c memory.Call) memory.Fault {
			if c.Op == op {
				return memory.Fault{Before: fmt.Errorf("the rules say no: %w", messages.ErrUnauthorized)}
			}
			return memory.Fault{}
		}
	}
	for op, expect := range map[string]string{
		memory.OpDevices: "problem server: ",
		memory.OpCommit:  "problem rights: ",
		memory.OpRead:    "problem documents: ",
	} {
		r := f.server.Remote()
		r.Fault = refused(op)
		want(t, a.doctor(r, f.store()), expect)
	}
	for _, op := range []string{"put", "get", "list", "delete"} {
		// The manifest cannot be read either, when nothing can.
		want(t, a.doctor(f.remote(), &refusingStore{f.store(), op}), "problem store: ")
	}
	down := f.server.Remote()
	down.Fault = func(memory.Call) memory.Fault { return memory.Fault{Before: messages.ErrUnavailable} }
	want(t, a.doctor(down, &refusingStore{f.store(), "all"}), "problem server: ", "problem store: ")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	for f := range tidemark.Doctor(ctx, a.db, tidemark.Checkup{Remote: f.remote(), Store: f.store(), Sample: 20}) {
		if f.Level == tidemark.OK {
			t.Errorf("after it was stopped: %+v", f)
		}
	}
}

// refusingStore refuses one kind of request, or all.
type refusingStore struct {
	tidemark.SnapshotStore
	op string
}

func (r *refusingStore) refuse(op string) error {
	if r.op == op || r.op == "all" {
		return fmt.Errorf("%s: %w", op, errors.Join(messages.ErrUnauthorized))
	}
	return nil
}

func (r *refusingStore) Put(ctx context.Context, key string, body io.Reader, c messages.Condition) (messages.Object, error) {
	if err := r.refuse("put"); err != nil {
		return messages.Object{}, err
	}
	return r.SnapshotStore.Put(ctx, key, body, c)
}

func (r *refusingStore) Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error) {
	if err := r.refuse("get"); err != nil {
		return nil, messages.Object{}, err
	}
	return r.SnapshotStore.Get(ctx, key, from)
}

func (r *refusingStore) List(ctx context.Context, prefix string) ([]messages.Object, error) {
	if err := r.refuse("list"); err != nil {
		return nil, err
	}
	return r.SnapshotStore.List(ctx, prefix)
}

func (r *refusingStore) Delete(ctx context.Context, key string) error {
	if err := r.refuse("delete"); err != nil {
		return err
	}
	return r.SnapshotStore.Delete(ctx, key)
}
