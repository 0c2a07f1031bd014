package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// ruledFleet is on the emulator with our security rules, signed in as a user.
type ruledFleet struct {
	*fleet
	cfg firestore.Config
}

func newRuledFleet(t *testing.T, schema string) *ruledFleet {
	t.Helper()
	cfg := firestore.Config{Emulator: servers.Firestore(t), Project: servers.Project(t), Scope: "users/alice"}
	rules, err := firestore.Rules("users/{uid}")
	if err != nil {
		t.Fatal(err)
	}
	servers.Rules(t, cfg.Emulator, cfg.Project, rules)
	f := &ruledFleet{newFleet(t, schema), cfg}
	f.server = nil
	f.remote = func() tidemark.Remote { return f.as(f.user("alice")) }
	return f
}

func (f *ruledFleet) user(uid string) firestore.TokenSource {
	return func(context.Context, string) (string, error) { return servers.IDToken(f.cfg.Project, uid), nil }
}

// as opens alice's scope; without a source as its operator.
func (f *ruledFleet) as(source firestore.TokenSource) *firestore.Remote {
	f.t.Helper()
	cfg := f.cfg
	cfg.User = source
	r, err := firestore.Open(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = r.Close() })
	return r
}

// tombstones counts those in a table on the server.
func (f *ruledFleet) tombstones(table string) (n int) {
	f.t.Helper()
	_, err := f.as(nil).Read(f.t.Context(), messages.Query{Table: table}, func(d messages.Document) error {
		if d.Deleted {
			n++
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// deaf does not hear that a commit landed, as often as it is told.
type deaf struct {
	tidemark.Remote
	times *int
}

func (d deaf) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	done, err := d.Remote.Commit(ctx, c)
	if err == nil && *d.times > 0 {
		*d.times--
		return messages.Committed{}, fmt.Errorf("the answer was lost: %w", messages.ErrUnavailable)
	}
	return done, err
}

// Nothing that devices do for each other is against the rules: everything arrives, no
// row is set aside.
func TestWholeCyclesUnderRules(t *testing.T) {
	t.Parallel()
	f := newRuledFleet(t, notesSchema)
	quick := []tidemark.Option{tidemark.WithBackup(1, time.Hour, 0), tidemark.WithDailySnapshots(0), tidemark.WithTakeover(0), tidemark.WithPurge(time.Nanosecond, 24*time.Hour)}
	a := f.device("a", quick...)
	if found := problems(a, f.remote()); len(found) > 0 { // before the first sync, too
		t.Errorf("doctor finds %q", found)
	}
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home'), (2, 'work')`)
	a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'shopping'), (11, 2, 'report')`)
	a.exec(`INSERT INTO tag (name) VALUES ('red')`)
	if r := a.sync(); r.Total().Uploaded != 5 || r.Snapshot == nil {
		t.Fatalf("uploaded %+v", r)
	}
	b := f.device("b", quick...)
	if found := problems(b, f.remote()); len(found) > 0 { // a newcomer
		t.Errorf("doctor finds %q", found)
	}
	b.sync()
	same(t, a, b)
	// A conflict, and two rows with one unique key.
	a.exec(`UPDATE note SET title = 'from a' WHERE id = 10`)
	b.exec(`UPDATE note SET title = 'from b' WHERE title = 'shopping'`)
	a.exec(`INSERT INTO tag (name, colour) VALUES ('blue', 'a')`)
	b.exec(`INSERT INTO tag (name, colour) VALUES ('blue', 'b')`)
	rounds(3, a, b)
	same(t, a, b)
	// A deleted parent that got a child elsewhere comes back.
	a.exec(`DELETE FROM note WHERE id = 11`)
	b.exec(`INSERT INTO comment (note, text) SELECT id, 'wait!' FROM note WHERE title = 'report'`)
	rounds(3, a, b)
	same(t, a, b)
	if got := a.value(`SELECT count(*) FROM comment`); got != "1" {
		t.Fatalf("%s comments: the child is gone", got)
	}
	// A delete, heard of by both and by every kept snapshot, leaves the server.
	a.exec(`DELETE FROM note WHERE id = 10`)
	a.sync()
	if n := f.tombstones("note"); n != 1 {
		t.Fatalf("%d tombstones, want 1", n)
	}
	for i := range 3 {
		rounds(1, a, b)
		a.exec(`INSERT INTO notebook (name) VALUES (?)`, fmt.Sprint("a", i))
		b.exec(`INSERT INTO notebook (name) VALUES (?)`, fmt.Sprint("b", i))
	}
	rounds(2, a, b)
	if n := f.tombstones("note"); n != 0 {
		t.Errorf("%d tombstones are left", n)
	}
	// A lost device comes back from the snapshot, as another one.
	c := f.restore("c", quick...)
	c.exec(`UPDATE note SET title = 'from c'`)
	rounds(2, c, a, b)
	same(t, a, b, c)
	for name, d := range map[string]*device{"a": a, "b": b, "c": c} {
		if st, err := d.p.Status(t.Context()); err != nil || st.Dead > 0 {
			t.Errorf("%s has set %d rows aside, %v", name, st.Dead, err)
		}
		if found := problems(d, f.remote()); len(found) > 0 {
			t.Errorf("doctor of %s finds %q", name, found)
		}
	}
}

// Rules are looked at before preconditions: a commit whose predecessor landed unheard
// is refused as one that does not follow. It must not look like a missing right.
func TestLostAcknowledgementsUnderRules(t *testing.T) {
	t.Parallel()
	f := newRuledFleet(t, oneTable)
	left := 0
	open := f.remote
	f.remote = func() tidemark.Remote { return deaf{open(), &left} }
	a := f.device("a", tidemark.WithPurge(time.Nanosecond, 24*time.Hour), tidemark.WithRetries(4, time.Millisecond))
	a.notes(3)
	for _, edit := range []string{`UPDATE note SET title = 'again'`, `DELETE FROM note WHERE id = 1`, `INSERT INTO note (title) VALUES ('new')`} {
		left = 1
		a.exec(edit)
		a.sync()
		if left != 0 {
			t.Fatal("no answer was lost")
		}
	}
	b := f.device("b")
	b.sync()
	a.sync()
	same(t, a, b)
	if st, err := a.p.Status(t.Context()); err != nil || st.Dead > 0 {
		t.Errorf("%d rows were set aside, %v", st.Dead, err)
	}
}

// A copy of a file that goes on under the same id is noticed, rules or not.
func TestACloneUnderRules(t *testing.T) {
	t.Parallel()
	f := newRuledFleet(t, oneTable)
	a := f.device("a")
	a.notes(1)
	a.sync()
	copied := a.path + ".copy"
	if _, err := a.db.DB.Exec(`VACUUM INTO ?`, copied); err != nil {
		t.Fatal(err)
	}
	a.notes(1)
	a.sync()
	clone := f.on(copied, openDB(t, copied))
	clone.notes(1)
	rounds(2, clone, a)
	same(t, a, clone)
	if got := a.value(`SELECT count(*) FROM note`); got != "3" {
		t.Errorf("%s notes, want 3", got)
	}
}

// Where the whole scope is refused, a sync stops with a text that says what to do, and
// everything stays dirty.
func TestARefusedScopeKeepsEverything(t *testing.T) {
	t.Parallel()
	f := newRuledFleet(t, oneTable)
	bob := f.as(f.user("bob"))
	f.remote = func() tidemark.Remote { return bob }
	a := f.device("a")
	a.notes(3)
	_, err := a.p.Sync(t.Context())
	if !errors.Is(err, tidemark.ErrUnauthorized) || errors.Is(err, tidemark.ErrSignedOut) || !strings.Contains(err.Error(), "users/alice") || !strings.Contains(err.Error(), "pipeline firestore-config") {
		t.Errorf("%v, want the scope and the remedy", err)
	}
	if err := a.p.Run(t.Context()); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Errorf("Run ended with %v", err)
	}
	allDirty(t, a, 3)
	if found := problems(a, bob); !slices.Contains(found, "server") {
		t.Errorf("doctor finds %q", found)
	}
}

// A scope that can be read and not written keeps everything, too.
func TestARefusedUploadKeepsEverything(t *testing.T) {
	t.Parallel()
	f := newRuledFleet(t, oneTable)
	b := f.device("b")
	b.notes(1)
	b.sync()
	servers.Rules(t, f.cfg.Emulator, f.cfg.Project, `rules_version = '2';
service cloud.firestore { match /databases/{d}/documents { match /{path=**} { allow read: if request.auth != null; } } }`)
	a := f.device("a")
	a.notes(30)
	if _, err := a.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrUnauthorized) || !strings.Contains(err.Error(), "pipeline firestore-config") {
		t.Errorf("%v, want a refusal with the remedy", err)
	}
	allDirty(t, a, 30)
	if found := problems(a, f.remote()); !slices.Equal(found, []string{"last sync", "rights"}) {
		t.Errorf("doctor finds %q", found)
	}
}

// problems are the checks of a doctor that found one.
func problems(d *device, remote tidemark.Remote) (checks []string) {
	for x := range tidemark.Doctor(d.t.Context(), d.db, tidemark.Checkup{Remote: remote, Sample: 20}) {
		if x.Level == tidemark.Problem {
			checks = append(checks, x.Check)
		}
	}
	return checks
}

func allDirty(t *testing.T, d *device, rows int64) {
	t.Helper()
	st, err := d.p.Status(t.Context())
	if err != nil || st.Dirty != rows || st.Dead != 0 {
		t.Errorf("%d rows are dirty and %d set aside, want %d and none (%v)", st.Dirty, st.Dead, rows, err)
	}
}

// A sign-out ends Run with an error of its own, whatever it was doing, and keeps what
// was not uploaded; then the local copy can go.
func TestSignOut(t *testing.T) {
	t.Parallel()
	f := newRuledFleet(t, oneTable)
	signedIn := f.user("alice")
	calls, until := 0, 1<<30
	remote := f.as(func(ctx context.Context, refused string) (string, error) {
		if calls++; calls > until {
			return "", tidemark.ErrSignedOut
		}
		return signedIn(ctx, refused)
	})
	f.remote = func() tidemark.Remote { return remote }
	a := f.device("a")
	a.notes(3)
	a.sync()
	for after := range 3 { // before anything is asked, before the upload, in the midst of it
		a.exec(`UPDATE note SET title = title || '!'`)
		calls, until = 0, after
		if err := a.p.Run(t.Context()); !errors.Is(err, tidemark.ErrSignedOut) || !errors.Is(err, tidemark.ErrUnauthorized) {
			t.Fatalf("after %d requests: Run ended with %v", after, err)
		}
		st, err := a.p.Status(t.Context())
		if err != nil || st.Dead > 0 || after < 2 && st.Dirty != 3 {
			t.Fatalf("after %d requests: %+v %v", after, st, err)
		}
	}
	if err := a.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tidemark.Wipe(t.Context(), a.path, tidemark.WipeUnsynced()); err != nil {
		t.Fatal(err)
	}
}

// A server may look at so many documents for the rules of one commit, and no more. The
// emulator does not mind; a stand-in that does gets everything, in smaller commits.
func TestAServerThatBoundsWhatRulesLookAt(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	r := f.server.Remote()
	refusals := 0
	r.Fault = func(c memory.Call) memory.Fault {
		if c.Commit != nil && len(c.Commit.Writes) > 20 {
			refusals++
			return memory.Fault{Before: fmt.Errorf("too many accesses: %w", messages.ErrUnauthorized)}
		}
		return memory.Fault{}
	}
	f.remote = func() tidemark.Remote { return r }
	a := f.device("a")
	a.notes(1000)
	rep := a.sync()
	allDirty(t, a, 0)
	if rep.Total().Uploaded != 1000 || refusals > 3 {
		t.Errorf("%d uploaded, after %d refusals", rep.Total().Uploaded, refusals)
	}
}

// unwise is a remote that was opened with more rights than it needs.
type unwise struct{ tidemark.Remote }

func (unwise) Caution() string { return "these are an operator's credentials" }

func TestAnOperatorsCredentialsAreWarnedOf(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	open := f.remote
	f.remote = func() tidemark.Remote { return unwise{open()} }
	core, logged := observer.New(zap.WarnLevel)
	a := f.device("a", tidemark.WithLogger(zap.New(core)))
	if logged.FilterMessageSnippet("an operator's credentials").Len() != 1 {
		t.Errorf("logged: %v", logged.All())
	}
	if got := a.doctor(f.remote(), nil); !strings.Contains(got, "warning credentials: these are an operator's credentials") {
		t.Errorf("doctor finds\n%s", got)
	}
}

// The owner may have a device, or everything, forgotten, and nobody else.
func TestForgetUnderRules(t *testing.T) {
	t.Parallel()
	f := newRuledFleet(t, forgetSchema)
	a, b := f.device("a", eager()...), f.device("b")
	a.exec(`INSERT INTO notes (name) VALUES ('one'), ('two')`)
	rounds(2, a, b)
	a.exec(`DELETE FROM notes WHERE name = 'two'`)
	rounds(2, a, b)
	if _, err := b.p.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.syncs(tidemark.ErrForgotten)
	a.sync()
	bob := f.as(f.user("bob"))
	if _, err := tidemark.ForgetScope(t.Context(), bob, nil); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Errorf("somebody else forgets the scope: %v, want ErrUnauthorized", err)
	}
	if _, err := tidemark.ForgetScope(t.Context(), f.remote(), f.store()); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, f.fleet)
	a.syncs(tidemark.ErrForgotten)
}
