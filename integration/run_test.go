package integration

import (
	"context"
	"database/sql"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

// running is a device whose pipeline runs, and when its cycles ended.
type running struct {
	*device
	mu     sync.Mutex
	cycles []time.Time
	stop   func()
	ended  chan error
}

func (d *device) run() *running {
	ctx, stop := context.WithCancel(d.t.Context())
	r := &running{device: d, stop: stop, ended: make(chan error, 1)}
	go func() {
		r.ended <- d.p.Run(ctx, func(_ tidemark.Report, err error) {
			if err != nil {
				d.t.Error(err)
			}
			r.mu.Lock()
			r.cycles = append(r.cycles, time.Now())
			r.mu.Unlock()
		})
	}()
	return r
}

// after lets so much time pass and returns how many cycles ended in it, and how long
// after its begin the first one did.
func (r *running) after(d time.Duration) (n int, first time.Duration) {
	ended := func() []time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Clone(r.cycles)
	}
	was, begin := len(ended()), time.Now()
	<-time.After(d)
	synctest.Wait()
	now := ended()
	if len(now) > was {
		first = now[was].Sub(begin)
	}
	return len(now) - was, first
}

func (r *running) end() {
	r.t.Helper()
	r.stop()
	if err := <-r.ended; err != nil {
		r.t.Error(err)
	}
	if err := r.db.Close(); err != nil {
		r.t.Error(err)
	}
}

// What any program writes goes up soon, and once for many writes; what is not synced,
// and what the cycles themselves write, starts no cycle.
func TestRunSyncsSoonAfterAnEdit(t *testing.T) {
	t.Parallel()
	// The application's pool may have one connection, or as many as it likes.
	for name, connections := range map[string]int{"any": 0, "one": 1, "two": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, oneTable+`; CREATE TABLE log (id INTEGER PRIMARY KEY, line TEXT)`)
				d := f.device("a", tidemark.WithInterval(time.Hour))
				if _, err := tidemark.Attach(t.Context(), d.db, tidemark.Table{Name: "log", Exclude: true}); err != nil {
					t.Fatal(err)
				}
				other, err := sql.Open(sqliteOfNow(), deviceDSN(d.path))
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				d.db.SetMaxOpenConns(connections)
				d.notes(3)
				a := d.run()
				defer a.end()
				if n, _ := a.after(30 * time.Minute); n != 1 {
					t.Errorf("%d cycles without an edit", n)
				}
				a.notes(1)
				if n, first := a.after(time.Minute); n != 1 || first > 3*time.Second {
					t.Errorf("after an edit: %d cycles, the first after %v", n, first)
				}
				if _, err := other.ExecContext(t.Context(), `DELETE FROM note WHERE id = 1`); err != nil {
					t.Fatal(err)
				}
				if n, first := a.after(time.Minute); n != 1 || first > 3*time.Second {
					t.Errorf("after another program's edit: %d cycles, the first after %v", n, first)
				}
				for range 20 { // every 300 ms: the pause never comes
					a.notes(1)
					<-time.After(300 * time.Millisecond)
				}
				if n, _ := a.after(time.Minute); n < 1 || n > 2 {
					t.Errorf("after six seconds of edits: %d cycles", n)
				}
				for range 20 {
					a.exec(`INSERT INTO log (line) VALUES ('nobody else''s business')`)
					<-time.After(time.Second)
				}
				if n, _ := a.after(time.Minute); n != 0 {
					t.Errorf("%d cycles for a table that is left out", n)
				}
				a.p.SyncSoon()
				if n, first := a.after(time.Minute); n != 1 || first != 0 {
					t.Errorf("after SyncSoon: %d cycles, the first after %v", n, first)
				}
			})
		})
	}
}

// What is edited while a cycle runs, after the upload has looked, does not wait for the
// interval; and a row that cannot go up is no reason for one cycle after the other.
func TestRunSyncsSoonAfterAnEditDuringACycle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		server := f.refusing()
		server.refuse = func(d messages.Document) bool { return d.Fields["title"] == "bad" }
		store := f.store()
		var d *device
		var edited atomic.Bool
		f.store = func() tidemark.SnapshotStore {
			return storeFunc{store, func() {
				if !edited.Swap(true) {
					d.notes(1)
				}
			}}
		}
		d = f.device("a", tidemark.WithInterval(time.Hour))
		d.notes(1)
		a := d.run()
		defer a.end()
		if n, _ := a.after(10 * time.Minute); n != 2 || !edited.Load() {
			t.Errorf("%d cycles, want one more for the edit", n)
		}
		a.exec(`INSERT INTO note (title) VALUES ('bad')`)
		if n, _ := a.after(10 * time.Minute); n != 1 {
			t.Errorf("%d cycles for a row that is refused", n)
		}
		a.exec(`UPDATE note SET title = 'good' WHERE title = 'bad'`)
		if n, first := a.after(10 * time.Minute); n != 1 || first > 3*time.Second || len(a.failed(tidemark.DeadLetterFilter{})) != 0 {
			t.Errorf("after it was mended: %d cycles, the first after %v", n, first)
		}
	})
}

// storeFunc calls a function before it writes to a snapshot store.
type storeFunc struct {
	tidemark.SnapshotStore
	before func()
}

func (s storeFunc) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	s.before()
	return s.SnapshotStore.Put(ctx, key, body, cond)
}
