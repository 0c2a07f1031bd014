package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// heard renders what an observer was told, without times.
func heard(into *[]string) tidemark.Option {
	return tidemark.WithObserver(func(e tidemark.Event) {
		text := ""
		switch e := e.(type) {
		case tidemark.CycleStarted:
			text = "cycle"
		case tidemark.StageStarted:
			text = fmt.Sprintf("start %s%s %d", e.Stage, e.Table, e.Attempt)
		case tidemark.Progress:
			text = fmt.Sprintf("%s: %d of %d %s", e.Stage, e.Done, e.Total, e.Unit)
		case tidemark.StageDone:
			text = fmt.Sprintf("done %s%s", e.Stage, e.Table)
		case tidemark.StageFailed:
			text = fmt.Sprintf("failed %s: %s, %d reads", e.Stage, e.Class, e.Billed.Reads)
		case tidemark.CycleDone:
			text = fmt.Sprintf("cycle done, %d up, in step %v", e.Counts.Tables["note"].Uploaded, e.InStep)
		}
		*into = append(*into, text)
	})
}

func TestAnObserverHearsACycleInOrder(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	remote := f.server.Remote()
	busy := 1
	remote.Fault = func(c memory.Call) memory.Fault {
		if c.Op != memory.OpCommit || busy == 0 {
			return memory.Fault{}
		}
		busy--
		return memory.Fault{Before: messages.ErrUnavailable}
	}
	var events []string
	d := f.with(remote).device("a", heard(&events), tidemark.WithRetries(1, time.Millisecond))
	d.notes(700)
	d.sync()
	next := 0
	for _, want := range []string{
		"cycle", "start check devices 1", "done check devices", "start upload 1", "failed upload: unavailable, 0 reads",
		"start upload 2", "upload: 700 of 700 rows uploaded", "done upload", "start register 1", "done back up", "cycle done, 700 up, in step true",
	} {
		i := slices.Index(events[next:], want)
		if i < 0 {
			t.Fatalf("%q does not come, or not in this order:\n%s", want, strings.Join(events, "\n"))
		}
		next += i + 1
	}
	if next != len(events) {
		t.Errorf("after the end came %v", events[next:])
	}
}

// An observer that hangs for ever, or panics, delays a cycle by the second that Sync
// gives it at the end.
func TestAnObserverThatHangsDelaysNoStage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var release sync.WaitGroup
		release.Add(1)
		f := newFleet(t, oneTable)
		hangs := f.device("a", tidemark.WithObserver(func(tidemark.Event) { release.Wait() }))
		told := 0
		panics := f.device("b", tidemark.WithObserver(func(tidemark.Event) { told++; panic("what is this") }))
		defer func() {
			_ = hangs.db.Close()
			_ = panics.db.Close()
		}()
		hangs.notes(3000)
		began := time.Now()
		if r := hangs.sync(); !r.InStep || time.Since(began) > time.Second {
			t.Errorf("in step %v after %v", r.InStep, time.Since(began))
		}
		if r := panics.sync(); !r.InStep || r.Total().Downloaded != 3000 || told < 5 {
			t.Errorf("in step %v, %d downloaded, %d events", r.InStep, r.Total().Downloaded, told)
		}
		release.Done()
	})
}

// What a failed attempt was billed is in the report, too: the reads before the line
// broke are on the invoice.
func TestReadsOfAFailedAttemptAreCounted(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(2500)
	a.sync()
	remote := f.server.Remote()
	cut := 1
	remote.Fault = func(c memory.Call) memory.Fault {
		if c.Op != memory.OpRead || cut == 0 {
			return memory.Fault{}
		}
		cut--
		return memory.Fault{Break: messages.ErrUnavailable, BreakAfter: 2100}
	}
	b := f.with(remote).device("b", tidemark.WithRetries(1, time.Millisecond))
	r := b.sync()
	if got, bill := r.Billed.Reads, remote.Bill().Reads; got != bill {
		t.Errorf("the report has %d reads, the server billed %d", got, bill)
	}
}

// The lag is the age of the oldest edit that is on its way; what was set aside needs
// somebody, and is counted elsewhere.
func TestGaugesTellTheLag(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	server := f.refusing()
	d := f.device("a")
	look := func() messages.Gauges {
		t.Helper()
		g, err := d.p.Gauges(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	if g := look(); g != (messages.Gauges{}) {
		t.Errorf("a database without rows has %+v", g)
	}
	const hour = 3_600_000
	age := func(table string) {
		t.Helper()
		d.exec(`UPDATE tidemark_state SET applying = 1`) // or the trigger would stamp it anew
		d.exec(`UPDATE ` + table + ` SET updatedOn = updatedOn - 3600000 WHERE isDirty = 1`)
		d.exec(`UPDATE tidemark_state SET applying = 0`)
	}
	d.notes(2)
	age("note")
	if g := look(); g.Dirty != 2 || g.OldestDirtyMs < hour || g.OldestDirtyMs > 2*hour {
		t.Errorf("with two rows of an hour ago: %+v", g)
	}
	d.sync()
	if g := look(); g.Dirty != 0 || g.OldestDirtyMs != 0 || g.SnapshotBytes == 0 || g.SnapshotOn == 0 || g.LastCycleOn == 0 {
		t.Errorf("in step: %+v", g)
	}
	d.exec(`DELETE FROM note WHERE id = 1`)
	age("tidemark_tombstones")
	if g := look(); g.Dirty != 1 || g.OldestDirtyMs < hour {
		t.Errorf("with a delete of an hour ago: %+v", g)
	}
	server.refuse = func(doc messages.Document) bool { return !doc.Deleted }
	d.notes(1)
	age("note")
	d.sync()
	if g := look(); g.Dirty != 1 || g.Dead != 1 || g.OldestDirtyMs != 0 {
		t.Errorf("with a row that was set aside: %+v", g)
	}
}
