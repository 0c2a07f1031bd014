package integration

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
)

// ran is what Run did within a time.
type ran struct {
	cycles  int
	reads   int64
	longest time.Duration // between two cycles
}

// runFor lets a device run, by a fake clock, and calls at for every cycle.
func (d *device) runFor(span time.Duration, at func(n int)) ran {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), span)
	defer cancel()
	var out ran
	last := time.Now()
	if err := d.p.Run(ctx, func(r tidemark.Report, err error) {
		if err != nil {
			d.t.Errorf("cycle %d: %v", out.cycles, err)
		}
		out.longest = max(out.longest, time.Since(last))
		last = time.Now()
		out.cycles++
		out.reads += r.Billed.Reads
		at(out.cycles)
	}); err != nil {
		d.t.Fatal(err)
	}
	return out
}

func TestABudgetIsSpreadOverTheDay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const budget = 200 // a day at 30 s would be 2,880
		d := newFleet(t, oneTable).device("a", tidemark.WithBudget(budget))
		defer d.db.Close()
		got := d.runFor(24*time.Hour-time.Minute, func(int) {})
		if got.reads > budget || got.reads < budget*8/10 {
			t.Errorf("a budget of %d reads: %d cycles were billed %d", budget, got.cycles, got.reads)
		}
		b, err := tidemark.ReadBudget(t.Context(), d.db, budget, 30*time.Second)
		if err != nil || b.Used != got.reads {
			t.Errorf("the budget stands at %+v (%v), Run was billed %d", b, err, got.reads)
		}
		<-time.After(2 * time.Minute)
		if b, err = tidemark.ReadBudget(t.Context(), d.db, budget, 30*time.Second); err != nil || b.Used != 0 {
			t.Errorf("after midnight it stands at %+v (%v)", b, err)
		}
	})
}

// A budget that a download used up does not keep edits here: they go up within the
// hour.
func TestABudgetThatIsUsedUpKeepsNoEditBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, oneTable)
		other := f.device("other")
		other.notes(500)
		other.sync()
		d := f.device("a", tidemark.WithBudget(100))
		defer func() {
			_ = d.db.Close()
			_ = other.db.Close()
		}()
		var left []string
		got := d.runFor(8*time.Hour, func(n int) {
			left = append(left, d.value(`SELECT count(*) FROM note WHERE isDirty = 1`))
			d.exec(`UPDATE note SET title = ? WHERE id = 1`, n)
		})
		if got.longest > time.Hour+7*time.Minute || got.longest < 30*time.Minute || got.cycles < 7 {
			t.Errorf("%d cycles, at most %v apart", got.cycles, got.longest)
		}
		for i, n := range left {
			if n != "0" {
				t.Errorf("after cycle %d %s rows are dirty", i, n)
			}
		}
		if b, err := tidemark.ReadBudget(t.Context(), d.db, 100, 30*time.Second); err != nil || !b.Slowed || b.Used < 500 {
			t.Errorf("the budget stands at %+v (%v)", b, err)
		}
	})
}

// What a day cost is known after the ledger has forgotten its steps, and is what the
// reports said and the server billed.
func TestWhatADayCostSurvivesTheLedger(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	remote := f.server.Remote()
	d := f.with(remote).device("a")
	var want tidemark.DayCost
	for range 5 {
		d.notes(10)
		r := d.sync()
		want.Cycles++
		want.Billed.Reads += r.Billed.Reads
		want.Billed.Writes += r.Billed.Writes
		want.Store.Puts += r.Store.Puts
		want.Store.Gets += r.Store.Gets
		want.Store.BytesUp += r.Store.BytesUp
		want.Store.BytesDown += r.Store.BytesDown
	}
	d.exec(`DELETE FROM tidemark_ledger`)
	var got tidemark.DayCost
	days, err := tidemark.ReadCosts(t.Context(), d.db, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range days { // two, around midnight
		got.Cycles += x.Cycles
		got.Billed.Reads += x.Billed.Reads
		got.Billed.Writes += x.Billed.Writes
		got.Store.Puts += x.Store.Puts
		got.Store.Gets += x.Store.Gets
		got.Store.BytesUp += x.Store.BytesUp
		got.Store.BytesDown += x.Store.BytesDown
	}
	if got != want {
		t.Errorf("the days have %+v, the reports %+v", got, want)
	}
	if bill := remote.Bill(); bill.Reads != got.Billed.Reads || bill.Writes != got.Billed.Writes {
		t.Errorf("the server billed %+v, the days have %+v", bill, got.Billed)
	}
	// A restored copy has cost nothing yet.
	if n := f.restore("b").value(`SELECT count(*) FROM tidemark_cost`); n != "0" {
		t.Errorf("a restored copy has %s days", n)
	}
}
