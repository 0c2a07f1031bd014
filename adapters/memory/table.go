package memory

import (
	"cmp"
	"slices"
	"sort"

	"github.com/tidemark-sync/tidemark/messages"
)

// version is what a document was from time on. The Fields of doc are never
// changed once stored: versions and answers may share what they hold.
type version struct {
	time int64
	gone bool
	doc  messages.Document
}

// document keeps its versions, oldest first.
type document struct{ versions []version }

// at returns the document as of a read time, nil when there was none.
func (d *document) at(readTime int64) *messages.Document {
	if d == nil {
		return nil
	}
	for i := len(d.versions) - 1; i >= 0; i-- {
		if v := &d.versions[i]; v.time <= readTime {
			if v.gone {
				return nil
			}
			return &v.doc
		}
	}
	return nil
}

// wrote reports whether a version that is still kept has the stamp.
func (d *document) wrote(s messages.Stamp) bool {
	return d != nil && slices.ContainsFunc(d.versions, func(v version) bool { return !v.gone && v.doc.Stamp == s })
}

// table finds documents by id and by who wrote them. Both orders hold more than
// what is there now: readers look every entry up at their read time.
type table struct {
	docs map[string]*document
	// ids is sorted; fresh is what came since the last read in order of id. Sorting
	// on every insert would cost a commit more than the commit.
	ids, fresh []string
	removed    int
	logs       map[string]*log
}

func newTable() *table {
	return &table{docs: map[string]*document{}, logs: map[string]*log{}}
}

// sorted returns all ids in order.
func (t *table) sorted() []string {
	if t.removed > len(t.ids)/2 {
		t.ids = slices.DeleteFunc(t.ids, func(id string) bool { return t.docs[id] == nil })
		t.removed = 0
	}
	if len(t.fresh) == 0 {
		return t.ids
	}
	slices.Sort(t.fresh)
	merged := make([]string, 0, len(t.ids)+len(t.fresh))
	i, j := 0, 0
	for i < len(t.ids) && j < len(t.fresh) {
		if t.ids[i] <= t.fresh[j] {
			merged = append(merged, t.ids[i])
			i++
		} else {
			merged = append(merged, t.fresh[j])
			j++
		}
	}
	merged = append(append(merged, t.ids[i:]...), t.fresh[j:]...)
	// An id comes twice when its document was forgotten and made again.
	t.ids, t.fresh = slices.Compact(merged), nil
	return t.ids
}

// put adds a version, which is newer than all others.
func (t *table) put(id string, v version) {
	d := t.docs[id]
	if d == nil {
		d = &document{}
		t.docs[id] = d
		t.fresh = append(t.fresh, id)
	}
	d.versions = append(d.versions, v)
	if s := v.doc.Stamp; !v.gone && s.Device != "" {
		l := t.logs[s.Device]
		if l == nil {
			l = &log{}
			t.logs[s.Device] = l
		}
		l.insert(entry{s.Seq, id})
	}
}

// trim forgets the versions of one document that nobody can read any more.
func (t *table) trim(id string, horizon int64) {
	d := t.docs[id]
	if d == nil {
		return
	}
	n := 0
	for n+1 < len(d.versions) && d.versions[n+1].time <= horizon {
		if l := t.logs[d.versions[n].doc.Stamp.Device]; l != nil {
			l.stale++
		}
		n++
	}
	d.versions = slices.Delete(d.versions, 0, n)
	if last := d.versions[0]; len(d.versions) == 1 && last.gone && last.time <= horizon {
		delete(t.docs, id)
		t.removed++
	}
	for device, l := range t.logs {
		if l.stale > 64 && l.stale > len(l.entries)/2 {
			l.entries = slices.DeleteFunc(l.entries, func(e entry) bool {
				return !t.docs[e.id].wrote(messages.Stamp{Device: device, Seq: e.seq})
			})
			l.stale = 0
		}
	}
}

// scan collects up to n documents of the query that come after the position, as
// of the read time.
func (t *table) scan(q messages.Query, after messages.Position, n int) []messages.Document {
	var found []messages.Document
	if t == nil {
		return nil
	}
	if q.Device == "" {
		ids := t.sorted()
		i := sort.Search(len(ids), func(i int) bool { return ids[i] > after.ID })
		for ; i < len(ids) && len(found) < n; i++ {
			if d := t.docs[ids[i]].at(q.ReadTime); d != nil {
				found = append(found, *d)
			}
		}
		return found
	}
	l := t.logs[q.Device]
	if l == nil {
		return nil
	}
	for i := l.after(after); i < len(l.entries) && len(found) < n; i++ {
		e := l.entries[i]
		if q.Tombstones && e.seq > q.Till {
			break
		}
		d := t.docs[e.id].at(q.ReadTime)
		if q.Tombstones && d != nil && !d.Deleted {
			continue
		}
		if d != nil && d.Stamp == (messages.Stamp{Device: q.Device, Seq: e.seq}) {
			found = append(found, *d)
		}
	}
	return found
}

// log is what one device wrote to one table, in order of (seq, id).
type log struct {
	entries []entry
	stale   int
}

type entry struct {
	seq int64
	id  string
}

func (e entry) compare(o entry) int {
	return cmp.Or(cmp.Compare(e.seq, o.seq), cmp.Compare(e.id, o.id))
}

func (l *log) insert(e entry) {
	if n := len(l.entries); n == 0 || l.entries[n-1].compare(e) < 0 {
		l.entries = append(l.entries, e)
		return
	}
	if i, found := slices.BinarySearchFunc(l.entries, e, entry.compare); !found {
		l.entries = slices.Insert(l.entries, i, e)
	}
}

// after is the index of the first entry above a position, whose id may be empty:
// then it stands behind everything with its number.
func (l *log) after(p messages.Position) int {
	return sort.Search(len(l.entries), func(i int) bool {
		e := l.entries[i]
		if p.ID == "" {
			return e.seq > p.Stamp.Seq
		}
		return e.compare(entry{p.Stamp.Seq, p.ID}) > 0
	})
}
