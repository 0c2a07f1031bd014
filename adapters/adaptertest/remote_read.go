package adaptertest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

func testDevicesSince(t *testing.T, r RemotePort) {
	empty, err := r.Devices(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(empty.Devices) != 0 || empty.Reads != 1 || empty.ReadTime <= 0 {
		t.Errorf("nobody is there, and Devices answers %+v", empty)
	}
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	va := a.commit(create("docs", "x", nil))
	vb := b.commit(create("docs", "y", nil))
	both, err := r.Devices(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(both.Devices) != 2 || both.Reads != 2 {
		t.Fatalf("two devices are there, and Devices answers %+v", both)
	}
	if both.ReadTime < va || both.ReadTime < vb || both.ReadTime < empty.ReadTime {
		t.Errorf("the read time %d is before the commits at %d and %d", both.ReadTime, va, vb)
	}
	last := max(both.Devices[0].UploadedOn, both.Devices[1].UploadedOn)
	for _, since := range []int64{last - 1, last, last + 3_600_000} {
		list, err := r.Devices(t.Context(), since)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, d := range both.Devices {
			if d.UploadedOn > since {
				want = append(want, d.ID)
			}
		}
		var got []string
		for _, d := range list.Devices {
			got = append(got, d.ID)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) || list.Reads != max(1, int64(len(want))) || list.ReadTime < both.ReadTime {
			t.Errorf("since %d (last %d) Devices answers %v, %d reads at %d, want %v", since, last, got, list.Reads, list.ReadTime, want)
		}
	}
	if v := a.commit(); v <= both.ReadTime {
		t.Errorf("a commit got the time %d, and %d was read before it", v, both.ReadTime)
	}
}

// A device that has only read has a record without uploadedOn.
func testAllDevices(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	a.commit(create("docs", "x", nil))
	quiet := b.next()
	quiet.Announce = false
	if _, err := b.try(quiet); err != nil {
		t.Fatal(err)
	}
	for since, want := range map[int64]string{0: "[a]", -1: "[a b]"} {
		list, err := r.Devices(t.Context(), since)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range list.Devices {
			got = append(got, d.ID)
		}
		slices.Sort(got)
		if fmt.Sprint(got) != want || list.Reads != int64(len(got)) || list.ReadTime <= 0 {
			t.Errorf("since %d Devices answers %v, %d reads, want %s", since, got, list.Reads, want)
		}
	}
}

func testDeviceMissing(t *testing.T, r RemotePort) {
	d, err := r.Device(t.Context(), "nobody")
	if err != nil || d.UpdateTime != 0 || d.Seq != 0 {
		t.Errorf("a record that does not exist is %+v, %v", d, err)
	}
}

func testDeviceRoundTrip(t *testing.T, r RemotePort) {
	want := messages.Device{
		ID: "3f1c-device", Seq: messages.MaxSeq, Token: "tok\"en 🙂",
		Tables: map[string]int64{"plain": 1, "with space": 2, "a/b": messages.MaxSeq, `quo"te`: 4, "dot.ted": 5, "__a__": 6, "": 7, "`": 8, ".": 9, "ünï": 10},
		Name:   "Ada's phone", Platform: "linux/arm64", Version: "v1.2.3",
		Seen:  messages.Vector{"other": 12, "dot.ted": 13, "3f1c-device": messages.MaxSeq},
		Fence: messages.Vector{"other": 3},
	}
	done, err := r.Commit(t.Context(), messages.Commit{Device: want, Announce: true})
	if err != nil {
		t.Fatal(err)
	}
	check := func(got messages.Device) {
		t.Helper()
		if got.ID != want.ID || got.Seq != want.Seq || got.Token != want.Token || got.Name != want.Name || got.Platform != want.Platform ||
			got.Version != want.Version || !maps.Equal(got.Tables, want.Tables) || !maps.Equal(got.Seen, want.Seen) || !maps.Equal(got.Fence, want.Fence) {
			t.Errorf("the record came back as\n%+v, want\n%+v", got, want)
		}
		if got.UpdateTime != done.UpdateTime || got.UploadedOn <= 0 {
			t.Errorf("the record has version %d and uploadedOn %d, want version %d", got.UpdateTime, got.UploadedOn, done.UpdateTime)
		}
	}
	got, err := r.Device(t.Context(), want.ID)
	if err != nil {
		t.Fatal(err)
	}
	check(got)
	list, err := r.Devices(t.Context(), 0)
	if err != nil || len(list.Devices) != 1 {
		t.Fatalf("Devices is %+v, %v", list, err)
	}
	check(list.Devices[0])
	// The record is written whole: what is no longer in a map is gone.
	want.Token, want.Name = "next", ""
	want.Tables, want.Seen, want.Fence = map[string]int64{"plain": 2}, messages.Vector{"other": 14}, nil
	done, err = r.Commit(t.Context(), messages.Commit{Device: want, Expect: done.UpdateTime})
	if err != nil {
		t.Fatal(err)
	}
	if got, err = r.Device(t.Context(), want.ID); err != nil {
		t.Fatal(err)
	}
	check(got)
}

func testSnapshot(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	v := a.commit(create("docs", "changed", map[string]any{"n": int64(1)}), create("docs", "kept", map[string]any{"n": int64(1)}),
		create("docs", "purged", map[string]any{"n": int64(1)}))
	then := readTime(t, r)
	v2 := b.commit(update("docs", "changed", v, map[string]any{"n": int64(2), "more": "m"}), create("docs", "new", nil))
	b.commit(update("docs", "changed", v2, map[string]any{"n": int64(3)}), purge("docs", "purged", v))
	now := readTime(t, r)

	whole := messages.Query{Table: "docs", ReadTime: then}
	log := messages.Query{Table: "docs", Device: "a", After: messages.Position{Stamp: messages.Stamp{Device: "a"}}, ReadTime: then}
	for name, docs := range map[string][]messages.Document{"table": read(t, r, whole), "log": read(t, r, log)} {
		if got := ids(docs); fmt.Sprint(got) != "[changed kept purged]" {
			t.Errorf("the %s then was %v", name, got)
		}
		for _, d := range docs {
			wantFields(t, d.Fields, map[string]any{"n": int64(1)})
			if d.UpdateTime != v || d.UpdatedBy != "a" || d.Stamp.Device != "a" {
				t.Errorf("the %s then had %+v", name, d)
			}
		}
	}
	found := lookUp(t, r, "docs", then, "changed", "new", "purged")
	if len(found) != 2 || found["changed"].UpdateTime != v || found["purged"].UpdateTime != v {
		t.Errorf("Documents then were %v", found)
	}
	log.Device, log.After.Stamp.Device = "b", "b"
	if docs := read(t, r, log); len(docs) != 0 {
		t.Errorf("b had written %v then", ids(docs))
	}
	log.ReadTime, whole.ReadTime = now, now
	if got := ids(read(t, r, log)); fmt.Sprint(got) != "[new changed]" {
		t.Errorf("b's log is %v", got)
	}
	if got := ids(read(t, r, whole)); fmt.Sprint(got) != "[changed kept new]" {
		t.Errorf("the table is %v", got)
	}
	for _, at := range []int64{now, 0} {
		if d := lookUp(t, r, "docs", at, "changed")["changed"]; !same(d.Fields["n"], int64(3)) {
			t.Errorf("Documents at %d has %+v", at, d)
		}
	}
}

// written lists a device's log as "seq id".
func written(docs []messages.Document) []string {
	list := make([]string, len(docs))
	for i, d := range docs {
		list[i] = fmt.Sprint(d.Stamp.Seq, " ", d.ID)
	}
	return list
}

func testLog(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	a.commit(create("docs", "z", nil), create("docs", "m", nil), create("docs", "B", nil), create("other", "o", nil))
	b.commit(create("docs", "n", nil))
	a.commit(create("docs", "y", nil), create("docs", "a", nil))
	a.commit(create("other", "p", nil))
	a.record.Seq = 8 // numbers need not be dense
	a.commit(create("docs", "c", nil))
	a.commit(create("docs", "0", nil))
	now := readTime(t, r)
	all := []string{"1 B", "1 m", "1 z", "2 a", "2 y", "9 c", "10 0"}
	for _, tt := range []struct {
		seq  int64
		id   string
		skip int
	}{
		{0, "", 0},
		{1, "", 3},
		{1, "B", 1},
		{1, "a", 1}, // between B and m
		{1, "m", 2},
		{1, "z", 3},
		{1, "zz", 3},
		{2, "", 5},
		{2, "a", 4},
		{3, "", 5},
		{8, "zz", 5},
		{9, "", 6},
		{9, "c", 6},
		{10, "", 7},
		{10, "0", 7},
		{11, "", 7},
	} {
		for _, limit := range []int{0, 1, 2, 100} {
			want := all[tt.skip:]
			if limit > 0 {
				want = want[:min(limit, len(want))]
			}
			got := written(read(t, r, messages.Query{
				Table: "docs", Device: "a", ReadTime: now, Limit: limit,
				After: messages.Position{Stamp: messages.Stamp{Device: "a", Seq: tt.seq}, ID: tt.id},
			}))
			if !slices.Equal(got, want) {
				t.Errorf("after (%d, %q), limit %d: %v, want %v", tt.seq, tt.id, limit, got, want)
			}
		}
	}
}

func testLogPages(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	writes := many("docs", 250)
	slices.Reverse(writes)
	a.commit(writes...)
	a.commit(create("docs", "a-later", nil))
	now := readTime(t, r)
	after := messages.Position{Stamp: messages.Stamp{Device: "a"}}
	var got []string
	for pages := 0; ; pages++ {
		docs := read(t, r, messages.Query{Table: "docs", Device: "a", After: after, ReadTime: now, Limit: 60})
		got = append(got, ids(docs)...)
		if len(docs) < 60 {
			break
		}
		after = messages.Position{Stamp: docs[59].Stamp, ID: docs[59].ID}
		if pages > 10 {
			t.Fatal("the pages do not end")
		}
	}
	var want []string
	for i := range 250 {
		want = append(want, fmt.Sprintf("d%04d", i))
	}
	if want = append(want, "a-later"); !slices.Equal(got, want) {
		t.Errorf("the pages have %d documents, want %d in order of (stamp, id): %v", len(got), len(want), got)
	}
}

func testLogOfPrefix(t *testing.T, r RemotePort) {
	devices := []string{"d1", "d", "d10", "d1x", "d1-", "D1", "d1_", "d0"}
	for _, id := range devices {
		d := newDevice(t, r, id)
		d.commit(create("docs", "of "+id, nil))
		d.commit(create("docs", "of "+id+" too", nil))
	}
	now := readTime(t, r)
	for _, id := range devices {
		for seq, want := range [][]string{{"1 of " + id, "2 of " + id + " too"}, {"2 of " + id + " too"}, {}} {
			got := written(read(t, r, messages.Query{
				Table: "docs", Device: id, ReadTime: now, After: messages.Position{Stamp: messages.Stamp{Device: id, Seq: int64(seq)}},
			}))
			if !slices.Equal(got, want) {
				t.Errorf("the log of %q above %d is %v", id, seq, got)
			}
		}
	}
}

func testLogMoves(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	v := a.commit(create("docs", "x", nil), create("docs", "y", nil), create("docs", "z", nil))
	vx := a.commit(update("docs", "x", v, nil))
	b.commit(update("docs", "y", v, nil))
	a.commit(update("docs", "x", vx, nil))
	now := readTime(t, r)
	for id, want := range map[string]string{"a": "[1 z 3 x]", "b": "[1 y]"} {
		got := written(read(t, r, messages.Query{Table: "docs", Device: id, ReadTime: now, After: messages.Position{Stamp: messages.Stamp{Device: id}}}))
		if fmt.Sprint(got) != want {
			t.Errorf("the log of %s is %v, want %s: a document is in the log of its last version only", id, got, want)
		}
	}
}

func testWholeTable(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	v := a.commit(create("docs", "c", map[string]any{"n": int64(3)}), create("docs", "B", nil), create("docs", "e", nil), create("other", "o", nil))
	dead := update("docs", "c", v, nil)
	dead.Document.Deleted = true
	b.commit(create("docs", "a", nil), create("docs", "d-1", nil), create("docs", "0", nil), dead)
	now := readTime(t, r)
	all := []string{"0", "B", "a", "c", "d-1", "e"}
	for after, skip := range map[string]int{"": 0, "0": 1, "A": 1, "B": 2, "c": 4, "d": 4, "e": 6, "z": 6} {
		for _, limit := range []int{0, 1, 3, 100} {
			want := all[skip:]
			if limit > 0 {
				want = want[:min(limit, len(want))]
			}
			docs := read(t, r, messages.Query{Table: "docs", ReadTime: now, Limit: limit, After: messages.Position{ID: after}})
			if got := ids(docs); !slices.Equal(got, want) {
				t.Errorf("after %q, limit %d: %v, want %v", after, limit, got, want)
			}
			for _, d := range docs {
				if d.Deleted != (d.ID == "c") {
					t.Errorf("document %+v", d)
				}
			}
		}
	}
}

func testReadEmpty(t *testing.T, r RemotePort) {
	now := readTime(t, r) // of a scope that nobody ever wrote
	query := messages.Query{Table: "docs", ReadTime: now}
	if docs := read(t, r, query); len(docs) != 0 {
		t.Errorf("an empty table has %v", docs)
	}
	query.Device, query.After.Stamp.Device = "a", "a"
	if docs := read(t, r, query); len(docs) != 0 {
		t.Errorf("an empty log has %v", docs)
	}
	if found := lookUp(t, r, "docs", now, "x", "y"); len(found) != 0 {
		t.Errorf("an empty table has %v", found)
	}
	if found := lookUp(t, r, "docs", 0); len(found) != 0 {
		t.Errorf("nothing was looked up and %v found", found)
	}
}

func testYieldFails(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	a.commit(many("docs", 40)...)
	now := readTime(t, r)
	stop := errors.New("stop here")
	for _, device := range []string{"", "a"} {
		seen := 0
		query := messages.Query{Table: "docs", ReadTime: now, Device: device, After: messages.Position{Stamp: messages.Stamp{Device: device}}}
		reads, err := r.Read(t.Context(), query, func(messages.Document) error {
			if seen++; seen == 7 {
				return stop
			}
			return nil
		})
		if err != stop { //nolint:errorlint // it must come back as it is, not wrapped
			t.Errorf("yield's error came back as %v", err)
		}
		if seen != 7 || reads < 7 || reads > 40 {
			t.Errorf("yield was called %d times and %d reads were billed", seen, reads)
		}
	}
}

func testYieldUsesRemote(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	v := a.commit(many("docs", 20)...)
	now := readTime(t, r)
	seen := 0
	_, err := r.Read(t.Context(), messages.Query{Table: "docs", ReadTime: now}, func(d messages.Document) error {
		if seen++; d.UpdateTime != v {
			t.Errorf("the reader sees %q as it became while it was reading", d.ID)
		}
		if seen == 1 {
			b.commit(update("docs", "d0019", v, nil), purge("docs", "d0018", v), create("docs", "d0017x", nil))
			one(t, r, "docs", "d0017x")
		}
		return nil
	})
	if err != nil || seen != 20 {
		t.Errorf("%d of 20 documents were read, %v", seen, err)
	}
}

func testDocuments(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	v := a.commit(many("docs", 90)...)
	then := readTime(t, r)
	a.commit(update("docs", "d0000", v, map[string]any{"n": int64(1000)}), create("docs", "later", nil))
	var list []string
	for i := range 100 { // ten of them do not exist
		list = append(list, fmt.Sprintf("d%04d", i))
	}
	list = append(list, "later")
	for at, want := range map[int64]int{0: 91, then: 90} {
		found := lookUp(t, r, "docs", at, list...)
		if len(found) != want {
			t.Errorf("at %d %d documents were found, want %d", at, len(found), want)
		}
		first := int64(0)
		if at == 0 {
			first = 1000
		}
		if !same(found["d0000"].Fields["n"], first) || !same(found["d0089"].Fields["n"], int64(89)) {
			t.Errorf("at %d: %+v, %+v", at, found["d0000"], found["d0089"])
		}
	}
}

func testReadTooOld(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	a.commit(create("docs", "x", nil))
	old := readTime(t, r) - 2*3600*1_000_000
	_, err := r.Read(t.Context(), messages.Query{Table: "docs", ReadTime: old}, func(messages.Document) error { return nil })
	wantClass(t, err, messages.ErrReadTimeTooOld)
	_, err = r.Documents(t.Context(), "docs", []string{"x"}, old)
	wantClass(t, err, messages.ErrReadTimeTooOld)
}

func testForeign(t *testing.T, r RemotePort, f Features) {
	a := newDevice(t, r, "a")
	a.commit(create("docs", "a", map[string]any{"n": int64(1)}), create("docs", "z", nil))
	f.Foreign(t, r, "docs", "m", map[string]any{"n": int64(7), "text": "by hand"})
	now := readTime(t, r)
	docs := read(t, r, messages.Query{Table: "docs", ReadTime: now})
	if fmt.Sprint(ids(docs)) != "[a m z]" {
		t.Fatalf("the table has %v", ids(docs))
	}
	if d := docs[1]; d.Stamp != (messages.Stamp{}) || d.UpdatedBy != "" || d.Deleted || d.UpdateTime <= 0 {
		t.Errorf("the foreign document is %+v", d)
	}
	wantFields(t, docs[1].Fields, map[string]any{"n": int64(7), "text": "by hand"})
	log := read(t, r, messages.Query{Table: "docs", Device: "a", After: messages.Position{Stamp: messages.Stamp{Device: "a"}}, ReadTime: now})
	if fmt.Sprint(ids(log)) != "[a z]" {
		t.Errorf("the log of a has %v", ids(log))
	}
	// A device can take it over.
	a.commit(update("docs", "m", docs[1].UpdateTime, map[string]any{"n": int64(8)}))
	wantFields(t, one(t, r, "docs", "m").Fields, map[string]any{"n": int64(8), "text": "by hand"})
}

// insist commits as the protocol does: after an unavailable server the record's
// token says whether it landed. It reports false when it conflicted.
func (d *device) insist(c messages.Commit) (int64, bool) {
	for range 20 {
		done, err := d.try(c)
		switch {
		case err == nil:
			return done.UpdateTime, true
		case errors.Is(err, messages.ErrConflict), errors.Is(err, messages.ErrUnavailable):
			// A commit that was unavailable first may be what the second one ran into.
			record, rerr := d.r.Device(d.t.Context(), c.Device.ID)
			if rerr != nil {
				d.t.Errorf("Device: %v", rerr)
				return 0, false
			}
			if record.Token == c.Device.Token {
				d.record, d.version = c.Device, record.UpdateTime
				return record.UpdateTime, true
			}
			if errors.Is(err, messages.ErrConflict) {
				return 0, false
			}
		default:
			d.t.Errorf("commit %d of %s: %v", c.Device.Seq, c.Device.ID, err)
			return 0, false
		}
	}
	d.t.Errorf("commit %d of %s is unavailable every time", c.Device.Seq, c.Device.ID)
	return 0, false
}

// testConcurrentLogs lets two devices write while a third reads: at every read
// time each log must be complete up to what its record says.
func testConcurrentLogs(t *testing.T, r RemotePort) {
	const commits = 10
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		times = map[int64]string{}
	)
	for _, id := range []string{"a", "b"} {
		wg.Go(func() {
			d := newDevice(t, r, id)
			last := int64(0)
			for i := range commits {
				v, ok := d.insist(d.next(create("docs", fmt.Sprint(id, i, "-1"), nil), create("docs", fmt.Sprint(id, i, "-2"), nil)))
				if !ok {
					t.Errorf("a commit of %s to its own documents conflicts", id)
					return
				}
				mu.Lock()
				if who, taken := times[v]; taken || v <= last {
					t.Errorf("commit %d of %s got the time %d, after %d; taken by %q", i, id, v, last, who)
				}
				times[v] = id
				mu.Unlock()
				last = v
			}
		})
	}
	check := func() {
		list, err := r.Devices(t.Context(), 0)
		if err != nil {
			t.Errorf("Devices: %v", err)
			return
		}
		for _, d := range list.Devices {
			docs := 0
			_, err := r.Read(t.Context(), messages.Query{
				Table: "docs", Device: d.ID, ReadTime: list.ReadTime, After: messages.Position{Stamp: messages.Stamp{Device: d.ID}},
			}, func(doc messages.Document) error {
				if !strings.HasPrefix(doc.ID, d.ID) {
					t.Errorf("at %d the log of %s shows %q", list.ReadTime, d.ID, doc.ID)
				}
				// A busy Firestore emulator has shown a commit at a read time that had been
				// given before it ended. That is read twice, and not missed.
				if doc.Stamp.Seq <= d.Seq {
					docs++
				}
				return nil
			})
			if err != nil {
				t.Errorf("Read: %v", err)
			}
			if int64(docs) != 2*d.Seq {
				t.Errorf("at %d the log of %s has %d documents, its record says %d", list.ReadTime, d.ID, docs, 2*d.Seq)
			}
		}
	}
	for range commits {
		check()
	}
	wg.Wait()
	check()
	if len(times) != 2*commits {
		t.Errorf("%d of %d commits succeeded", len(times), 2*commits)
	}
}

// testConcurrentCounter lets two devices count in one document.
func testConcurrentCounter(t *testing.T, r RemotePort) {
	const each = 5
	newDevice(t, r, "setup").commit(create("docs", "counter", map[string]any{"n": int64(0)}))
	var wg sync.WaitGroup
	for _, id := range []string{"a", "b"} {
		wg.Go(func() {
			d := newDevice(t, r, id)
			for done := 0; done < each; {
				page, err := r.Documents(t.Context(), "docs", []string{"counter"}, 0)
				if err != nil || len(page.Documents) != 1 {
					t.Errorf("Documents: %+v, %v", page, err)
					return
				}
				was := page.Documents[0]
				n, _ := was.Fields["n"].(int64)
				if _, ok := d.insist(d.next(update("docs", "counter", was.UpdateTime, map[string]any{"n": n + 1}))); ok {
					done++
				}
				if t.Failed() {
					return
				}
			}
		})
	}
	wg.Wait()
	wantFields(t, one(t, r, "docs", "counter").Fields, map[string]any{"n": int64(2 * each)})
}
