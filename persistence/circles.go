package persistence

import (
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// circles inserts new rows that refer to each other: the greatest set of waiting
// documents whose missing parents are all in the set. Their local keys are chosen
// first, then they go in; nothing enforces foreign keys in between, and at the
// commit every reference is to something. With decide, whoever meets a unique key
// does not wait for it to become free.
func (s *settler) circles(decide bool) (bool, error) {
	needs := map[docKey][]docKey{}
	docs := map[docKey]messages.Document{}
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
				return false, err
			}
		}
	}
	for shrunk := true; shrunk; {
		shrunk = false
		for k, ms := range needs {
			if slices.ContainsFunc(ms, func(m docKey) bool { _, in := needs[m]; return !in }) {
				delete(needs, k)
				shrunk = true
			}
		}
	}
	if len(needs) == 0 {
		return false, nil
	}
	order := make([]docKey, 0, len(needs))
	for k := range needs {
		order = append(order, k)
	}
	slices.SortFunc(order, func(a, b docKey) int {
		if a.table != b.table {
			return slices.IndexFunc(s.plans, func(p *plan) bool { return p.t.Name == a.table }) - slices.IndexFunc(s.plans, func(p *plan) bool { return p.t.Name == b.table })
		}
		if a.id < b.id {
			return -1
		}
		return 1
	})
	asCame := maps.Clone(docs)
	// Local keys: the document's own values, a surrogate renumbered where taken.
	for _, k := range order {
		if err := s.reserve(k, docs); err != nil {
			return false, err
		}
	}
	settled := map[docKey]bool{}
	collided := map[docKey]string{}
	for _, k := range order {
		a, err := s.applier(s.byName[k.table])
		if err != nil {
			return false, err
		}
		d := docs[k]
		a.taken = map[int64]bool{} // its number is its own by now
		out, err := a.one(&d)
		if err != nil {
			return false, err
		}
		if out == collides {
			collided[k] = a.reason
		}
		if settled[k], err = s.record(a, &d, out); err != nil {
			return false, err
		}
	}
	if decide {
		for _, k := range order {
			if why, is := collided[k]; is {
				if err := s.decideCollision(k, docs[k], why); err != nil {
					return false, err
				}
				settled[k] = true
			}
		}
	}
	// A key that was promised to a row that did not go in must not be used.
	clear(s.tx.promised)
	if err := s.undangle(order, asCame, settled); err != nil {
		return false, err
	}
	for _, done := range settled {
		if done {
			return true, nil
		}
	}
	return false, nil
}

// decideCollision merges one of a circle with the row that has its unique key, or sets
// it aside.
func (s *settler) decideCollision(k docKey, d messages.Document, why string) error {
	s.at = k
	a, err := s.applier(s.byName[k.table])
	if err != nil {
		return err
	}
	if a.p.options.Unique != SetAside {
		if done, err := s.mergeWhole(a, &d); err != nil || done {
			return err
		}
	}
	a.reason = why
	return a.file(&d, dead)
}

// reserve chooses the local key of a row that is not in yet and promises it, so that
// the others of its circle can refer to it.
func (s *settler) reserve(k docKey, docs map[docKey]messages.Document) error {
	p := s.byName[k.table]
	d := docs[k]
	if p.surrogate != "" {
		n, ok := d.Fields[p.surrogate].(int64)
		c := quote(p.surrogate)
		used := 0
		if ok && p.auto && n > maxSurrogate {
			used = 1
		} else if ok {
			if err := s.tx.row(`SELECT count(*) FROM `+p.name+` WHERE `+c+` = ?`, n).Scan(&used); err != nil {
				return err
			}
			for o, other := range docs { // another of the circle may have the same number
				if m, is := other.Fields[p.surrogate].(int64); is && o.table == k.table && o.id < k.id && m == n {
					used++
				}
			}
		}
		if !ok || used > 0 {
			if err := s.tx.row(`SELECT coalesce(max(`+c+`), 0) + 1 FROM `+p.name+` WHERE `+c+` < ?`, int64(maxSurrogate)).Scan(&n); err != nil {
				return err
			}
			for o, other := range docs {
				if m, is := other.Fields[p.surrogate].(int64); is && o.table == k.table && m >= n && m < maxSurrogate {
					n = m + 1
				}
			}
			fields := make(map[string]any, len(d.Fields))
			maps.Copy(fields, d.Fields)
			fields[p.surrogate] = n
			d.Fields = fields
			docs[k] = d
		}
	}
	for _, c := range p.children {
		child := s.byName[c.child.Name]
		for i := range child.refs {
			r := &child.refs[i]
			if r.parent != p.t || r.fk.ID != c.fk.ID {
				continue
			}
			key := make([]any, len(r.fk.ParentColumns))
			for n, col := range r.fk.ParentColumns {
				key[n] = toSQL(d.Fields[p.column(col)])
			}
			s.tx.promised[r.keySQL+"\x00"+k.id] = key
		}
	}
	return nil
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

// undangle takes rows of a circle out again whose partner did not go in after all
// (it collided, or did not fit); their documents go on waiting, as they came.
func (s *settler) undangle(order []docKey, docs map[docKey]messages.Document, settled map[docKey]bool) error {
	for again := true; again; {
		again = false
		for _, k := range order {
			p := s.byName[k.table]
			row, err := p.rowByID(s.tx, k.id)
			if err != nil {
				return err
			}
			if row == nil || !slices.ContainsFunc(row.parents, func(o parentOf) bool { return o.dangling }) {
				continue
			}
			d := docs[k]
			settled[k] = false
			s.at = k
			if err := s.tx.remove(p, k.id); err != nil {
				return err
			}
			a, err := s.applier(p)
			if err != nil {
				return err
			}
			delete(a.rows, k.id)
			a.reason = "waits for a row that could not be applied"
			if err := a.file(&d, waiting); err != nil {
				return err
			}
			again = true
		}
	}
	return nil
}
