package adaptertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// RemotePort is what a remote offers.
type RemotePort interface {
	stages.DeviceReader
	stages.DocumentReader
	stages.Committer
}

// Remote runs the suite. open gives a fresh, empty scope on every call and
// registers its own clean-up with t. At most one Features is used.
func Remote(t *testing.T, open func(t *testing.T) RemotePort, features ...Features) {
	f := merged(features)
	tests := []struct {
		name string
		run  func(t *testing.T, r RemotePort)
	}{
		{"CommitIsOneVersion", testCommitIsOneVersion},
		{"UpdateMask", testUpdateMask},
		{"TombstoneAndRevival", testTombstone},
		{"Survivor", testSurvivor},
		{"Purge", testPurge},
		{"Announce", testAnnounce},
		{"UploadedOn", testUploadedOn},
		{"LargeCommit", testLargeCommit},
		{"CancelledContext", testCancelled},
		{"Rejected/TooLarge", testTooLarge},
		{"Rejected/GrownTooLarge", testGrownTooLarge},
		{"Rejected/InvalidText", testInvalidText},
		{"Rejected/UnknownType", testUnknownType},
		{"Values", testValues},
		{"LargeValue", testLargeValue},
		{"FieldNames", testFieldNames},
		{"TableNames", testTableNames},
		{"Devices/Since", testDevicesSince},
		{"Devices/All", testAllDevices},
		{"Devices/Missing", testDeviceMissing},
		{"Devices/RoundTrip", testDeviceRoundTrip},
		{"Devices/Forget", testForget},
		{"Read/Snapshot", testSnapshot},
		{"Read/Log", testLog},
		{"Read/LogPages", testLogPages},
		{"Read/LogOfPrefix", testLogOfPrefix},
		{"Read/LogMoves", testLogMoves},
		{"Read/Tombstones", testTombstones},
		{"Read/WholeTable", testWholeTable},
		{"Read/Empty", testReadEmpty},
		{"Read/YieldFails", testYieldFails},
		{"Read/YieldUsesTheRemote", testYieldUsesRemote},
		{"Documents", testDocuments},
		{"Concurrent/Logs", testConcurrentLogs},
		{"Concurrent/ReadModifyWrite", testConcurrentCounter},
	}
	for _, c := range atomicityCases {
		tests = append(tests, struct {
			name string
			run  func(t *testing.T, r RemotePort)
		}{"Atomicity/" + c.name, func(t *testing.T, r RemotePort) { testAtomicity(t, r, c) }})
	}
	if f.ReadTimeTooOld {
		tests = append(tests, struct {
			name string
			run  func(t *testing.T, r RemotePort)
		}{"Read/TooOld", testReadTooOld})
	}
	if f.Foreign != nil {
		tests = append(tests, struct {
			name string
			run  func(t *testing.T, r RemotePort)
		}{"Read/Foreign", func(t *testing.T, r RemotePort) { testForeign(t, r, f) }})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.run(t, open(t))
		})
	}
}

// device writes to the remote as the protocol does: one commit after the other,
// each on top of the record's last version.
type device struct {
	t       *testing.T
	r       RemotePort
	record  messages.Device
	version int64
}

func newDevice(t *testing.T, r RemotePort, id string) *device {
	t.Helper()
	return &device{t: t, r: r, record: messages.Device{ID: id, Tables: map[string]int64{}, Name: "device " + id}}
}

// next is the commit that would follow, with the writes stamped.
func (d *device) next(writes ...messages.Write) messages.Commit {
	record := d.record
	record.Seq++
	record.Token = record.ID + " " + strconv.FormatInt(record.Seq, 10)
	record.Tables = maps.Clone(record.Tables)
	for i := range writes {
		w := &writes[i].Document
		w.UpdatedBy = record.ID
		w.Stamp = messages.Stamp{Device: record.ID, Seq: record.Seq}
		record.Tables[w.Table] = record.Seq
	}
	return messages.Commit{Device: record, Expect: d.version, Announce: true, Writes: writes}
}

// try commits, and moves on when it was acknowledged.
func (d *device) try(c messages.Commit) (messages.Committed, error) {
	done, err := d.r.Commit(d.t.Context(), c)
	if err == nil {
		d.record, d.version = c.Device, done.UpdateTime
	}
	return done, err
}

// commit writes and must succeed; it returns the update time.
func (d *device) commit(writes ...messages.Write) int64 {
	d.t.Helper()
	done, err := d.try(d.next(writes...))
	if err != nil {
		d.t.Fatalf("commit %d of %s: %v", d.record.Seq+1, d.record.ID, err)
	}
	if done.UpdateTime <= 0 {
		d.t.Fatalf("the commit's update time is %d", done.UpdateTime)
	}
	return done.UpdateTime
}

// create is a write of a document that must not exist yet.
func create(table, id string, fields map[string]any) messages.Write {
	return messages.Write{Document: messages.Document{Table: table, ID: id, CreatedOn: 1000, UpdatedOn: 2000, Fields: fields}}
}

// update is a write on top of a version.
func update(table, id string, expect int64, fields map[string]any) messages.Write {
	w := create(table, id, fields)
	w.Document.UpdatedOn = 3000
	w.Expect = expect
	return w
}

func purge(table, id string, expect int64) messages.Write {
	return messages.Write{Document: messages.Document{Table: table, ID: id}, Expect: expect, Purge: true}
}

// many makes creates of n small documents.
func many(table string, n int) []messages.Write {
	writes := make([]messages.Write, n)
	for i := range writes {
		writes[i] = create(table, fmt.Sprintf("d%04d", i), map[string]any{"n": int64(i)})
	}
	return writes
}

func ids(docs []messages.Document) []string {
	list := make([]string, len(docs))
	for i := range docs {
		list[i] = docs[i].ID
	}
	return list
}

// readTime is a read time that shows everything committed so far.
func readTime(t *testing.T, r RemotePort) int64 {
	t.Helper()
	list, err := r.Devices(t.Context(), 0)
	if err != nil {
		t.Fatalf("Devices: %v", err)
	}
	if list.ReadTime <= 0 {
		t.Fatalf("Devices has the read time %d", list.ReadTime)
	}
	return list.ReadTime
}

// read collects a query's documents and checks the bill.
func read(t *testing.T, r RemotePort, q messages.Query) []messages.Document {
	t.Helper()
	var docs []messages.Document
	reads, err := r.Read(t.Context(), q, func(d messages.Document) error {
		d.Fields = maps.Clone(d.Fields)
		docs = append(docs, d)
		return nil
	})
	if err != nil {
		t.Fatalf("Read(%+v): %v", q, err)
	}
	if want := max(1, int64(len(docs))); reads != want {
		t.Errorf("Read(%+v) was billed %d for %d documents, want %d", q, reads, len(docs), want)
	}
	return docs
}

// lookUp looks documents up, by id.
func lookUp(t *testing.T, r RemotePort, table string, readTime int64, ids ...string) map[string]messages.Document {
	t.Helper()
	page, err := r.Documents(t.Context(), table, ids, readTime)
	if err != nil {
		t.Fatalf("Documents(%q, %d ids, %d): %v", table, len(ids), readTime, err)
	}
	if page.Reads != int64(len(ids)) {
		t.Errorf("Documents was billed %d for %d ids", page.Reads, len(ids))
	}
	found := map[string]messages.Document{}
	for _, d := range page.Documents {
		if _, twice := found[d.ID]; twice || !slices.Contains(ids, d.ID) || d.Table != table {
			t.Errorf("Documents(%q) answered %q of %q, or did so twice", table, d.ID, d.Table)
		}
		found[d.ID] = d
	}
	return found
}

// one looks a document up as it is now; it must exist.
func one(t *testing.T, r RemotePort, table, id string) messages.Document {
	t.Helper()
	d, ok := lookUp(t, r, table, 0, id)[id]
	if !ok {
		t.Fatalf("document %q of %q does not exist", id, table)
	}
	return d
}

// wantFields compares values exactly: 1 is not 1.0, and -0 is not 0.
func wantFields(t *testing.T, got, want map[string]any) {
	t.Helper()
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			t.Errorf("field %q is missing", name)
		} else if !same(g, w) {
			t.Errorf("field %q is %T %.80v, want %T %.80v", name, g, g, w, w)
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("field %q = %.80v was never written", name, g)
		}
	}
}

func same(a, b any) bool {
	switch b := b.(type) {
	case float64:
		a, ok := a.(float64)
		return ok && math.Float64bits(a) == math.Float64bits(b)
	case []byte:
		a, ok := a.([]byte)
		return ok && bytes.Equal(a, b)
	default:
		if _, ok := a.([]byte); ok {
			return false
		}
		return a == b
	}
}

func wantClass(t *testing.T, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("the error is %v, want one of class %q", err, class)
	}
	if got := messages.Class(err); got != class.Error() {
		t.Errorf("the error's class is %q, want only %q: %v", got, class, err)
	}
}

// wantUntouched checks that nothing of a refused commit is there.
func wantUntouched(t *testing.T, r RemotePort, before messages.Device, table string, ids ...string) {
	t.Helper()
	got, err := r.Device(t.Context(), before.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.UpdateTime != before.UpdateTime || got.Seq != before.Seq || got.Token != before.Token {
		t.Errorf("the record changed from version %d, seq %d to version %d, seq %d", before.UpdateTime, before.Seq, got.UpdateTime, got.Seq)
	}
	if found := lookUp(t, r, table, 0, ids...); len(found) != 0 {
		t.Errorf("%d documents of a refused commit exist", len(found))
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
