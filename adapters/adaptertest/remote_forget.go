package adaptertest

import (
	"errors"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

// A record can be removed, on the condition of its version, together with documents;
// and one that is forgotten says so until it is written anew.
func testForget(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	a.commit(create("docs", "x", nil))
	first := b.commit(create("docs", "y", nil))
	b.record.Forgotten = true
	v := b.commit(update("docs", "y", first, nil))
	if d, err := r.Device(t.Context(), "b"); err != nil || !d.Forgotten || d.Name != "device b" {
		t.Fatalf("the record is %+v, %v, want it to be forgotten", d, err)
	}
	b.record.Forgotten = false
	b.commit(update("docs", "y", v, nil))
	if d, err := r.Device(t.Context(), "b"); err != nil || d.Forgotten {
		t.Fatalf("the record is %+v, %v: it was written anew and is still forgotten", d, err)
	}
	before := readTime(t, r)

	_, err := r.Commit(t.Context(), messages.Commit{Device: messages.Device{ID: "a"}, Expect: a.version - 1, Remove: true, Writes: []messages.Write{purge("docs", "x", a.version)}})
	wantClass(t, err, messages.ErrConflict)
	_, err = r.Commit(t.Context(), messages.Commit{Device: messages.Device{ID: "a"}, Expect: a.version, Remove: true, Writes: []messages.Write{purge("docs", "x", a.version-1)}})
	wantClass(t, err, messages.ErrConflict)
	if d, err := r.Device(t.Context(), "a"); err != nil || d.UpdateTime != a.version {
		t.Fatalf("the record is %+v, %v: it is gone although a condition did not hold", d, err)
	}

	done, err := r.Commit(t.Context(), messages.Commit{Device: messages.Device{ID: "a"}, Expect: a.version, Remove: true, Writes: []messages.Write{purge("docs", "x", a.version)}})
	if err != nil {
		t.Fatal(err)
	}
	if done.Writes != 0 || done.Deletes != 2 || done.UpdateTime <= before {
		t.Errorf("%+v, want two deletes, after %d", done, before)
	}
	if d, err := r.Device(t.Context(), "a"); err != nil || d.UpdateTime != 0 {
		t.Errorf("the record is %+v, %v, want none", d, err)
	}
	list, err := r.Devices(t.Context(), -1)
	if err != nil || len(list.Devices) != 1 || list.Devices[0].ID != "b" {
		t.Errorf("the records are %+v, %v, want that of b", list.Devices, err)
	}
	if docs := read(t, r, messages.Query{Table: "docs", ReadTime: readTime(t, r)}); len(docs) != 1 || docs[0].ID != "y" {
		t.Errorf("the documents are %v, want y", ids(docs))
	}
	// Whoever wrote it last finds that it is gone.
	if _, err := a.try(a.next(create("docs", "z", nil))); !errors.Is(err, messages.ErrConflict) {
		t.Errorf("on top of a removed record: %v, want a conflict", err)
	}
}
