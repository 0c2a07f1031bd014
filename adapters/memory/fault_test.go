package memory_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

var errNet = fmt.Errorf("the line is down: %w", messages.ErrUnavailable)

// commit is device a's nth commit, of one document per id.
func commit(n, expect int64, ids ...string) messages.Commit {
	c := messages.Commit{Device: messages.Device{ID: "a", Seq: n, Token: strconv.FormatInt(n, 10)}, Expect: expect, Announce: true}
	for _, id := range ids {
		c.Writes = append(c.Writes, messages.Write{Document: messages.Document{
			Table: "docs", ID: id, UpdatedBy: "a", Stamp: messages.Stamp{Device: "a", Seq: n}, Fields: map[string]any{"n": n},
		}})
	}
	return c
}

// pass lets time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// always plans one fault for every call of one kind.
func always(op string, f memory.Fault) func(memory.Call) memory.Fault {
	return func(c memory.Call) memory.Fault {
		if c.Op == op {
			return f
		}
		return memory.Fault{}
	}
}

func TestCommitFaults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault memory.Fault
		class error
		docs  int
	}{
		{"none", memory.Fault{}, nil, 1},
		{"before", memory.Fault{Before: errNet}, messages.ErrUnavailable, 0},
		{"lost acknowledgement", memory.Fault{After: errNet}, messages.ErrUnavailable, 1},
		{"later", memory.Fault{Later: errNet}, messages.ErrUnavailable, 0},
		{"sent twice", memory.Fault{Repeat: true}, messages.ErrConflict, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := memory.NewRemote()
			r.Fault = always(memory.OpCommit, tt.fault)
			_, err := r.Commit(t.Context(), commit(1, 0, "x"))
			if !errors.Is(err, tt.class) {
				t.Errorf("the error is %v", err)
			}
			if docs := r.Server().Dump(); len(docs) != tt.docs {
				t.Errorf("there are %d documents, want %d", len(docs), tt.docs)
			}
		})
	}
}

func TestDelayedCommitMeetsItsPreconditionsOnArrival(t *testing.T) {
	t.Parallel()
	srv := memory.NewServer()
	r, late := srv.Remote(), srv.Remote()
	late.Fault = always(memory.OpCommit, memory.Fault{Later: errNet})
	first := commit(1, 0, "x")
	if _, err := late.Commit(t.Context(), first); !errors.Is(err, messages.ErrUnavailable) {
		t.Fatal(err)
	}
	first.Writes[0].Document.Fields["n"] = "changed after sending"
	if srv.Delayed() != 1 || len(srv.Dump()) != 0 {
		t.Fatal("the commit is not on its way")
	}
	if got := srv.Deliver(); len(got) != 1 || got[0] != nil || srv.Delayed() != 0 {
		t.Fatalf("Deliver: %v", got)
	}
	if docs := srv.Dump(); len(docs) != 1 || docs[0].Fields["n"] != int64(1) {
		t.Fatalf("there is %+v", docs)
	}
	record := srv.DumpDevices()[0]
	if _, err := late.Commit(t.Context(), commit(2, record.UpdateTime, "y")); !errors.Is(err, messages.ErrUnavailable) {
		t.Fatal(err)
	}
	if _, err := r.Commit(t.Context(), commit(2, record.UpdateTime, "z")); err != nil {
		t.Fatal(err)
	}
	if got := srv.Deliver(); len(got) != 1 || !errors.Is(got[0], messages.ErrConflict) {
		t.Fatalf("Deliver: %v", got)
	}
}

func TestTimesInABubble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := memory.NewServer()
		r := srv.Remote()
		delays := map[int64]memory.Fault{2: {Delay: 4 * time.Minute}, 3: {Backdate: time.Minute}}
		r.Fault = func(c memory.Call) memory.Fault { return delays[c.N] }
		var version, last int64
		for i := range int64(3) {
			done, err := r.Commit(t.Context(), commit(i+1, version, strconv.FormatInt(i, 10)))
			if err != nil {
				t.Fatal(err)
			}
			if done.UpdateTime <= last {
				t.Errorf("update times do not increase though the clock stands still")
			}
			version, last = done.UpdateTime, done.UpdateTime
		}
		docs := srv.Dump()
		for i, want := range []time.Duration{0, 4 * time.Minute, time.Minute} {
			if got := docs[i].UpdateTime/1000 - docs[i].UploadedOn; got != want.Milliseconds() {
				t.Errorf("uploadedOn of commit %d is %d ms older than the commit, want %v", i+1, got, want)
			}
		}
		list, err := r.Devices(t.Context(), 0)
		if err != nil || list.ReadTime < last {
			t.Fatalf("Devices: %+v, %v", list, err)
		}
		query := messages.Query{Table: "docs", ReadTime: list.ReadTime}
		none := func(messages.Document) error { return nil }
		pass(memory.History)
		if _, err := r.Commit(t.Context(), commit(4, version, "late")); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(t.Context(), query, none); n != 3 || err != nil {
			t.Errorf("an hour later Read gives %d, %v", n, err)
		}
		pass(time.Second)
		if _, err := r.Read(t.Context(), query, none); !errors.Is(err, messages.ErrReadTimeTooOld) {
			t.Errorf("more than an hour later Read gives %v", err)
		}
		query.ReadTime = time.Now().Add(time.Second).UnixMicro()
		if _, err := r.Read(t.Context(), query, none); !errors.Is(err, messages.ErrRejected) {
			t.Errorf("Read in the future gives %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.Fault = always(memory.OpCommit, memory.Fault{Delay: time.Hour})
		if _, err := r.Commit(ctx, commit(5, 0, "never")); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, messages.ErrUnavailable) {
			t.Errorf("a commit that outlives its deadline gives %v", err)
		}
	})
}

func TestReadFaults(t *testing.T) {
	t.Parallel()
	srv := memory.NewServer()
	r := srv.Remote()
	var ids []string
	for i := range 10 {
		ids = append(ids, fmt.Sprint("d", i))
	}
	if _, err := r.Commit(t.Context(), commit(1, 0, ids...)); err != nil {
		t.Fatal(err)
	}
	list, err := r.Devices(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	count := func(messages.Document) error { seen++; return nil }
	query := messages.Query{Table: "docs", ReadTime: list.ReadTime}
	for _, tt := range []struct {
		fault memory.Fault
		seen  int
		reads int64
		fails bool
	}{
		{memory.Fault{Break: errNet, BreakAfter: 4}, 4, 4, true},
		{memory.Fault{Break: errNet, BreakAfter: 40}, 10, 10, true},
		{memory.Fault{After: errNet}, 10, 10, true},
		{memory.Fault{Before: errNet}, 0, 0, true},
		{memory.Fault{Repeat: true}, 20, 10, false},
	} {
		r.Fault, seen = always(memory.OpRead, tt.fault), 0
		reads, err := r.Read(t.Context(), query, count)
		if seen != tt.seen || reads != tt.reads || errors.Is(err, messages.ErrUnavailable) != tt.fails {
			t.Errorf("%+v: %d documents, %d reads, %v", tt.fault, seen, reads, err)
		}
	}
	other := srv.Remote()
	if _, err := other.Commit(t.Context(), commit(2, srv.DumpDevices()[0].UpdateTime, "new")); err != nil {
		t.Fatal(err)
	}
	r.Fault = always(memory.OpDevices, memory.Fault{Repeat: true})
	if again, err := r.Devices(t.Context(), 0); err != nil || again.ReadTime != list.ReadTime || again.Devices[0].Seq != 1 {
		t.Errorf("the repeated answer is %+v, %v", again, err)
	}
}

func TestBill(t *testing.T) {
	t.Parallel()
	srv := memory.NewServer()
	a, b := srv.Remote(), srv.Remote()
	if _, err := a.Commit(t.Context(), commit(1, 0, "x", "y")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Commit(t.Context(), commit(1, 0, "x", "y")); err == nil {
		t.Fatal("a second create succeeded")
	}
	if _, err := b.Devices(t.Context(), 1<<50); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Documents(t.Context(), "docs", []string{"x", "nothing"}, 0); err != nil {
		t.Fatal(err)
	}
	if got, want := a.Bill(), (memory.Bill{Writes: 3, Calls: 2}); got != want {
		t.Errorf("a was billed %+v, want %+v", got, want)
	}
	if got, want := b.Bill(), (memory.Bill{Reads: 3, Calls: 2}); got != want {
		t.Errorf("b was billed %+v, want %+v", got, want)
	}
	if got, want := srv.Bill(), (memory.Bill{Reads: 3, Writes: 3, Calls: 4}); got != want {
		t.Errorf("all were billed %+v, want %+v", got, want)
	}
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	srv := memory.NewServer()
	r := srv.Remote()
	done, err := r.Commit(t.Context(), commit(1, 0, "x", "y"))
	if err != nil {
		t.Fatal(err)
	}
	v := srv.Edit("docs", "x", map[string]any{"by": "hand"})
	if srv.Edit("docs", "nothing", nil) != 0 || !srv.Remove("docs", "y") || srv.Remove("docs", "y") {
		t.Error("Edit or Remove answers wrong")
	}
	if v <= done.UpdateTime {
		t.Errorf("the edit has version %d, the commit had %d", v, done.UpdateTime)
	}
	docs := srv.Dump()
	if len(docs) != 1 || docs[0].Stamp.Seq != 1 || docs[0].Fields["n"] != int64(1) || docs[0].Fields["by"] != "hand" || docs[0].UpdateTime != v {
		t.Errorf("there is %+v", docs)
	}
}

// TestHistoryIsForgotten writes the same documents for days: neither the versions
// nor the logs may pile up, and what is there must stay right.
func TestHistoryIsForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		srv := memory.NewServer()
		r := srv.Remote()
		rng := rand.New(rand.NewPCG(1, 2))
		var record int64
		versions, seqs := map[string]int64{}, map[string]int64{}
		for n := int64(1); n <= 3000; n++ {
			c := commit(n, record, fmt.Sprintf("d%02d", rng.IntN(50)))
			w := &c.Writes[0]
			w.Expect = versions[w.Document.ID]
			w.Purge = w.Expect != 0 && rng.IntN(4) == 0
			done, err := r.Commit(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			record = done.UpdateTime
			if delete(seqs, w.Document.ID); w.Purge {
				delete(versions, w.Document.ID)
			} else {
				versions[w.Document.ID], seqs[w.Document.ID] = record, n
			}
			pass(time.Minute)
		}
		last, seen := int64(0), 0
		_, err := r.Read(t.Context(), messages.Query{Table: "docs", Device: "a"}, func(d messages.Document) error {
			if seen++; d.Stamp.Seq <= last || seqs[d.ID] != d.Stamp.Seq {
				t.Errorf("%q has number %d after %d, want %d", d.ID, d.Stamp.Seq, last, seqs[d.ID])
			}
			last = d.Stamp.Seq
			return nil
		})
		if err != nil || seen != len(seqs) || len(srv.Dump()) != len(seqs) {
			t.Errorf("the log has %d documents, want %d: %v", seen, len(seqs), err)
		}
		whole := 0
		if _, err := r.Read(t.Context(), messages.Query{Table: "docs"}, func(messages.Document) error { whole++; return nil }); err != nil || whole != len(seqs) {
			t.Errorf("the table has %d documents, want %d: %v", whole, len(seqs), err)
		}
		if n := memory.Kept(srv); n > 500 { // of 3,000 written
			t.Errorf("%d versions and log entries are kept", n)
		}
	})
}

func TestStoreFaults(t *testing.T) {
	t.Parallel()
	b := memory.NewBucket()
	s := b.Store()
	fault := memory.StoreFault{}
	s.Fault = func(memory.StoreCall) memory.StoreFault { return fault }
	try := func(f memory.StoreFault, body string) error {
		fault = f
		_, err := s.Put(t.Context(), "x", strings.NewReader(body), messages.Condition{})
		return err
	}
	content := func() string {
		body, _, err := b.Store().Get(t.Context(), "x", 0)
		if err != nil {
			return err.Error()
		}
		data, _ := io.ReadAll(body)
		return string(data)
	}
	if err := try(memory.StoreFault{}, "old"); err != nil {
		t.Fatal(err)
	}
	if err := try(memory.StoreFault{Before: errNet}, "new"); !errors.Is(err, errNet) || content() != "old" {
		t.Errorf("before: %v, %q", err, content())
	}
	if err := try(memory.StoreFault{Break: errNet, BreakAfter: 2}, "new"); !errors.Is(err, errNet) || content() != "old" {
		t.Errorf("in the middle: %v, %q", err, content())
	}
	if err := try(memory.StoreFault{After: errNet}, "new"); !errors.Is(err, errNet) || content() != "new" {
		t.Errorf("after: %v, %q", err, content())
	}
	read := func(f memory.StoreFault) (string, error) {
		fault = f
		body, _, err := s.Get(t.Context(), "x", 0)
		if err != nil {
			return "", err
		}
		var buf bytes.Buffer
		_, err = buf.ReadFrom(body)
		return buf.String(), err
	}
	if got, err := read(memory.StoreFault{Break: errNet, BreakAfter: 2}); got != "ne" || !errors.Is(err, errNet) {
		t.Errorf("a body that breaks off is %q, %v", got, err)
	}
	if got, err := read(memory.StoreFault{Flip: true, BreakAfter: 1}); got == "new" || len(got) != 3 || err != nil {
		t.Errorf("a flipped body is %q, %v", got, err)
	}
	if content() != "new" {
		t.Error("flipping changed the object")
	}
}

func BenchmarkCommit500(b *testing.B) {
	r := memory.NewRemote()
	var record int64
	n := int64(0)
	for b.Loop() {
		n++
		var ids []string
		for i := range 500 {
			ids = append(ids, fmt.Sprintf("%08x", uint32(n*500+int64(i))*2654435761))
		}
		done, err := r.Commit(b.Context(), commit(n, record, ids...))
		if err != nil {
			b.Fatal(err)
		}
		record = done.UpdateTime
	}
}
