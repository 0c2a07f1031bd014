package adaptertest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

func testCommitIsOneVersion(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	done, err := a.try(a.next(
		create("parents", "p1", map[string]any{"name": "one"}),
		create("parents", "p2", map[string]any{"name": "two"}),
		create("children", "c1", map[string]any{"parent": "p1"}),
	))
	if err != nil {
		t.Fatal(err)
	}
	if done.Writes != 4 || done.Deletes != 0 {
		t.Errorf("3 documents and the record were billed %d writes and %d deletes", done.Writes, done.Deletes)
	}
	record, err := r.Device(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if record.UpdateTime != done.UpdateTime || record.Seq != 1 {
		t.Errorf("the record has version %d and seq %d, want %d and 1", record.UpdateTime, record.Seq, done.UpdateTime)
	}
	for _, w := range [][2]string{{"parents", "p1"}, {"parents", "p2"}, {"children", "c1"}} {
		d := one(t, r, w[0], w[1])
		if d.UpdateTime != done.UpdateTime {
			t.Errorf("%v has version %d, want the commit's %d", w, d.UpdateTime, done.UpdateTime)
		}
		if d.Table != w[0] || d.ID != w[1] || d.CreatedOn != 1000 || d.UpdatedOn != 2000 || d.UpdatedBy != "a" ||
			d.Deleted || d.Survivor != "" || d.Stamp != (messages.Stamp{Device: "a", Seq: 1}) {
			t.Errorf("%v came back as %+v", w, d)
		}
	}
	second := a.commit(update("parents", "p1", done.UpdateTime, map[string]any{"name": "uno"}))
	if second <= done.UpdateTime {
		t.Errorf("the second commit's time %d is not after the first one's %d", second, done.UpdateTime)
	}
	if d := one(t, r, "parents", "p2"); d.UpdateTime != done.UpdateTime {
		t.Errorf("a document that the second commit did not write has version %d", d.UpdateTime)
	}
	if at := readTime(t, r); at < second {
		t.Errorf("the read time %d is before the commit at %d", at, second)
	}
	// A commit need not carry documents.
	third := a.commit()
	if record, err = r.Device(t.Context(), "a"); err != nil || record.UpdateTime != third || record.Seq != 3 {
		t.Errorf("after a commit of the record alone it is %+v, %v", record, err)
	}
}

// atomicityCase breaks one precondition of a commit.
type atomicityCase struct {
	name  string
	spoil func(a *device, c *messages.Commit)
}

var atomicityCases = []atomicityCase{
	{"RecordExists", func(a *device, c *messages.Commit) { a.commit(); c.Expect = 0 }},
	{"RecordMissing", func(_ *device, c *messages.Commit) { c.Device.ID, c.Expect = "nobody", 1_600_000_000_000_000 }},
	{"RecordMoved", func(a *device, c *messages.Commit) { c.Expect = a.commit(); a.commit() }},
	{"DocumentExists", func(a *device, c *messages.Commit) {
		a.commit(create("other", "x", nil))
		c.Expect = a.version
		c.Writes[150] = create("other", "x", nil)
	}},
	{"DocumentMoved", func(a *device, c *messages.Commit) {
		v := a.commit(create("other", "x", nil))
		a.commit(update("other", "x", v, nil))
		c.Expect = a.version
		c.Writes[150] = update("other", "x", v, map[string]any{"n": int64(1)})
	}},
	{"DocumentGone", func(a *device, c *messages.Commit) {
		v := a.commit(create("other", "x", nil))
		a.commit(purge("other", "x", v))
		c.Expect = a.version
		c.Writes[150] = update("other", "x", v, map[string]any{"n": int64(1)})
	}},
	{"DocumentNeverWas", func(a *device, c *messages.Commit) {
		c.Expect = a.commit()
		c.Writes[150] = update("other", "x", c.Expect, map[string]any{"n": int64(1)})
	}},
	{"PurgeMoved", func(a *device, c *messages.Commit) {
		v := a.commit(create("other", "x", nil))
		a.commit(update("other", "x", v, nil))
		c.Expect = a.version
		c.Writes[150] = purge("other", "x", v)
	}},
	{"PurgeGone", func(a *device, c *messages.Commit) {
		v := a.commit(create("other", "x", nil))
		a.commit(purge("other", "x", v))
		c.Expect = a.version
		c.Writes[150] = purge("other", "x", v)
	}},
}

func testAtomicity(t *testing.T, r RemotePort, tt atomicityCase) {
	a := newDevice(t, r, "a")
	c := a.next(many("docs", 300)...)
	tt.spoil(a, &c)
	before, err := r.Device(t.Context(), c.Device.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Commit(t.Context(), c)
	wantClass(t, err, messages.ErrConflict)
	var list []string
	for i := range 300 {
		list = append(list, fmt.Sprintf("d%04d", i))
	}
	wantUntouched(t, r, before, "docs", list...)
}

func testUpdateMask(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	v := a.commit(create("docs", "x", map[string]any{"kept": "k", "changed": int64(1), "nulled": "n", "was null": nil}))
	v2 := a.commit(update("docs", "x", v, map[string]any{"changed": int64(2), "nulled": nil, "new": 1.5}))
	d := one(t, r, "docs", "x")
	wantFields(t, d.Fields, map[string]any{"kept": "k", "changed": int64(2), "nulled": nil, "was null": nil, "new": 1.5})
	if d.CreatedOn != 1000 || d.UpdatedOn != 3000 || d.UpdateTime != v2 || d.Stamp.Seq != 2 {
		t.Errorf("the document is %+v", d)
	}
	// An update that names no field still moves the version and the stamps.
	b := newDevice(t, r, "b")
	v3 := b.commit(update("docs", "x", v2, nil))
	d = one(t, r, "docs", "x")
	wantFields(t, d.Fields, map[string]any{"kept": "k", "changed": int64(2), "nulled": nil, "was null": nil, "new": 1.5})
	if d.UpdateTime != v3 || d.UpdatedBy != "b" || d.Stamp != (messages.Stamp{Device: "b", Seq: 1}) {
		t.Errorf("after b's update the document is %+v", d)
	}
}

func testTombstone(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	fields := map[string]any{"name": "x", "n": int64(7)}
	v := a.commit(create("docs", "x", fields), create("docs", "y", fields))
	dead := update("docs", "x", v, nil)
	dead.Document.Deleted = true
	v2 := a.commit(dead)
	d := one(t, r, "docs", "x")
	if !d.Deleted || d.UpdatedOn != 3000 || d.UpdateTime != v2 {
		t.Errorf("the tombstone is %+v", d)
	}
	wantFields(t, d.Fields, fields)
	log := read(t, r, messages.Query{Table: "docs", Device: "a", After: messages.Position{Stamp: messages.Stamp{Device: "a", Seq: 1}}, ReadTime: readTime(t, r)})
	if len(log) != 1 || !log[0].Deleted {
		t.Errorf("the log does not show the tombstone: %+v", log)
	}
	alive := update("docs", "x", v2, map[string]any{"n": int64(8)})
	alive.Document.UpdatedOn = 4000
	a.commit(alive)
	d = one(t, r, "docs", "x")
	if d.Deleted || d.UpdatedOn != 4000 {
		t.Errorf("the revived document is %+v", d)
	}
	wantFields(t, d.Fields, map[string]any{"name": "x", "n": int64(8)})
	// A tombstone may come first: the row was deleted before its create arrived.
	first := create("docs", "z", nil)
	first.Document.Deleted = true
	a.commit(first)
	if d = one(t, r, "docs", "z"); !d.Deleted || len(d.Fields) != 0 {
		t.Errorf("a tombstone that was there first is %+v", d)
	}
}

func testSurvivor(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	v := a.commit(create("tags", "loser", map[string]any{"name": "home"}), create("tags", "winner", map[string]any{"name": "home"}))
	dead := update("tags", "loser", v, nil)
	dead.Document.Deleted, dead.Document.Survivor = true, "winner"
	v = a.commit(dead)
	if d := one(t, r, "tags", "loser"); !d.Deleted || d.Survivor != "winner" {
		t.Errorf("the merged document is %+v", d)
	}
	if d := one(t, r, "tags", "winner"); d.Survivor != "" {
		t.Errorf("the survivor is %+v", d)
	}
	a.commit(update("tags", "loser", v, nil))
	if d := one(t, r, "tags", "loser"); d.Deleted || d.Survivor != "" {
		t.Errorf("the document that came back is %+v", d)
	}
}

func testPurge(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	v := a.commit(create("docs", "x", map[string]any{"n": int64(1)}), create("docs", "y", nil))
	before := readTime(t, r)
	done, err := a.try(a.next(purge("docs", "x", v), create("docs", "z", nil)))
	if err != nil {
		t.Fatal(err)
	}
	if done.Writes != 2 || done.Deletes != 1 {
		t.Errorf("a purge, a create and the record were billed %d writes and %d deletes", done.Writes, done.Deletes)
	}
	if found := lookUp(t, r, "docs", 0, "x", "y", "z"); len(found) != 2 || found["y"].ID == "" || found["z"].ID == "" {
		t.Errorf("after the purge there is %v", found)
	}
	now := readTime(t, r)
	if got := ids(read(t, r, messages.Query{Table: "docs", ReadTime: now})); fmt.Sprint(got) != "[y z]" {
		t.Errorf("after the purge the table has %v", got)
	}
	all := messages.Query{Table: "docs", Device: "a", After: messages.Position{Stamp: messages.Stamp{Device: "a"}}, ReadTime: now}
	if got := ids(read(t, r, all)); fmt.Sprint(got) != "[y z]" {
		t.Errorf("after the purge the log has %v", got)
	}
	if found := lookUp(t, r, "docs", before, "x"); found["x"].UpdateTime != v {
		t.Errorf("before the purge there was %v", found)
	}
	// The id is free again, and nothing of the old document comes back.
	a.commit(create("docs", "x", map[string]any{"m": int64(2)}))
	wantFields(t, one(t, r, "docs", "x").Fields, map[string]any{"m": int64(2)})
}

func testAnnounce(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	quiet := a.next()
	quiet.Announce = false
	if _, err := a.try(quiet); err != nil {
		t.Fatal(err)
	}
	if d, err := r.Device(t.Context(), "a"); err != nil || d.UploadedOn != 0 {
		t.Fatalf("a record that was never announced is %+v, %v", d, err)
	}
	if list, err := r.Devices(t.Context(), 0); err != nil || len(list.Devices) != 0 || list.Reads != 1 {
		t.Fatalf("Devices lists a record without uploadedOn: %+v, %v", list, err)
	}
	a.commit()
	first, err := r.Device(t.Context(), "a")
	if err != nil || first.UploadedOn <= 0 {
		t.Fatalf("an announced record is %+v, %v", first, err)
	}
	quiet = a.next()
	quiet.Announce = false
	quiet.Device.Name = "renamed"
	quiet.Device.UploadedOn = 5 // the server's business
	if _, err := a.try(quiet); err != nil {
		t.Fatal(err)
	}
	d, err := r.Device(t.Context(), "a")
	if err != nil || d.UploadedOn != first.UploadedOn || d.Name != "renamed" || d.UpdateTime <= first.UpdateTime {
		t.Fatalf("a quiet write made %+v of %+v, %v", d, first, err)
	}
}

func testUploadedOn(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	w := create("docs", "x", nil)
	w.Document.UploadedOn = 5 // the server's business
	v := a.commit(w)
	// Taken when the request starts, so close to the commit but not equal to it.
	plausible := func(what string, ms int64) {
		t.Helper()
		if diff := ms - v/1000; diff < -60_000 || diff > 60_000 {
			t.Errorf("uploadedOn of the %s is %d ms from its update time", what, diff)
		}
	}
	plausible("document", one(t, r, "docs", "x").UploadedOn)
	record, err := r.Device(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	plausible("record", record.UploadedOn)
	v2 := a.commit(update("docs", "x", v, nil))
	first := record.UploadedOn
	v = v2
	plausible("document", one(t, r, "docs", "x").UploadedOn)
	if record, err = r.Device(t.Context(), "a"); err != nil || record.UploadedOn < first {
		t.Errorf("uploadedOn went from %d back to %d, %v", first, record.UploadedOn, err)
	}
}

func testLargeCommit(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	writes := many("docs", messages.MaxCommitWrites)
	size := 0
	for i := range writes {
		writes[i].Document.Fields["text"] = strings.Repeat("x", 5900)
		size += writes[i].Document.Size()
	}
	if size > messages.MaxCommitBytes {
		t.Fatalf("the commit has %d bytes", size)
	}
	a.commit(writes...)
	if got := read(t, r, messages.Query{Table: "docs", ReadTime: readTime(t, r)}); len(got) != len(writes) {
		t.Errorf("%d of %d documents are there", len(got), len(writes))
	}
}

func testCancelled(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	for i := range 2 {
		writes := many(fmt.Sprint("docs", i), 400)
		a.commit(writes...)
	}
	before, err := r.Device(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	now := readTime(t, r)
	ctx := cancelled()
	_, err = r.Commit(ctx, a.next(create("docs", "x", nil)))
	wantCancelled(t, "Commit", err)
	wantUntouched(t, r, before, "docs", "x")
	_, err = r.Devices(ctx, 0)
	wantCancelled(t, "Devices", err)
	_, err = r.Device(ctx, "a")
	wantCancelled(t, "Device", err)
	_, err = r.Documents(ctx, "docs0", []string{"d0001"}, 0)
	wantCancelled(t, "Documents", err)
	_, err = r.Read(ctx, messages.Query{Table: "docs0", ReadTime: now}, func(messages.Document) error { return nil })
	wantCancelled(t, "Read", err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	_, err = r.Read(ctx, messages.Query{Table: "docs1", ReadTime: now}, func(messages.Document) error {
		seen++
		cancel()
		return nil
	})
	wantCancelled(t, "Read, after the first document,", err)
	if seen == 400 {
		t.Error("a cancelled Read went on to its end")
	}
}

func wantCancelled(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%s in a cancelled context gives %v", what, err)
	}
}

// refused commits a good document beside a bad one; neither may be written.
func refused(t *testing.T, r RemotePort, bad messages.Write) {
	t.Helper()
	a := newDevice(t, r, "a")
	a.commit()
	before, err := r.Device(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.try(a.next(create("docs", "good", nil), bad, create("docs", "good too", nil)))
	wantClass(t, err, messages.ErrRejected)
	wantUntouched(t, r, before, "docs", "good", "bad", "good too")
	a.commit(create("docs", "good", nil))
}

func testTooLarge(t *testing.T, r RemotePort) {
	refused(t, r, create("docs", "bad", map[string]any{"text": strings.Repeat("x", messages.MaxDocumentBytes)}))
}

func testGrownTooLarge(t *testing.T, r RemotePort) {
	a := newDevice(t, r, "a")
	half := strings.Repeat("x", messages.MaxDocumentBytes*6/10)
	v := a.commit(create("docs", "x", map[string]any{"one": half}))
	_, err := a.try(a.next(update("docs", "x", v, map[string]any{"two": half})))
	wantClass(t, err, messages.ErrRejected)
	if d := one(t, r, "docs", "x"); d.UpdateTime != v {
		t.Errorf("the refused update moved the document to version %d", d.UpdateTime)
	}
}

func testInvalidText(t *testing.T, r RemotePort) {
	refused(t, r, create("docs", "bad", map[string]any{"text": "a\xffb"}))
	b := newDevice(t, r, "b")
	_, err := b.try(b.next(create("docs", "bad", map[string]any{"na\xffme": int64(1)})))
	wantClass(t, err, messages.ErrRejected)
}

func testUnknownType(t *testing.T, r RemotePort) {
	refused(t, r, create("docs", "bad", map[string]any{"x": messages.Unsupported{Type: "map"}}))
}

func testValues(t *testing.T, r RemotePort) {
	fields := map[string]any{"null": nil, "true": true, "false": false, "bytes": []byte{0, 1, 0xff, 0xfe, 0}, "no bytes": []byte{}}
	for i, n := range []int64{0, 1, -1, math.MaxInt64, math.MinInt64, 1<<53 + 1, -(1<<53 + 1)} {
		fields[fmt.Sprint("int ", i)] = n
	}
	for i, f := range []float64{
		0, math.Copysign(0, -1), 1, -1, 0.1, 1.0 / 3, math.Pi, 1e300, -1e-300, 123456789.123456789, 1 << 53,
		math.MaxFloat64, math.SmallestNonzeroFloat64, math.Inf(1), math.Inf(-1), math.Nextafter(1, 2),
	} {
		fields[fmt.Sprint("float ", i)] = f
	}
	for i, s := range []string{
		"", " ", "text", "a\x00b", "\x00", "🙂", "e\u0301", "\u00e9", "\ufeff", "\ufffd", "line\r\nline", `quo"te'`, "true", "1", "\U0010ffff",
	} {
		fields[fmt.Sprint("text ", i)] = s
	}
	a := newDevice(t, r, "a")
	v := a.commit(create("docs", "x", fields))
	wantFields(t, one(t, r, "docs", "x").Fields, fields)
	docs := read(t, r, messages.Query{Table: "docs", ReadTime: readTime(t, r)})
	if len(docs) != 1 {
		t.Fatalf("the table has %d documents", len(docs))
	}
	wantFields(t, docs[0].Fields, fields)
	// What comes back must go up again unchanged.
	a.commit(update("docs", "x", v, docs[0].Fields), create("docs", "y", docs[0].Fields))
	wantFields(t, one(t, r, "docs", "x").Fields, fields)
	wantFields(t, one(t, r, "docs", "y").Fields, fields)
	// The times are the row's own, however odd its clock was.
	odd := create("docs", "z", nil)
	odd.Document.CreatedOn, odd.Document.UpdatedOn = -1, 1<<52
	a.commit(odd)
	if d := one(t, r, "docs", "z"); d.CreatedOn != -1 || d.UpdatedOn != 1<<52 {
		t.Errorf("the row's times came back as %d and %d", d.CreatedOn, d.UpdatedOn)
	}
}

func testLargeValue(t *testing.T, r RemotePort) {
	fields := map[string]any{"text": strings.Repeat("añ🙂", 900<<10/7), "n": int64(1)}
	a := newDevice(t, r, "a")
	a.commit(create("docs", "x", fields))
	wantFields(t, one(t, r, "docs", "x").Fields, fields)
}

func testFieldNames(t *testing.T, r RemotePort) {
	names := []string{
		"with space", " ", `quo"te`, "quo'te", "dot.ted", "a.b.c", ".", "..", "back`tick", "`", `back\slash`, "brac[ket]", "sl/ash", "/", "*", "~",
		"ünïcode", "表", "🙂", "%", "%%", "%64eleted", "%64", "new\nline", "ta\tb", "-", "1digit", "$dollar", "UPPER", "upper", "a:b", "(a)", "a,b", "a=b", "#", "?", "&", "<a>", "{a}", "@",
		"deleted", "stamp", "createdOn", "updatedOn", "updatedBy", "uploadedOn", "survivor", "tombstone", "serverId", "isDirty", "clientId", "serverVersion",
		"updateTime", "table", "id", "fields", "data", "__x__", "__name__", "__", "____", "_x_", strings.Repeat("long", 30),
	}
	fields := map[string]any{}
	for i, name := range names {
		fields[name] = fmt.Sprint("value ", i)
	}
	a := newDevice(t, r, "a")
	v := a.commit(create("docs", "x", fields))
	d := one(t, r, "docs", "x")
	wantFields(t, d.Fields, fields)
	if d.CreatedOn != 1000 || d.UpdatedOn != 2000 || d.UpdatedBy != "a" || d.Deleted || d.Survivor != "" || d.Stamp.Seq != 1 {
		t.Errorf("data columns named like ours made the document %+v", d)
	}
	changed := map[string]any{}
	for i, name := range names {
		if i%2 == 0 {
			changed[name] = int64(i)
			fields[name] = int64(i)
		}
	}
	v = a.commit(update("docs", "x", v, changed))
	wantFields(t, one(t, r, "docs", "x").Fields, fields)
	dead := update("docs", "x", v, nil)
	dead.Document.Deleted = true
	a.commit(dead)
	d = one(t, r, "docs", "x")
	wantFields(t, d.Fields, fields)
	if !d.Deleted {
		t.Error("the tombstone is none")
	}
}

func testTableNames(t *testing.T, r RemotePort) {
	tables := []string{
		"with space", " ", "a/b", "/", `quo"te`, "quo'te", "back`tick", "[x]", "Devices", "devices", "Documents", "documents", ".", "..", "...", "__a__", "__", "____", "dot.ted",
		"ünï", "таблица", "🙂", "%41", "A", "a", "%", "%2F", "-", "_", "sqlite", strings.Repeat("long", 16),
	}
	a := newDevice(t, r, "a")
	var writes []messages.Write
	for _, table := range tables {
		// The id is the device's: a table called Devices is not the Devices collection.
		writes = append(writes, create(table, "a", map[string]any{"table": table}))
	}
	a.commit(writes...)
	now := readTime(t, r)
	for _, table := range tables {
		d := one(t, r, table, "a")
		wantFields(t, d.Fields, map[string]any{"table": table})
		whole := read(t, r, messages.Query{Table: table, ReadTime: now})
		log := read(t, r, messages.Query{Table: table, Device: "a", After: messages.Position{Stamp: messages.Stamp{Device: "a"}}, ReadTime: now})
		if len(whole) != 1 || len(log) != 1 || whole[0].Table != table || log[0].Table != table {
			t.Errorf("table %q has %d documents, %d of them in the log", table, len(whole), len(log))
		}
	}
	list, err := r.Devices(t.Context(), 0)
	if err != nil || len(list.Devices) != 1 || list.Devices[0].ID != "a" {
		t.Fatalf("Devices is %+v, %v", list, err)
	}
	for _, table := range tables {
		if list.Devices[0].Tables[table] != 1 {
			t.Errorf("the record does not say that table %q was touched", table)
		}
	}
}
