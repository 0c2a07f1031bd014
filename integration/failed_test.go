package integration

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

func (d *device) failed(f tidemark.DeadLetterFilter) []tidemark.DeadLetter {
	d.t.Helper()
	var out []tidemark.DeadLetter
	for x, err := range tidemark.DeadLetters(d.t.Context(), d.db, f) {
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, x)
	}
	return out
}

func (d *device) waiting() []tidemark.Waiting {
	d.t.Helper()
	var out []tidemark.Waiting
	for x, err := range tidemark.ListWaiting(d.t.Context(), d.db, "") {
		if err != nil {
			d.t.Fatal(err)
		}
		out = append(out, x)
	}
	return out
}

// replay replays and renders the outcomes, sorted.
func (d *device) replay(f tidemark.DeadLetterFilter, dryRun bool) string {
	d.t.Helper()
	var out []string
	if err := tidemark.ReplayDeadLetters(d.t.Context(), d.db, f, dryRun, func(r tidemark.Replayed) error {
		out = append(out, r.Table+" "+r.Outcome)
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// refusing is a server that takes no document that refuse names, until it changes its
// mind; it counts how often it was asked.
type refusing struct {
	refuse func(messages.Document) bool
	asked  int
}

func (f *fleet) refusing() *refusing {
	r := &refusing{refuse: func(messages.Document) bool { return false }}
	f.remote = func() tidemark.Remote {
		remote := f.server.Remote()
		remote.Fault = func(c memory.Call) memory.Fault {
			if c.Op != memory.OpCommit {
				return memory.Fault{}
			}
			for _, w := range c.Commit.Writes {
				if r.refuse(w.Document) {
					r.asked++
					return memory.Fault{Before: fmt.Errorf("the rules say no: %w", messages.ErrRejected)}
				}
			}
			return memory.Fault{}
		}
		return remote
	}
	return r
}

// A row that the server refused is tried again when it is replayed, without an edit, and
// its letter goes when the server has acknowledged it. Its child waits for it.
func TestARefusedRowIsReplayed(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	server := f.refusing()
	server.refuse = func(d messages.Document) bool { return d.Fields["title"] == "bad" }
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	a.exec(`INSERT INTO note (id, notebook, title) VALUES (10, 1, 'bad'), (11, 1, 'good')`)
	a.exec(`INSERT INTO comment (id, note, text) VALUES (100, 10, 'child of bad'), (101, 11, 'child of good')`)
	a.sync()
	asked := server.asked
	a.sync()
	if server.asked != asked {
		t.Errorf("a row that was refused was sent again without a reason")
	}
	letters := a.failed(tidemark.DeadLetterFilter{})
	if len(letters) != 1 {
		t.Fatalf("letters: %+v", letters)
	}
	x := letters[0]
	if x.Table != "note" || x.Row != "id = 10" || x.Stage != messages.StageUpload || x.Class != "rejected" || !strings.Contains(x.Reason, "the rules say no") ||
		x.Attempts != 1 || x.Replay || x.State != "dead" || x.Version != nil {
		t.Errorf("letter: %+v", x)
	}
	full, err := tidemark.ReadDeadLetter(t.Context(), a.db, x.ID)
	if err != nil || full.Version == nil || full.Version.Values["title"] != "bad" || full.Version.Parents["notebook"].Row != "id = 1" {
		t.Errorf("letter: %+v, %v", full.Version, err)
	}
	w := a.waiting()
	if len(w) != 1 || w[0].Row != "id = 100" || w[0].Stage != messages.StageUpload || w[0].Reason != `waits for its parent, the row id = 10 of table "note", which could not be uploaded` {
		t.Errorf("waiting: %+v", w)
	}

	if got := a.replay(tidemark.DeadLetterFilter{}, true); got != "note requested" {
		t.Errorf("dry run: %s", got)
	}
	if a.sync(); server.asked != asked {
		t.Errorf("the dry run was none")
	}
	for range 2 { // twice does no harm
		if got := a.replay(tidemark.DeadLetterFilter{IDs: []int64{x.ID}}, false); got != "note requested" {
			t.Errorf("replay: %s", got)
		}
	}
	if got := a.failed(tidemark.DeadLetterFilter{}); len(got) != 1 || !got[0].Replay {
		t.Errorf("a replay that is not acknowledged is not done: %+v", got)
	}
	a.sync()
	if got := a.failed(tidemark.DeadLetterFilter{}); len(got) != 1 || got[0].ID != x.ID || got[0].Attempts != 2 || got[0].Replay || !got[0].FirstOn.Equal(x.FirstOn) {
		t.Errorf("after it was refused again: %+v", got)
	}

	server.refuse = func(messages.Document) bool { return false }
	a.replay(tidemark.DeadLetterFilter{Stage: messages.StageDownload}, false)
	if a.sync(); len(a.failed(tidemark.DeadLetterFilter{})) != 1 {
		t.Error("the replay of another stage reached it")
	}
	a.replay(tidemark.DeadLetterFilter{Table: "NOTE"}, false)
	a.sync()
	if got := a.failed(tidemark.DeadLetterFilter{Discarded: true}); len(got) != 0 || len(a.waiting()) != 0 {
		t.Errorf("still there: %+v", got)
	}
	b := f.device("b")
	b.sync()
	same(t, a, b)
	if got := b.value(`SELECT count(*) FROM comment`); got != "2" {
		t.Errorf("comments: %s", got)
	}
	if err := tidemark.ReplayDeadLetters(t.Context(), a.db, tidemark.DeadLetterFilter{IDs: []int64{x.ID}}, false, nil); !errors.Is(err, tidemark.ErrNotFound) {
		t.Errorf("a letter that is done with: %v", err)
	}
}

// A row that is given up stays here, uncounted, until it changes.
func TestADiscardedRowStaysHereUntilItChanges(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);`)
	server := f.refusing()
	server.refuse = func(d messages.Document) bool { return d.Fields["body"] == "bad" }
	a := f.device("a")
	a.exec(`INSERT INTO note (id, body) VALUES (1, 'bad'), (2, x'' || printf('%.*c', 1500000, 'x')), (3, 'good')`)
	a.sync()
	if got := len(a.failed(tidemark.DeadLetterFilter{})); got != 2 {
		t.Fatalf("%d letters", got)
	}
	// One that was to be tried again is given up like the others.
	if got := a.replay(tidemark.DeadLetterFilter{}, false); got != "note failed, note requested" {
		t.Errorf("replay: %s", got)
	}
	if n, err := tidemark.DiscardDeadLetters(t.Context(), a.db, tidemark.DeadLetterFilter{}); err != nil || n != 2 {
		t.Errorf("discarded %d, %v", n, err)
	}
	asked := server.asked
	a.sync()
	if st, err := a.p.Status(t.Context()); err != nil || st.Dead != 0 || server.asked != asked {
		t.Errorf("status: %+v, %v; asked %d times", st, err, server.asked-asked)
	}
	if got := a.failed(tidemark.DeadLetterFilter{}); len(got) != 0 {
		t.Errorf("listed: %+v", got)
	}
	if got := a.failed(tidemark.DeadLetterFilter{Discarded: true}); len(got) != 2 || got[0].State != "discarded" {
		t.Errorf("discarded: %+v", got)
	}
	a.exec(`UPDATE note SET body = 'short' WHERE id = 2`)
	a.exec(`UPDATE note SET body = 'bad' WHERE id = 1`) // an edit, though to the same
	a.sync()
	if got := a.failed(tidemark.DeadLetterFilter{Discarded: true}); len(got) != 1 || got[0].State != "dead" || got[0].Row != "id = 1" {
		t.Errorf("after an edit: %+v", got)
	}
	a.exec(`UPDATE note SET body = 'better' WHERE id = 1`)
	a.sync()
	b := f.device("b")
	b.sync()
	same(t, a, b)
}

// A document that does not fit is replayed from what was kept of it, parents first.
func TestADocumentThatDidNotFitIsReplayed(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a")
	a.exec(`INSERT INTO notebook (id, name) VALUES (1, 'odd'), (2, 'plain')`)
	a.exec(`INSERT INTO note (id, notebook, title, body) VALUES (10, 1, 'odd', x'00ff'), (11, 2, 'odd', 9223372036854775807)`)
	a.exec(`INSERT INTO comment (id, note, text) VALUES (100, 10, 'c')`)
	a.sync()
	b := f.device("b")
	b.exec(`CREATE TRIGGER no_odd_book BEFORE INSERT ON notebook WHEN NEW.name = 'odd' BEGIN SELECT RAISE(ABORT, 'too odd'); END`)
	b.exec(`CREATE TRIGGER no_odd_note BEFORE INSERT ON note WHEN NEW.title = 'odd' BEGIN SELECT RAISE(ROLLBACK, 'so odd'); END`)
	b.sync()
	letters := b.failed(tidemark.DeadLetterFilter{})
	var got []string
	for _, x := range letters {
		got = append(got, fmt.Sprint(x.Stage, " ", x.Table, " ", x.Class, " ", strings.Contains(x.Reason, " odd")))
	}
	slices.Sort(got)
	if want := "download note rejected true, download notebook rejected true"; strings.Join(got, ", ") != want {
		t.Fatalf("letters: %v", got)
	}
	if w := b.waiting(); len(w) != 2 || w[0].Table != "comment" || w[1].Table != "note" || !strings.Contains(w[1].Reason, `of table "notebook"`) {
		t.Errorf("waiting: %+v", w)
	}
	if got := b.replay(tidemark.DeadLetterFilter{}, false); got != "note failed, notebook failed" {
		t.Errorf("replay: %s", got)
	}
	if got := b.failed(tidemark.DeadLetterFilter{}); len(got) != 2 || got[0].Attempts != 2 || got[1].Attempts != 2 {
		t.Errorf("letters: %+v", got)
	}
	b.exec(`DROP TRIGGER no_odd_book`)
	b.exec(`DROP TRIGGER no_odd_note`)
	if got := b.replay(tidemark.DeadLetterFilter{}, true); got != "note applied, notebook applied" {
		t.Errorf("dry run: %s", got)
	}
	if got := b.value(`SELECT count(*) FROM notebook`); got != "1" {
		t.Errorf("the dry run was none: %s", got)
	}
	if got := b.replay(tidemark.DeadLetterFilter{}, false); got != "note applied, notebook applied" {
		t.Errorf("replay: %s", got)
	}
	if got := b.replay(tidemark.DeadLetterFilter{}, false); got != "" {
		t.Errorf("replay of nothing: %s", got)
	}
	b.sync() // what waited comes by itself
	same(t, a, b)
	if w := b.waiting(); len(w) != 0 {
		t.Errorf("waiting: %+v", w)
	}
}

// A document that was given up here is not given up by who restores the snapshot.
func TestADiscardedDocumentTravelsInTheSnapshot(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);`)
	a := f.device("a")
	a.exec(`INSERT INTO note (id, body) VALUES (1, 'odd'), (2, 'plain')`)
	a.sync()
	b := f.device("b", tidemark.WithBackup(1, time.Hour, 1), tidemark.WithTakeover(0))
	b.exec(`CREATE TRIGGER no_odd BEFORE INSERT ON note WHEN NEW.body = 'odd' BEGIN SELECT RAISE(ABORT, 'too odd'); END`)
	b.sync()
	if n, err := tidemark.DiscardDeadLetters(t.Context(), b.db, tidemark.DeadLetterFilter{}); err != nil || n != 1 {
		t.Fatalf("discarded %d, %v", n, err)
	}
	b.exec(`INSERT INTO note (body) VALUES ('more')`)
	if r := b.sync(); r.Snapshot == nil {
		t.Fatal("no snapshot")
	}
	a.sync()
	c := f.restore("c")
	c.exec(`DROP TRIGGER no_odd`)
	c.sync()
	same(t, a, c)
}

// What is no failure any more is none: the row that was refused gave way to a later edit
// of another device.
func TestALetterGoesWhenAnotherDevicesEditWins(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);`)
	server := f.refusing()
	server.refuse = func(d messages.Document) bool { return d.Fields["body"] == "bad" }
	a := f.device("a")
	a.exec(`INSERT INTO note (id, body) VALUES (1, 'one'), (2, 'two')`)
	a.sync()
	b := f.device("b")
	b.sync()
	b.exec(`UPDATE note SET body = 'bad'`)
	b.sync()
	if got := len(b.failed(tidemark.DeadLetterFilter{})); got != 2 {
		t.Fatalf("%d letters", got)
	}
	a.exec(`UPDATE note SET body = 'later' WHERE id = 1`)
	a.exec(`DELETE FROM note WHERE id = 2`)
	a.exec(`UPDATE note SET updatedOn = updatedOn + 10000, isDirty = 1 WHERE id = 1`)
	a.exec(`UPDATE tidemark_tombstones SET updatedOn = updatedOn + 10000 WHERE isDirty = 1`)
	a.sync()
	b.sync()
	same(t, a, b)
	if got := b.failed(tidemark.DeadLetterFilter{Discarded: true}); len(got) != 0 {
		t.Errorf("letters: %+v", got)
	}
}

// Ten thousand failures are listed and replayed in the memory of a few.
func TestTenThousandFailuresTakeNoMemory(t *testing.T) {
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT);`)
	a := f.device("a")
	const letters, body = 10_000, 2_000
	a.exec(`INSERT INTO note (body) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT printf('%.*c', ?, 'x') FROM n`, letters, body)
	a.exec(`INSERT INTO tidemark_dead_letters (handler, tableName, documentId, class, reason, payload, firstOn, lastOn, updatedOn)
		SELECT 'upload', 'note', clientId, 'rejected', 'no', CAST(json_object('v', 1, 'id', clientId, 'updatedOn', updatedOn, 'fields', json_object('body', body)) AS BLOB), 1, 1, updatedOn FROM note`)
	// Of the other stage: documents that did not fit, and would now.
	a.exec(`INSERT INTO tidemark_dead_letters (handler, tableName, documentId, class, reason, payload, firstOn, lastOn, updatedOn)
		SELECT 'download', 'note', 'other' || id, 'rejected', 'no', CAST(json_object('v', 1, 'id', 'other' || id, 'updatedOn', 1, 'updateTime', 1, 'fields', json_object('body', body)) AS BLOB), 1, 1, 1 FROM note`)
	var base, most uint64
	n := 0
	measure := func() {
		if n++; n%1000 != 1 {
			return
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if n == 1 {
			base, most = m.HeapAlloc, m.HeapAlloc
		}
		most = max(most, m.HeapAlloc)
	}
	for _, err := range tidemark.DeadLetters(t.Context(), a.db, tidemark.DeadLetterFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		measure()
	}
	outcomes := map[string]int{}
	if err := tidemark.ReplayDeadLetters(t.Context(), a.db, tidemark.DeadLetterFilter{}, false, func(r tidemark.Replayed) error {
		outcomes[r.Outcome]++
		measure()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != 4*letters || outcomes["requested"] != letters || outcomes["applied"] != letters {
		t.Errorf("%d seen, %v", n, outcomes)
	}
	t.Logf("%.1f MiB more at most, of %d MiB", float64(most-base)/(1<<20), 2*letters*body>>20)
	if most-base > 8<<20 {
		t.Errorf("the heap grew by %d bytes", most-base)
	}
}
