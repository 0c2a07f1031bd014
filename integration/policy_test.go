package integration

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

const cardSchema = `CREATE TABLE box (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE card (id INTEGER PRIMARY KEY, box INTEGER REFERENCES box(id), title TEXT, body TEXT, rank REAL, low INTEGER DEFAULT 0, high INTEGER DEFAULT 9, CHECK (low <= high));`

// pair is two devices with one card in step, whose table has a policy.
func pair(t *testing.T, policy tidemark.Policy, opts ...tidemark.Option) (f *fleet, a, b *device) {
	t.Helper()
	f = newFleet(t, cardSchema)
	a, b = f.device("a", opts...), f.device("b", opts...)
	for _, d := range []*device{a, b} {
		if _, err := tidemark.Attach(t.Context(), d.db, tidemark.Table{Name: "card", Policy: policy}); err != nil {
			t.Fatal(err)
		}
	}
	a.exec(`INSERT INTO box (id, name) VALUES (1, 'in'), (2, 'out')`)
	a.exec(`INSERT INTO card (id, box, title, body, rank) VALUES (7, 1, 'first', 'text', 0.1)`)
	rounds(2, a, b)
	return f, a, b
}

// later waits for the next millisecond: edits of the same one are equally late.
func later() {
	for now := time.Now().UnixMilli(); time.Now().UnixMilli() == now; {
	}
}

func TestMergeByFieldKeepsEditsOfDifferentColumns(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t, tidemark.MergeByField)
	a.exec(`UPDATE card SET title = 'from a'`)
	a.exec(`UPDATE card SET rank = 0.25, box = 2`)
	b.exec(`INSERT OR REPLACE INTO card (id, box, title, body, rank) SELECT id, box, title, 'from b', rank FROM card`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT title || '|' || body || '|' || rank || '|' || box FROM card`); got != `"from a|from b|0.25|2"` {
		t.Errorf("merged to %s", got)
	}
	if n := len(b.conflicts()); n != 0 {
		t.Errorf("nothing was lost and %d conflicts are kept", n)
	}
	if n := b.value(`SELECT count(*) FROM tidemark_bases`); n != "0" {
		t.Errorf("%s values of the version before are kept although everything is up", n)
	}
}

// A row can be merged again and again before it goes up.
func TestMergeByFieldGoesOnFromTheLastVersion(t *testing.T) {
	t.Parallel()
	f, a, b := pair(t, tidemark.MergeByField)
	remote := f.server.Remote()
	remote.Fault = func(c memory.Call) memory.Fault {
		if c.Op == memory.OpCommit {
			return memory.Fault{Before: fmt.Errorf("no upload today: %w", tidemark.ErrUnavailable)}
		}
		return memory.Fault{}
	}
	f.remote = func() tidemark.Remote { return remote }
	down := f.on(b.path, b.db, tidemark.WithRetries(0, time.Second))
	b.exec(`UPDATE card SET body = 'from b', high = 20`)
	later()
	for i := range 3 {
		a.exec(fmt.Sprintf(`UPDATE card SET title = 'a%d'`, i))
		a.sync()
		if i == 1 {
			a.exec(`UPDATE card SET body = 'a wrote here, too', rank = 5`)
			a.sync()
		}
		if _, err := down.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	rounds(2, b, a)
	same(t, a, b)
	// b's edit of body was made before a's.
	if got := b.value(`SELECT title || '|' || body || '|' || rank || '|' || high FROM card`); got != `"a2|a wrote here, too|5.0|20"` {
		t.Errorf("merged to %s", got)
	}
	if n := len(b.conflicts()); n != 1 {
		t.Errorf("%d conflicts for one column that both changed", n)
	}
}

// Each side is a row that fits, both together are not.
func TestMergeByFieldThatDoesNotFit(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t, tidemark.MergeByField)
	a.exec(`UPDATE card SET low = 8`)
	later()
	b.exec(`UPDATE card SET high = 2`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT low || '|' || high FROM card`); got != `"0|2"` {
		t.Errorf("want the later row as a whole, got %s", got)
	}
	if n := len(b.conflicts()); n != 1 {
		t.Errorf("%d conflicts are kept, want the loser", n)
	}
}

// The upload was on its way when the row was edited once more.
func TestMergeByFieldWithoutABase(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t, tidemark.MergeByField)
	a.exec(`DELETE FROM tidemark_bases`)
	b.exec(`UPDATE card SET body = 'from b'`)
	b.exec(`DELETE FROM tidemark_bases`)
	later()
	a.exec(`UPDATE card SET title = 'from a'`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT title || '|' || body FROM card`); got != `"from a|text"` {
		t.Errorf("want the later row as a whole, got %s", got)
	}
}

func TestTheApplicationDecides(t *testing.T) {
	t.Parallel()
	var asked []tidemark.Contest
	longest := func(c tidemark.Contest) (map[string]any, error) {
		asked = append(asked, c)
		if fmt.Sprint(c.Local["title"]) == "boom" {
			panic("a bug of the application's")
		}
		if len(fmt.Sprint(c.Local["body"])) > len(fmt.Sprint(c.Server["body"])) {
			return map[string]any{"body": c.Local["body"], "low": 3}, nil
		}
		return nil, nil
	}
	_, a, b := pair(t, tidemark.ByApplication, tidemark.WithResolver("card", longest))
	a.exec(`UPDATE card SET title = 'from a', body = 'x'`)
	b.exec(`UPDATE card SET body = 'long text', box = 2`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT title || '|' || body || '|' || low || '|' || box FROM card`); got != `"from a|long text|3|1"` {
		t.Errorf("decided %s", got)
	}
	if len(asked) != 1 || asked[0].Base["body"] != "text" || asked[0].Local["box"] != int64(2) || asked[0].Server["title"] != "from a" {
		t.Errorf("asked %+v", asked)
	}
	if n := len(b.conflicts()); n != 1 {
		t.Errorf("%d conflicts are kept, want both versions once", n)
	}

	a.exec(`UPDATE card SET title = 'again'`)
	later()
	b.exec(`UPDATE card SET title = 'boom'`)
	rounds(2, a, b)
	same(t, a, b)
	if got := a.value(`SELECT title FROM card`); got != `"boom"` {
		t.Errorf("after a panic the later edit wins, got %s", got)
	}
}

func TestWithoutItsResolverATableIsNotSynced(t *testing.T) {
	t.Parallel()
	f, _, _ := pair(t, tidemark.LastWriterWins)
	c := f.device("c")
	if _, err := tidemark.Attach(t.Context(), c.db, tidemark.Table{Name: "card", Policy: tidemark.ByApplication}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrNoResolver) {
		t.Errorf("got %v", err)
	}
}

// A policy holds for deletes as well.
func TestPoliciesForADeleteAgainstAnEdit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy      tidemark.Policy
		deletes     string // the device that deletes; the other edits, later
		left, right string // rows when a syncs first, when b does
	}{
		{tidemark.LastWriterWins, "a", "1", "1"},
		{tidemark.ServerWins, "a", "0", "1"},
		{tidemark.ClientWins, "a", "1", "0"},
	} {
		for _, first := range []string{"a", "b"} {
			t.Run(string(c.policy)+" "+first, func(t *testing.T) {
				_, a, b := pair(t, c.policy)
				a.exec(`DELETE FROM card`)
				later()
				b.exec(`UPDATE card SET title = 'later'`)
				want := c.left
				if first == "b" {
					want = c.right
					b.sync()
				}
				rounds(3, a, b)
				same(t, a, b)
				if got := a.value(`SELECT count(*) FROM card`); got != want {
					t.Errorf("%s rows, want %s", got, want)
				}
			})
		}
	}
}

// The policy is the owner's choice and stays when the schema changes.
func TestAMergedTableGainsAndLosesAColumn(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t, tidemark.MergeByField)
	for _, d := range []*device{a, b} {
		d.exec(`ALTER TABLE card ADD COLUMN note TEXT`)
		d.sync()
	}
	a.exec(`UPDATE card SET note = 'from a'`)
	b.exec(`UPDATE card SET body = 'from b'`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT body || '|' || note FROM card`); got != `"from b|from a"` {
		t.Errorf("merged to %s", got)
	}
	for _, trigger := range strings1(t.Context(), t, a.db.DB, `SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'card' AND name LIKE 'tidemark\_%' ESCAPE '\'`) {
		a.exec(`DROP TRIGGER "` + trigger + `"`)
	}
	a.exec(`ALTER TABLE card DROP COLUMN note`)
	a.sync()
	a.exec(`UPDATE card SET title = 'without'`)
	rounds(2, a, b)
	if got := b.value(`SELECT title || '|' || body || '|' || note FROM card`); got != `"without|from b|from a"` {
		t.Errorf("b has %s", got)
	}
}

// Both sides made the same edit, then each another one: what they agreed on is the base.
func TestMergeByFieldAfterTheSameEditOnBothSides(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "")
	server := f.refusing()
	open := func(name string) *device {
		path := filepath.Join(f.dir, name+".db")
		db := openDB(t, path)
		if _, err := db.DB.Exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, w TEXT, u TEXT)`); err != nil {
			t.Fatal(err)
		}
		if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "item", Policy: tidemark.MergeByField}); err != nil {
			t.Fatal(err)
		}
		return f.on(path, db)
	}
	a, b, c := open("a"), open("b"), open("c")
	a.exec(`INSERT INTO item (v, w, u) VALUES ('v', 'w', 'u')`)
	rounds(2, a, b, c)
	c.exec(`UPDATE item SET v = 'both'`)
	a.exec(`UPDATE item SET v = 'both'`)
	c.sync()
	b.sync()
	server.refuse = func(d messages.Document) bool { return d.Fields["v"] == "both" }
	a.sync()
	server.refuse = func(messages.Document) bool { return false }
	b.exec(`UPDATE item SET w = 'b'`)
	b.sync()
	a.exec(`UPDATE item SET u = 'a'`)
	rounds(2, a, b, c)
	same(t, a, b, c)
	if got := a.value(`SELECT v || w || u FROM item`); got != `"bothba"` {
		t.Errorf("the row is %s, want both, b and a", got)
	}
}

// A row is changed here when its table gains a column, which is then filled from the
// document. Who changes it there next is the only one who has changed it.
func TestMergeByFieldOfAColumnThatWasFilled(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "")
	server := f.refusing()
	open := func(name, column string) *device {
		path := filepath.Join(f.dir, name+".db")
		db := openDB(t, path)
		if _, err := db.DB.Exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT` + column + `)`); err != nil {
			t.Fatal(err)
		}
		if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "item", Policy: tidemark.MergeByField}); err != nil {
			t.Fatal(err)
		}
		return f.on(path, db)
	}
	old, a := open("old", ""), open("a", ", x TEXT")
	a.exec(`INSERT INTO item (v, x) VALUES ('first', 'x')`)
	rounds(2, a, old)
	server.refuse = func(d messages.Document) bool { return d.Fields["v"] == "bad" }
	old.exec(`UPDATE item SET v = 'bad'; ALTER TABLE item ADD COLUMN x TEXT`)
	old.sync()
	if x := old.value(`SELECT x FROM item WHERE isDirty`); x != `"x"` {
		t.Fatalf("the story is another one: %s", x)
	}
	a.exec(`UPDATE item SET x = 'of a'`)
	a.sync()
	for range 100 {
		old.exec(`UPDATE item SET v = v || '.'`)
	}
	old.exec(`UPDATE item SET v = 'good'`)
	rounds(2, old, a)
	same(t, old, a)
	if got := a.value(`SELECT v || ' ' || x FROM item`); got != `"good of a"` {
		t.Errorf("the row is %s", got)
	}
}
