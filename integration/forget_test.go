package integration

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

const forgetSchema = `CREATE TABLE notes (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT)`

func (d *device) syncs(want error) {
	d.t.Helper()
	if _, err := d.p.Sync(d.t.Context()); !errors.Is(err, want) {
		d.t.Errorf("sync of %s: %v, want %v", filepath.Base(d.path), err, want)
	}
}

// left is what a scope still holds.
func (f *fleet) left() tidemark.Forgotten {
	f.t.Helper()
	left, err := tidemark.ForgetScope(f.t.Context(), f.remote(), f.store(), tidemark.ForgetDryRun(), tidemark.ForgetTables("notes", "tags"))
	if err != nil {
		f.t.Fatal(err)
	}
	return left
}

func wantNothingLeft(t *testing.T, f *fleet) {
	t.Helper()
	if left := f.left(); len(left.Documents) > 0 || left.Devices > 0 || left.Objects > 0 || !left.Marked {
		t.Errorf("there is still %v, %d devices, %d objects, marked %v", left.Documents, left.Devices, left.Objects, left.Marked)
	}
}

// One device is forgotten, and then the whole scope, on every kind of server.
func TestForget(t *testing.T) {
	t.Parallel()
	for name, backend := range backends {
		t.Run(name, func(t *testing.T) {
			f := backend(t, forgetSchema)
			a := f.device("a", eager(tidemark.WithDevice("Ada's phone", "android"))...)
			b := f.device("b", tidemark.WithDevice("Ada's laptop", "linux"))
			a.exec(`INSERT INTO notes (name) VALUES ('one'), ('two')`)
			a.exec(`INSERT INTO tags (name) VALUES ('home')`)
			rounds(2, a, b)
			a.exec(`DELETE FROM notes WHERE name = 'two'`)
			rounds(2, a, b)

			b.exec(`INSERT INTO notes (name) VALUES ('three')`)
			if plan, err := b.p.Forget(t.Context()); !errors.Is(err, tidemark.ErrUnsynced) || plan.Unsynced != 1 {
				t.Fatalf("with a row that is nowhere else: %+v, %v, want ErrUnsynced", plan, err)
			}
			b.sync()
			plan, err := b.p.Forget(t.Context(), tidemark.ForgetDryRun())
			if err != nil || !plan.Registered || plan.Unsynced != 0 || len(plan.Remains) == 0 {
				t.Fatalf("%+v, %v", plan, err)
			}
			b.sync() // nothing was done
			if _, err := b.p.Forget(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.syncs(tidemark.ErrForgotten)
			a.sync()
			fleet, err := a.p.Devices(t.Context())
			if err != nil || len(fleet.Devices) != 2 {
				t.Fatalf("%+v, %v", fleet, err)
			}
			for _, d := range fleet.Devices {
				if d.DeviceID == plan.DeviceID && (!d.Forgotten || d.Name+d.Platform+d.Version != "" || d.Seq != 1) || d.DeviceID != plan.DeviceID && (d.Forgotten || d.Name != "Ada's phone") {
					t.Errorf("a record says %+v", d)
				}
			}
			if got := names(t, a, "notes"); got != "[one three]" {
				t.Errorf("the other device has %s", got)
			}
			c := f.device("c")
			rounds(2, c, a)
			same(t, a, c)

			left := f.left()
			if left.Documents["notes"] != 3 || left.Documents["tags"] != 1 || left.Devices != 3 || left.Objects < 3 || left.Marked {
				t.Errorf("it would remove %v, %d devices, %d objects", left.Documents, left.Devices, left.Objects)
			}
			c.sync() // nothing was done
			// Without a word about tables: the records name them.
			done, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store())
			if err != nil {
				t.Fatal(err)
			}
			if done.Documents["notes"] != 3 || done.Documents["tags"] != 1 || done.Devices != 3 || done.Objects != left.Objects {
				t.Errorf("it removed %v, %d devices, %d objects of %d", done.Documents, done.Devices, done.Objects, left.Objects)
			}
			wantNothingLeft(t, f)
			before := contents(t.Context(), t, a.db.DB)
			a.syncs(tidemark.ErrForgotten)
			a.exec(`INSERT INTO notes (name) VALUES ('late')`)
			a.syncs(tidemark.ErrForgotten)
			f.device("d").syncs(tidemark.ErrForgotten)
			if _, err := tidemark.Restore(t.Context(), filepath.Join(f.dir, "restored.db"), f.store()); !errors.Is(err, tidemark.ErrNotFound) {
				t.Errorf("a restore from it: %v, want ErrNotFound", err)
			}
			a.exec(`DELETE FROM notes WHERE name = 'late'`)
			diff(t, "before", before, "after", contents(t.Context(), t, a.db.DB))
			wantNothingLeft(t, f)
			// A device of a forgotten scope can be forgotten too.
			if _, err := a.p.Forget(t.Context(), tidemark.ForgetUnsynced()); err != nil {
				t.Error(err)
			}
		})
	}
}

// forgetFaults are what can happen to a call, by name.
var forgetFaults = map[string]struct {
	remote func(*memory.Fault)
	store  func(*memory.StoreFault)
}{
	"it never arrives":        {func(f *memory.Fault) { f.Before = messages.ErrUnavailable }, func(f *memory.StoreFault) { f.Before = messages.ErrUnavailable }},
	"its answer is lost":      {func(f *memory.Fault) { f.After = messages.ErrUnavailable }, func(f *memory.StoreFault) { f.After = messages.ErrUnavailable }},
	"it arrives later":        {func(f *memory.Fault) { f.Later = messages.ErrUnavailable }, func(f *memory.StoreFault) { f.Before = messages.ErrUnavailable }},
	"it breaks in the middle": {func(f *memory.Fault) { f.Break, f.BreakAfter = messages.ErrUnavailable, 1 }, func(f *memory.StoreFault) { f.Before = messages.ErrUnavailable }},
}

// A scope is forgotten, which breaks at every call once; devices that live go on in the
// half-forgotten scope. None of them loses or brings back a row, all of them are told, and
// another run finishes.
func TestForgettingAScopeIsCutOffAnywhere(t *testing.T) {
	t.Parallel()
	for name, fault := range forgetFaults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told, calls := 0, int64(0)
			step := int64(3)
			if name == "its answer is lost" { // the worst: everywhere
				step = 1
			}
			for n := int64(1); calls >= n-step; n += step { // until no call is the n-th
				f := newFleet(t, forgetSchema)
				a, b := f.device("a", eager()...), f.device("b", eager()...)
				a.exec(`INSERT INTO notes (name) VALUES ('one')`)
				a.exec(`INSERT INTO tags (name) VALUES ('home')`)
				rounds(2, a, b)
				for i := range messages.MaxCommitWrites { // one commit does not take all
					f.server.Put(messages.Document{Table: "notes", ID: fmt.Sprint("foreign", i)})
				}
				b.exec(`UPDATE tags SET name = 'edited'`)
				before := contents(t.Context(), t, b.db.DB)

				remote, store := f.server.Remote(), f.store().(*memory.Store)
				calls = 0
				remote.Fault = func(memory.Call) (x memory.Fault) {
					if calls++; calls == n {
						fault.remote(&x)
					}
					return x
				}
				store.Fault = func(memory.StoreCall) (x memory.StoreFault) {
					if calls++; calls == n {
						fault.store(&x)
					}
					return x
				}
				_, err := tidemark.ForgetScope(t.Context(), remote, store)
				if err != nil && !errors.Is(err, tidemark.ErrUnavailable) {
					t.Fatalf("call %d: %v", n, err)
				}
				if _, err := b.p.Sync(t.Context()); errors.Is(err, tidemark.ErrForgotten) {
					told++
				} else if err != nil {
					t.Errorf("call %d: a device in between says %v", n, err)
				}
				if n%2 == 0 {
					f.server.Deliver()
				}
				if _, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store()); err != nil {
					t.Fatalf("call %d: the second run: %v", n, err)
				}
				f.server.Deliver()
				wantNothingLeft(t, f)
				if docs := f.server.Dump(); len(docs) > 0 {
					t.Errorf("call %d: %d documents are left", n, len(docs))
				}
				for _, d := range []*device{a, b, f.device("d")} {
					d.syncs(tidemark.ErrForgotten)
				}
				diff(t, "b before", before, "b after", contents(t.Context(), t, b.db.DB))
				if t.Failed() {
					t.Fatalf("%s at call %d", name, n)
				}
			}
			if calls < 12 || told == 0 {
				t.Errorf("%d calls, and %d devices were told in between: the story is not what it was", calls, told)
			}
		})
	}
}

// What a device has sent before it could know: on top of a record it comes to nothing, and
// a first commit, which has nothing to find changed, is gone with the next run.
func TestACommitThatArrivesInAForgottenScope(t *testing.T) {
	t.Parallel()
	f := newFleet(t, forgetSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notes (name) VALUES ('one')`)
	a.sync()
	late := f.server.Remote()
	late.Fault = func(c memory.Call) (x memory.Fault) {
		if c.Op == memory.OpCommit {
			x.Later = messages.ErrUnavailable
		}
		return x
	}
	patience := tidemark.DefaultRetryPolicy()
	patience.Unavailable.Times = 0
	slow := f.with(late)
	b := slow.on(a.path, a.db, tidemark.WithRetryPolicy(patience))
	c := slow.device("c", tidemark.WithRetryPolicy(patience))
	for _, d := range []*device{b, c} {
		d.exec(`INSERT INTO notes (name) VALUES ('two')`)
		d.syncs(tidemark.ErrUnavailable)
	}
	if n := f.server.Delayed(); n != 2 {
		t.Fatalf("%d commits are on their way, want 2", n)
	}
	forget := func() {
		t.Helper()
		if _, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store()); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	results := f.server.Deliver()
	if !errors.Is(results[0], messages.ErrConflict) || results[1] != nil {
		t.Errorf("what became of them: %v", results)
	}
	if docs := f.server.Dump(); len(docs) != 1 {
		t.Errorf("%d documents, want the one of a device that nobody had heard of", len(docs))
	}
	b.syncs(tidemark.ErrForgotten)
	c.syncs(tidemark.ErrForgotten)
	forget()
	wantNothingLeft(t, f)
}

// A scope is forgotten before every call of another device's cycle, which downloads, uploads
// and backs up. The device loses nothing, and is told at its next cycle at the latest.
func TestAScopeIsForgottenInTheMiddleOfACycle(t *testing.T) {
	t.Parallel()
	told, calls := 0, 0
	for n := 1; calls >= n-1; n++ {
		f := newFleet(t, forgetSchema)
		b, a := f.device("b", eager()...), f.device("a", tidemark.WithBackup(1000, 1000*time.Hour, 1)) // b makes the snapshots
		a.exec(`INSERT INTO notes (name) VALUES ('one'), ('two')`)
		rounds(2, b, a)
		a.exec(`INSERT INTO notes (name) VALUES ('three')`)
		a.exec(`DELETE FROM notes WHERE name = 'two'`)
		a.sync()
		b.exec(`UPDATE notes SET name = 'edited' WHERE name = 'one'`)
		b.exec(`INSERT INTO tags (name) VALUES ('home')`)

		remote, store := f.server.Remote(), f.store().(*memory.Store)
		calls = 0
		before := func() {
			if calls++; calls == n {
				if _, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store()); err != nil {
					t.Error(err)
				}
			}
		}
		remote.Fault = func(memory.Call) (x memory.Fault) { before(); return x }
		store.Fault = func(memory.StoreCall) (x memory.StoreFault) { before(); return x }
		between := f.with(remote).onStore(store).on(b.path, b.db, eager()...)
		if _, err := between.p.Sync(t.Context()); errors.Is(err, tidemark.ErrForgotten) {
			told++
		} else if err != nil {
			t.Errorf("call %d: %v, want ErrForgotten", n, err)
		}
		if calls >= n {
			b.syncs(tidemark.ErrForgotten)
			// A snapshot that was on its way is gone with another run.
			if _, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store()); err != nil {
				t.Error(err)
			}
			wantNothingLeft(t, f)
		}
		if got := names(t, b, "notes"); got != "[edited three]" && got != "[edited two]" {
			t.Errorf("call %d: the device has %s", n, got)
		}
		if got := names(t, b, "tags"); got != "[home]" {
			t.Errorf("call %d: the device has %s", n, got)
		}
		if t.Failed() {
			t.Fatalf("at call %d", n)
		}
	}
	if calls < 6 || told == 0 {
		t.Errorf("%d calls, and it was told %d times: the story is not what it was", calls, told)
	}
}

// A backend that signs no listings costs orphans, and nothing else: snapshots are made, and
// what the manifest names is forgotten.
func TestForgettingWhereNothingIsListed(t *testing.T) {
	t.Parallel()
	f := newFleet(t, forgetSchema)
	store := f.store().(*memory.Store)
	store.Fault = func(c memory.StoreCall) (x memory.StoreFault) {
		if c.Op == memory.OpList {
			x.Before = messages.ErrUnauthorized
		}
		return x
	}
	a := f.onStore(store).device("a", eager()...)
	for range 3 {
		a.exec(`INSERT INTO notes (name) VALUES ('one')`)
		if r := a.sync(); r.Snapshot == nil {
			t.Fatal("there is no snapshot")
		}
	}
	done, err := tidemark.ForgetScope(t.Context(), f.remote(), store)
	if err != nil {
		t.Fatal(err)
	}
	if keys := store.Bucket().Keys(); len(keys) > 0 || done.Objects < 5 {
		t.Errorf("%d objects were removed, and there is %v", done.Objects, keys)
	}
	if !slices.ContainsFunc(done.Remains, func(s string) bool { return strings.Contains(s, "lists nothing") }) {
		t.Errorf("nobody is told that orphans may remain: %q", done.Remains)
	}
}

// What somebody else keeps beside the snapshots is not ours to forget.
func TestForgettingLeavesWhatIsNotOurs(t *testing.T) {
	t.Parallel()
	f := newFleet(t, forgetSchema)
	a := f.device("a", eager()...)
	a.exec(`INSERT INTO notes (name) VALUES ('one')`)
	a.sync()
	put(t, f.store(), "photos/1.jpg", []byte("a photo"))
	put(t, f.store(), "snapshots/readme.txt", []byte("a note"))
	done, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store())
	if err != nil {
		t.Fatal(err)
	}
	if keys := fmt.Sprint(f.store().(*memory.Store).Bucket().Keys()); keys != "[photos/1.jpg snapshots/readme.txt]" {
		t.Errorf("there is %s", keys)
	}
	if !slices.ContainsFunc(done.Remains, func(s string) bool { return strings.HasPrefix(s, "2 objects") }) {
		t.Errorf("what remains: %q", done.Remains)
	}
}

// Forgetting a device breaks at every call once, and another run finishes.
func TestForgettingADeviceIsCutOffAnywhere(t *testing.T) {
	t.Parallel()
	for name, fault := range forgetFaults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := int64(0)
			for n := int64(1); calls >= n-1; n++ {
				f := newFleet(t, forgetSchema)
				a, b := f.device("a"), f.device("b")
				a.exec(`INSERT INTO notes (name) VALUES ('one')`)
				rounds(2, a, b)
				remote := f.server.Remote()
				bad := f.with(remote).on(a.path, a.db, tidemark.WithDevice("Ada's phone", "android"))
				armed := true
				calls = 0
				remote.Fault = func(memory.Call) (x memory.Fault) {
					if !armed {
						return x
					}
					if calls++; calls == n {
						fault.remote(&x)
					}
					return x
				}
				if _, err := bad.p.Forget(t.Context()); err != nil && !errors.Is(err, tidemark.ErrUnavailable) {
					t.Fatalf("call %d: %v", n, err)
				}
				if n%2 == 0 {
					f.server.Deliver()
				}
				armed = false
				done, err := bad.p.Forget(t.Context())
				if err != nil {
					t.Fatalf("call %d: the second run: %v", n, err)
				}
				f.server.Deliver()
				i := slices.IndexFunc(f.server.DumpDevices(), func(d messages.Device) bool { return d.ID == done.DeviceID })
				if d := f.server.DumpDevices()[i]; !d.Forgotten || d.Name+d.Platform+d.Version != "" || len(d.Seen) > 0 || d.Seq != 1 || d.Tables["notes"] != 1 {
					t.Errorf("call %d: the record is %+v", n, d)
				}
				a.syncs(tidemark.ErrForgotten)
				b.exec(`INSERT INTO notes (name) VALUES ('two')`)
				c := f.device("c")
				rounds(2, b, c)
				same(t, b, c)
				if t.Failed() {
					t.Fatalf("%s at call %d", name, n)
				}
			}
		})
	}
}

// Tombstones wait for a device that was not heard of for a while, and not for one that
// was forgotten. A copy of its file, which nobody forgot, comes back as a new device and
// brings nothing back.
func TestAForgottenDeviceHoldsNothingBack(t *testing.T) {
	t.Parallel()
	inBubble(t, func(t *testing.T) {
		f := newFleet(t, treeSchema)
		a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0)), f.device("b", tidemark.WithBackup(1000, 1000*time.Hour, 0))
		a.exec(`INSERT INTO parent (name) VALUES ('stays'), ('goes')`)
		rounds(2, a, b)
		clone := filepath.Join(f.dir, "clone.db")
		b.exec(`VACUUM INTO ?`, clone)
		a.exec(`DELETE FROM parent WHERE name = 'goes'`)
		for range 3 {
			a.exec(`INSERT INTO parent (name) VALUES ('another')`)
			aDay(a)
		}
		if n := f.deletedDocuments(); n != 1 {
			t.Fatalf("%d tombstones, want 1: b has not seen it", n)
		}
		if _, err := b.p.Forget(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.exec(`INSERT INTO parent (name) VALUES ('another')`)
		aDay(a)
		if n := f.deletedDocuments(); n != 0 {
			t.Errorf("%d tombstones wait for a device that was forgotten", n)
		}
		back := f.on(clone, openDB(t, clone), tidemark.WithBackup(1000, 1000*time.Hour, 0))
		back.exec(`INSERT INTO parent (name) VALUES ('of the copy')`)
		rounds(3, back, a)
		same(t, a, back)
		if got := fmt.Sprint(strings1(t.Context(), t, a.db.DB, `SELECT name FROM parent WHERE name IN ('goes', 'stays', 'of the copy') ORDER BY name`)); got != "[of the copy stays]" {
			t.Errorf("there is %s", got)
		}
	})
}

// The URL of somebody else's store is a mistake that costs nobody anything.
func TestForgettingWithAnothersStore(t *testing.T) {
	t.Parallel()
	f := newFleet(t, forgetSchema)
	f.remote = func() tidemark.Remote { return named{f.server.Remote(), "ada"} }
	a := f.device("a", eager()...)
	a.exec(`INSERT INTO notes (name) VALUES ('one')`)
	a.sync()
	keys := f.store().(*memory.Store).Bucket().Keys()
	bob := named{memory.NewServer().Remote(), "bob"}
	for name, opts := range map[string][]tidemark.ForgetOption{"look": {tidemark.ForgetDryRun()}, "remove": nil} {
		if _, err := tidemark.ForgetScope(t.Context(), bob, f.store(), opts...); !errors.Is(err, tidemark.ErrOtherScope) {
			t.Errorf("%s: %v, want ErrOtherScope", name, err)
		}
		if list, err := bob.Devices(t.Context(), -1); err != nil || len(list.Devices) > 0 {
			t.Errorf("%s: the scope was marked: %+v, %v", name, list.Devices, err)
		}
		if now := f.store().(*memory.Store).Bucket().Keys(); !slices.Equal(now, keys) {
			t.Errorf("%s: of %v there is %v", name, keys, now)
		}
	}
	if _, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store()); err != nil { // its own
		t.Error(err)
	}
}

// strictRemote looks at its rules first, and calls what has moved unauthorized.
type strictRemote struct {
	tidemark.Remote
	before func(messages.Commit) // each commit
	denied bool                  // all of them
}

func (r *strictRemote) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	r.before(c)
	if r.denied {
		return messages.Committed{}, messages.ErrUnauthorized
	}
	done, err := r.Remote.Commit(ctx, c)
	if errors.Is(err, messages.ErrConflict) {
		err = messages.ErrUnauthorized
	}
	return done, err
}

// What moves while it is forgotten is read again, and a refusal stays one.
func TestForgettingWhatMovesUnderRules(t *testing.T) {
	t.Parallel()
	t.Run("scope", func(t *testing.T) {
		f := newFleet(t, forgetSchema)
		a := f.device("a")
		a.exec(`INSERT INTO notes (name) VALUES ('one')`)
		a.sync()
		id, moved := f.server.DumpDevices()[0].ID, false
		remote := &strictRemote{Remote: f.server.Remote(), before: func(c messages.Commit) {
			if c.Device.ID != id || moved {
				return
			}
			moved = true
			d, err := f.server.Remote().Device(t.Context(), id)
			if err != nil {
				t.Error(err)
			}
			expect := d.UpdateTime
			d.Seq++
			d.Token = "on its way"
			if _, err := f.server.Remote().Commit(t.Context(), messages.Commit{Device: d, Expect: expect}); err != nil {
				t.Error(err)
			}
		}}
		if _, err := tidemark.ForgetScope(t.Context(), remote, f.store()); err != nil || !moved {
			t.Errorf("moved %v: %v", moved, err)
		}
		wantNothingLeft(t, f)
	})
	t.Run("device", func(t *testing.T) {
		f := newFleet(t, forgetSchema)
		a := f.device("a")
		a.sync()
		slow := f.server.Remote()
		slow.Fault = func(c memory.Call) (x memory.Fault) {
			if c.Op == memory.OpCommit {
				x.Later = messages.ErrUnavailable
			}
			return x
		}
		a.exec(`INSERT INTO notes (name) VALUES ('one')`)
		if _, err := f.with(slow).on(a.path, a.db).p.Sync(t.Context()); !errors.Is(err, tidemark.ErrUnavailable) {
			t.Fatal(err)
		}
		remote := &strictRemote{Remote: f.server.Remote(), before: func(messages.Commit) { f.server.Deliver() }}
		f.remote = func() tidemark.Remote { return remote }
		if _, err := f.on(a.path, a.db).p.Forget(t.Context(), tidemark.ForgetUnsynced()); err != nil {
			t.Error(err)
		}
		if d := f.server.DumpDevices()[0]; !d.Forgotten {
			t.Errorf("the record is %+v", d)
		}
	})
	t.Run("denied", func(t *testing.T) {
		f := newFleet(t, forgetSchema)
		a := f.device("a")
		a.exec(`INSERT INTO notes (name) VALUES ('one')`)
		a.sync()
		remote := &strictRemote{Remote: f.server.Remote(), before: func(messages.Commit) {}, denied: true}
		f.remote = func() tidemark.Remote { return remote }
		if _, err := f.on(a.path, a.db).p.Forget(t.Context()); !errors.Is(err, tidemark.ErrUnauthorized) {
			t.Errorf("%v, want ErrUnauthorized", err)
		}
		a.sync() // nothing was done
	})
}
