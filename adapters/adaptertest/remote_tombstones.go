package adaptertest

import (
	"fmt"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

// Deletes are found without reading what lives, and purged ones not at all.
func testTombstones(t *testing.T, r RemotePort) {
	a, b := newDevice(t, r, "a"), newDevice(t, r, "b")
	dead := func(id string, expect int64) messages.Write {
		w := update("docs", id, expect, map[string]any{"big": "text"})
		w.Document.Deleted = true
		return w
	}
	v := a.commit(many("docs", 8)...)                                    // 1
	a.commit(dead("d0001", v), dead("d0000", v))                         // 2
	revived := a.commit(dead("d0002", v))                                // 3
	gone := a.commit(dead("d0003", v))                                   // 4
	a.commit(dead("d0004", v))                                           // 5
	b.commit(update("docs", "d0002", revived, nil), dead("d0005", v))    // another device's
	a.commit(purge("docs", "d0003", gone), create("docs", "d0009", nil)) // 6
	a.commit(dead("d0006", v))                                           // 7
	q := messages.Query{Table: "docs", Device: "a", ReadTime: readTime(t, r), Tombstones: true}
	for _, c := range []struct {
		after, till int64
		id          string
		limit       int
		want        string
	}{
		{0, 5, "", 0, "[d0000 d0001 d0004]"},
		{0, 2, "", 0, "[d0000 d0001]"},
		{0, 5, "", 2, "[d0000 d0001]"},
		{2, 5, "d0000", 0, "[d0001 d0004]"},
		{2, 9, "", 0, "[d0004 d0006]"},
		{5, 6, "", 0, "[]"},
	} {
		q.After = messages.Position{Stamp: messages.Stamp{Device: "a", Seq: c.after}, ID: c.id}
		q.Till, q.Limit = c.till, c.limit
		docs := read(t, r, q)
		if got := fmt.Sprint(ids(docs)); got != c.want {
			t.Errorf("tombstones after %d %q till %d: %s, want %s", c.after, c.id, c.till, got, c.want)
		}
		for _, d := range docs {
			if !d.Deleted || d.Stamp.Device != "a" || d.UpdateTime == 0 {
				t.Errorf("not a tombstone of a: %+v", d)
			}
		}
	}
}
