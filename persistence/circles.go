package persistence

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// circles inserts new rows that refer to each other: the greatest set of waiting
// documents whose missing parents are all in the set. They go in together or not at
// all: whoever does not fit is left out, and with it whoever needs it, and the rest is
// tried again. With decide, whoever meets a unique key does not wait for it to become
// free.
func (s *settler) circles(decide bool) (settled bool, err error) {
	needs, docs, err := s.needs(decide)
	if err != nil {
		return false, err
	}
	for {
		if inside(needs); len(needs) == 0 {
			return settled, nil
		}
		c := s.circle(needs, docs)
		done, err := s.whole(func() (bool, error) { return s.together(c, decide) })
		if err != nil || done {
			return true, err
		}
		for _, k := range c.order {
			r, failed := c.failed[k]
			if !failed {
				continue
			}
			s.at = k
			a, err := s.applier(s.byName[k.table])
			if err != nil {
				return false, err
			}
			d := docs[k]
			if a.reason = r.reason; r.out == skipped { // it is decided, but has no row
				if err := a.look([]messages.Document{d}); err != nil {
					return false, err
				}
				if r.out, err = a.one(&d); err != nil {
					return false, err
				}
			}
			if decide && r.out == collides {
				r.out = dead
			}
			done, err := s.record(a, &d, r.out)
			if err != nil {
				return false, err
			}
			settled = settled || done
			delete(needs, k)
		}
	}
}

// inside leaves those who need nobody else.
func inside(needs map[docKey][]docKey) {
	for shrunk := true; shrunk; {
		shrunk = false
		for k, ms := range needs {
			if slices.ContainsFunc(ms, func(m docKey) bool { _, in := needs[m]; return !in }) {
				delete(needs, k)
				shrunk = true
			}
		}
	}
}

// needs are the waiting documents that a circle may consist of, and the parents that
// each misses.
func (s *settler) needs(decide bool) (needs map[docKey][]docKey, docs map[docKey]messages.Document, err error) {
	needs, docs = map[docKey][]docKey{}, map[docKey]messages.Document{}
	for _, p := range s.plans {
		if len(p.refs) == 0 {
			continue
		}
		kinds := []string{"waiting"}
		if decide {
			kinds = append(kinds, "collides")
		}
		for _, kind := range kinds {
			if _, err := s.each(p, kind, func(a *applier, d *messages.Document) (bool, error) {
				m, err := s.missing(a, d)
				if err == nil && a.rows[d.ID] == nil && (kind == "waiting" || len(m) > 0) {
					needs[docKey{p.t.Name, d.ID}] = m
					docs[docKey{p.t.Name, d.ID}] = *d
				}
				return false, err
			}); err != nil {
				return nil, nil, err
			}
		}
	}
	return needs, docs, nil
}

// circle is a set of new rows that go in together.
type circle struct {
	order  []docKey
	docs   map[docKey]messages.Document
	in     map[docKey]bool    // they have been applied
	below  map[docKey][]below // the members that refer to a member
	failed map[docKey]failure
}

// below is a row and the foreign key by which it refers to a member of its circle.
type below struct {
	orphan
	ref *ref
}

// failure is why a member of a circle did not go in; skipped when it has been decided
// and there is no row.
type failure struct {
	out    outcome
	reason string
}

func (s *settler) circle(needs map[docKey][]docKey, docs map[docKey]messages.Document) *circle {
	c := &circle{docs: map[docKey]messages.Document{}, in: map[docKey]bool{}, below: map[docKey][]below{}, failed: map[docKey]failure{}}
	for k := range needs {
		c.order = append(c.order, k)
		c.docs[k] = docs[k]
	}
	at := map[string]int{}
	for i, p := range s.plans {
		at[p.t.Name] = i
	}
	slices.SortFunc(c.order, func(a, b docKey) int {
		return cmp.Or(at[a.table]-at[b.table], strings.Compare(a.id, b.id))
	})
	for _, k := range c.order {
		p := s.byName[k.table]
		for i := range p.refs {
			r := &p.refs[i]
			if id, ok := docs[k].Fields[r.field].(string); ok {
				parent := docKey{r.parent.Name, id}
				c.below[parent] = append(c.below[parent], below{orphan{childRef{p.t, r.fk}, k.id}, r})
			}
		}
	}
	return c
}

// together lets a circle's rows in, or says who does not fit. Their local keys are
// chosen and promised first; nothing enforces foreign keys in between, and in the end
// every reference is to something.
func (s *settler) together(c *circle, decide bool) (bool, error) {
	defer clear(s.tx.promised)
	if err := s.reserve(c); err != nil {
		return false, err
	}
	for _, k := range c.order {
		a, err := s.applier(s.byName[k.table])
		if err != nil {
			return false, err
		}
		d := c.docs[k]
		s.at = k
		a.taken = map[int64]bool{} // its number is its own by now
		out, err := a.one(&d)
		if err != nil {
			return false, err
		}
		merged := false
		if why := a.reason; out == collides && decide && a.p.options.Unique != SetAside {
			if merged, err = s.mergeWhole(a, &d); err != nil {
				return false, err
			}
			a.reason = why
		}
		if !merged {
			if out != applied && out != skipped {
				c.failed[k] = failure{out, a.reason}
				continue
			}
			if _, err := s.record(a, &d, out); err != nil {
				return false, err
			}
		}
		c.in[k] = true
		if there, err := s.keepPromise(c, a, k); err != nil {
			return false, err
		} else if !there {
			c.failed[k] = failure{out: skipped}
		}
	}
	return len(c.failed) == 0, nil
}

// keepPromise makes the members of a circle that refer to one of them refer to what it
// has become: the row with the promised key, one with another, or the row that it was
// merged with. false: there is none.
func (s *settler) keepPromise(c *circle, a *applier, k docKey) (bool, error) {
	id := k.id
	row, err := a.p.rowByID(s.tx, id)
	if err == nil && row == nil {
		if id, err = s.tx.survivor(k.table, k.id); err == nil && id != "" {
			row, err = a.p.rowByID(s.tx, id)
		}
	}
	if err != nil || row == nil {
		return false, err
	}
	var moved []orphan
	for _, o := range c.below[k] {
		if !c.in[docKey{o.child.child.Name, o.id}] {
			continue
		}
		key, err := a.keyOf(o.child.fk.ParentColumns, id)
		if err != nil {
			return false, err
		}
		if id != k.id || !slices.EqualFunc(key, s.tx.promised[o.ref.cacheKey(k.id)], equal) {
			moved = append(moved, o.orphan)
		}
	}
	s.unpromise(a.p, k.id)
	if id != k.id {
		return true, s.moveTo(a, moved, id)
	}
	list, err := s.kin(a, id, moved)
	if err != nil {
		return false, err
	}
	return true, s.repoint(list)
}

// reserve chooses the local keys of rows that are not in yet and promises them, so that
// they can refer to each other: the document's own values, a local number another one
// where it is taken.
func (s *settler) reserve(c *circle) error {
	last := map[string]int64{} // of a table's numbers, and of those that its documents have
	for _, k := range c.order {
		p := s.byName[k.table]
		if p.surrogate == "" {
			continue
		}
		if _, ok := last[k.table]; !ok {
			var n int64
			if err := s.tx.row(`SELECT coalesce(max(`+quote(p.surrogate)+`), 0) FROM `+p.name+` WHERE `+quote(p.surrogate)+` < ?`, int64(maxSurrogate)).Scan(&n); err != nil {
				return err
			}
			last[k.table] = n
		}
		if n, ok := c.docs[k].Fields[p.surrogate].(int64); ok && n < maxSurrogate {
			last[k.table] = max(last[k.table], n)
		}
	}
	type number struct {
		table string
		n     int64
	}
	chosen := map[number]bool{}
	for _, k := range c.order {
		p, d := s.byName[k.table], c.docs[k]
		if p.surrogate != "" {
			n, ok := d.Fields[p.surrogate].(int64)
			taken := !ok || p.auto && n > maxSurrogate || chosen[number{k.table, n}]
			a, err := s.applier(p)
			if err != nil {
				return err
			}
			given := n
			if a.rebuilt && ok { // the row that has lost its identity may be there
				if n, taken, err = a.unclaimed(&d, n); err != nil {
					return err
				}
				taken = taken || chosen[number{k.table, n}]
			} else if !taken {
				if err := s.tx.row(`SELECT EXISTS (SELECT 1 FROM `+p.name+` WHERE `+quote(p.surrogate)+` = ?)`, n).Scan(&taken); err != nil {
					return err
				}
			}
			if taken {
				last[k.table]++
				n = last[k.table]
			}
			if n != given || !ok {
				fields := make(map[string]any, len(d.Fields)+1)
				maps.Copy(fields, d.Fields)
				fields[p.surrogate] = n
				d.Fields = fields
				c.docs[k] = d
			}
			chosen[number{k.table, n}] = true
		}
	}
	for again, rounds := true, 0; again && rounds <= len(s.plans); rounds++ { // a key may be made of its parent's, and that of its parent's
		again = false
		for _, k := range c.order {
			p, d := s.byName[k.table], c.docs[k]
			a, err := s.applier(p)
			if err != nil {
				return err
			}
			for _, r := range s.refsTo(p) {
				key := make([]any, len(r.fk.ParentColumns))
				for n, col := range r.fk.ParentColumns {
					if key[n], err = a.keyPart(&d, col); err != nil {
						return err
					}
				}
				again = again || !slices.EqualFunc(s.tx.promised[r.cacheKey(k.id)], key, equal)
				s.tx.promised[r.cacheKey(k.id)] = key
			}
		}
	}
	return nil
}

// keyPart is what a new row will have in a column that others refer to: the document's
// value, or its parent's where the column refers to one. A row of the same table has the
// same there.
func (a *applier) keyPart(d *messages.Document, column string) (any, error) {
	column = a.p.column(column)
	at := slices.IndexFunc(a.p.cols, func(c plannedColumn) bool { return c.Name == column })
	if at < 0 {
		return toSQL(d.Fields[column]), nil
	}
	refs := a.p.refs
	if i := a.p.cols[at].ref; i >= 0 {
		refs = refs[i : i+1]
	}
	for i := range refs {
		r := &refs[i]
		id, ok := d.Fields[r.field].(string)
		n := slices.Index(r.cols, at)
		if !ok || n < 0 || r.parent == a.p.t && len(r.cols) > 1 {
			continue
		}
		if key, err := a.parentKey(r, id); err != nil {
			return nil, err
		} else if key != nil {
			return key[n], nil
		}
	}
	return toSQL(d.Fields[a.p.cols[at].Name]), nil
}

// itself promises a new row its own key where it refers to a row that has been merged into
// it, and returns the document with that key.
func (s *settler) itself(a *applier, d *messages.Document) (*messages.Document, error) {
	k := docKey{a.p.t.Name, d.ID}
	for i := range a.p.refs {
		r := &a.p.refs[i]
		id, ok := d.Fields[r.field].(string)
		if _, promised := s.tx.promised[r.cacheKey(d.ID)]; !ok || r.parent != a.p.t || promised || a.rows[d.ID] != nil {
			continue
		}
		survivor, err := s.tx.survivor(k.table, id)
		if err != nil {
			return nil, err
		}
		if survivor == d.ID {
			c := s.circle(map[docKey][]docKey{k: nil}, map[docKey]messages.Document{k: *d})
			if err := s.reserve(c); err != nil {
				return nil, err
			}
			own := c.docs[k]
			if n, ok := own.Fields[a.p.surrogate].(int64); ok {
				delete(a.taken, n) // its own by now
			}
			return &own, nil
		}
	}
	return d, nil
}

// unpromise: from now on a row of a circle is looked up like any other.
func (s *settler) unpromise(p *plan, id string) {
	if len(s.tx.promised) == 0 {
		return
	}
	for _, r := range s.refsTo(p) {
		delete(s.tx.promised, r.cacheKey(id))
	}
}

// refsTo are the foreign keys that refer to a table.
func (s *settler) refsTo(p *plan) []*ref {
	var out []*ref
	for _, c := range p.children {
		child := s.byName[c.child.Name]
		for i := range child.refs {
			if r := &child.refs[i]; r.parent == p.t && r.fk.ID == c.fk.ID {
				out = append(out, r)
			}
		}
	}
	return out
}

// column is the name as the plan spells it; SQL compares names without case.
func (p *plan) column(name string) string {
	for i := range p.cols {
		if strings.EqualFold(p.cols[i].Name, name) {
			return p.cols[i].Name
		}
	}
	return name
}
