package integration

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// with gives a device a handle of its own on the server.
func (f *fleet) with(remote *memory.Remote) *fleet {
	g := *f
	g.remote = func() tidemark.Remote { return remote }
	return &g
}

const oneTable = `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT NOT NULL);`

func (d *device) notes(n int) {
	d.t.Helper()
	d.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO note (title) SELECT 'note ' || i FROM n`, n)
}

// Devices that sync every five seconds read every document once, and a record once
// a cycle for as long as it is younger than 300 s. After that a cycle costs a read.
func TestEveryDocumentIsReadOnceBySyncsEveryFiveSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		writers := []*device{f.device("a"), f.device("c")}
		reader := f.device("b")
		uploaded := map[*device]time.Time{}
		defer func() {
			for _, d := range append(writers, reader) {
				_ = d.db.Close()
			}
		}()
		documents, total := 0, int64(0)
		for n := range 200 {
			fresh := 0
			for i, w := range writers {
				if n < 100 && n%(7+6*i) == 0 {
					w.notes(10 + n)
					fresh += 10 + n
					w.sync()
					uploaded[w] = time.Now()
				}
			}
			documents += fresh
			r := reader.sync()
			records := 0
			for _, at := range uploaded {
				if time.Since(at) <= 300*time.Second+5*time.Second { // the last check was one cycle ago
					records++
				}
			}
			if got, most := r.Billed.Reads, int64(fresh+max(1, records)); got < int64(fresh) || got > most {
				t.Errorf("cycle %d: %d new documents and %d young records cost %d reads, want at most %d", n, fresh, records, got, most)
			}
			if n >= 170 && r.Billed.Reads != 1 {
				t.Errorf("cycle %d: an idle cycle after 300 s cost %d reads", n, r.Billed.Reads)
			}
			if r.Billed.Writes > 0 && fresh == 0 {
				t.Errorf("cycle %d: %d writes without anything to upload", n, r.Billed.Writes)
			}
			if n > 0 && fresh == 0 && r.Store.Puts > 0 {
				t.Errorf("cycle %d: %d puts without anything new", n, r.Store.Puts)
			}
			total += r.Total().Downloaded
			<-time.After(5 * time.Second)
		}
		if total != int64(documents) {
			t.Errorf("%d documents were downloaded as %d", documents, total)
		}
	})
}

// downloadPage is what a download may read again when it is cut off, see stages.
const downloadPage = 2000

// A download that is cut off in the middle of a page goes on there: by the same
// cycle, the next one, or another process.
func TestAnInterruptedDownloadGoesOn(t *testing.T) {
	t.Parallel()
	const rows = 3*downloadPage + downloadPage/2
	gone := errors.New("the line is dead")
	for name, first := range map[string]bool{"the first, of the whole table": true, "a later one, of a device's log": false} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, oneTable)
			a := f.device("a")
			remote := f.server.Remote()
			cut := 0
			remote.Fault = func(c memory.Call) memory.Fault {
				if c.Op != memory.OpRead || cut == 0 {
					return memory.Fault{}
				}
				cut--
				return memory.Fault{Break: errors.Join(messages.ErrUnavailable, gone), BreakAfter: downloadPage + downloadPage/3}
			}
			b := f.with(remote).device("b", tidemark.WithRetries(0, time.Second))
			if !first {
				a.notes(1)
				a.sync()
				b.sync()
			}
			a.notes(rows)
			a.sync()
			before := remote.Bill().Reads
			cut = 2
			for range 2 {
				if _, err := b.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrUnavailable) {
					t.Fatalf("a sync without a line: %v", err)
				}
			}
			again := f.with(remote).on(b.path, b.db) // as after a restart
			again.sync()
			same(t, a, again)
			// Two cuts, each in the middle of a page; and a few checks.
			if got, most := remote.Bill().Reads-before, int64(rows+2*downloadPage+10); got < rows || got > most {
				t.Errorf("%d documents cost %d reads, want at most %d", rows, got, most)
			}
		})
	}
}

// An upload that is cut off between two commits, before one or after it, sends
// nothing twice.
func TestAnInterruptedUploadGoesOn(t *testing.T) {
	t.Parallel()
	const rows = 3000
	commits := int64((rows + messages.MaxCommitWrites - 2) / (messages.MaxCommitWrites - 1))
	gone := errors.Join(messages.ErrUnavailable, errors.New("the line is dead"))
	for name, fault := range map[string]func(stop func()) memory.Fault{
		"cancelled between two commits": func(stop func()) memory.Fault { return memory.Fault{Then: stop} },
		"before a commit arrived":       func(func()) memory.Fault { return memory.Fault{Before: gone} },
		"after it took effect":          func(func()) memory.Fault { return memory.Fault{After: gone} },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, oneTable)
			remote := f.server.Remote()
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			n := 0
			remote.Fault = func(c memory.Call) memory.Fault {
				if c.Op != memory.OpCommit {
					return memory.Fault{}
				}
				if n++; n == 3 {
					return fault(stop)
				}
				return memory.Fault{}
			}
			a := f.with(remote).device("a", tidemark.WithRetries(0, time.Second))
			a.notes(rows)
			if _, err := a.p.Sync(ctx); err == nil {
				t.Fatal("the sync was not cut off")
			}
			again := f.with(remote).on(a.path, a.db)
			again.sync()
			bill := remote.Bill()
			if want := rows + commits; bill.Writes > want+1 || bill.Writes < want {
				t.Errorf("%d rows in %d commits cost %d writes", rows, commits, bill.Writes)
			}
			if bill.Reads > 4 {
				t.Errorf("an upload cost %d reads", bill.Reads)
			}
			b := f.device("b")
			b.sync()
			same(t, again, b)
		})
	}
}
