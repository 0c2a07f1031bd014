package persistence

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// collisions decides what still meets a unique key after everything has arrived.
// Rows that swapped their values (or passed them round) are no collision: they are
// taken out and put back together. What remains is set aside with the reason.
func (s *settler) collisions() error {
	type moved struct {
		a      *applier
		doc    messages.Document
		row    *localRow // as it was
		kin    []kin
		merger // of a row that was changed here and is merged with the document
		was    messages.Document
	}
	var set []moved
	for _, p := range s.plans {
		if _, err := s.each(p, "collides", func(a *applier, d *messages.Document) (bool, error) {
			row, err := p.rowByID(s.tx, d.ID)
			if err != nil || row == nil {
				return false, err
			}
			was, both := *d, merger{}
			if row.dirty { // what was changed here has no part in it, unless that lost, or both go together
				lacks := p.lacks(d, row)
				switch {
				case !p.options.Policy.keepsBase():
					if wins, _ := p.options.localWins(row.updatedOn, a.me, d.UpdatedOn, d.UpdatedBy); wins {
						return false, nil
					}
					if lacks { // what it does not have goes up
						both = merger{doc: d, reason: "changed on both sides; the later edit wins"}
						if !p.same(row, d) {
							both.lost = "all"
						}
					}
				case !p.same(row, d):
					cols, vals, out, err := a.values(d)
					if err != nil {
						return false, err
					}
					if both, err = a.merged(row, d, cols, vals, out); err != nil || both.doc == nil {
						return false, err
					}
					d, both.theirs = both.doc, both.theirs && !lacks
				case lacks:
					both = merger{doc: d}
				}
			}
			children, err := s.childrenOf(p, d.ID)
			if err != nil {
				return false, err
			}
			kin, err := s.kin(a, d.ID, children)
			set = append(set, moved{a, *d, row, kin, both, was})
			return false, err
		}); err != nil {
			return err
		}
	}
	for len(set) > 0 {
		var failed []string
		done, err := s.whole(func() (bool, error) {
			for _, m := range set {
				s.at = docKey{m.a.p.t.Name, m.doc.ID}
				if err := s.tx.remove(m.a.p, m.doc.ID); err != nil {
					return false, err
				}
				m.a.know(m.doc.ID, nil)
				clear(m.a.taken)
			}
			defer clear(s.tx.promised)
			docs := map[docKey]messages.Document{}
			for _, m := range set { // they may refer to each other
				d := m.doc
				d.Fields = m.a.p.over(m.row.values, m.doc.Fields)
				docs[docKey{d.Table, d.ID}] = d
			}
			needs := map[docKey][]docKey{}
			for k := range docs {
				needs[k] = nil
			}
			c := s.circle(needs, docs)
			if err := s.reserve(c); err != nil {
				return false, err
			}
			for _, m := range set {
				d := c.docs[docKey{m.doc.Table, m.doc.ID}]
				out, err := m.a.insertRaw(&d, m.row.values)
				if err != nil {
					return false, err
				}
				if out != applied {
					failed = append(failed, m.doc.ID)
				}
			}
			return len(failed) == 0, nil
		})
		if err != nil {
			return err
		}
		if !done {
			set = slices.DeleteFunc(set, func(m moved) bool { return slices.Contains(failed, m.doc.ID) })
			continue
		}
		var all []kin
		for i := range set {
			all = append(all, set[i].kin...)
		}
		if err := s.repoint(all); err != nil {
			return err
		}
		for i := range set {
			s.at = docKey{set[i].a.p.t.Name, set[i].doc.ID}
			if m := set[i]; m.merger.doc != nil {
				if err := m.a.putTogether(m.row, &m.was, m.merger); err != nil {
					return err
				}
			} else if m.row.dirty && !m.a.p.same(m.row, &m.doc) {
				if err := m.a.keepConflict(m.row, &m.doc, "server", "changed on both sides; the later edit wins"); err != nil {
					return err
				}
			}
			if err := set[i].a.file(&set[i].doc, applied); err != nil {
				return err
			}
		}
		break
	}
	s.final = true
	for _, a := range s.appliers {
		a.final = true
	}
	for _, p := range s.plans { // their parents have not come: one side wins as a whole
		if !p.options.Policy.keepsBase() {
			continue
		}
		if _, err := s.each(p, "waiting", func(a *applier, d *messages.Document) (bool, error) {
			if r := a.rows[d.ID]; r == nil || !r.dirty {
				return false, nil
			}
			return s.retry(a, d)
		}); err != nil {
			return err
		}
	}
	if moved, err := s.circles(true); err != nil {
		return err
	} else if moved {
		if err := s.inbox(); err != nil {
			return err
		}
	}
	settled := false
	for _, p := range s.plans {
		moved, err := s.each(p, "collides", func(a *applier, d *messages.Document) (bool, error) {
			done, err := s.retry(a, d)
			if err != nil || done {
				return done, err
			}
			if p.options.Unique != SetAside {
				if done, err = s.mergeWhole(a, d); err != nil || done {
					return done, err
				}
			}
			return true, a.file(d, dead)
		})
		if err != nil {
			return err
		}
		settled = settled || moved
	}
	if settled { // what waited for them
		return s.inbox()
	}
	return nil
}

// putTogether makes a row that was merged while it was put back an edit of ours, on top
// of the document.
func (a *applier) putTogether(row *localRow, d *messages.Document, m merger) error {
	winner := "server"
	if !m.theirs {
		if m.result != nil {
			winner = "merged"
		}
		if err := a.tx.exec(`UPDATE `+a.p.name+` SET isDirty = 1, updatedBy = ?, updatedOn = ? WHERE clientId = ?`, a.me, max(row.updatedOn, d.UpdatedOn)+1, d.ID); err != nil {
			return err
		}
		a.know(d.ID, &rowRef{dirty: true, version: d.UpdateTime})
		if err := a.goOnFrom(d); err != nil {
			return err
		}
	}
	if m.lost == "" {
		return nil
	}
	return a.keepConflict(row, d, winner, m.reason)
}

// kin is a row that refers to another one.
type kin struct {
	parent *applier
	id     string // the parent's
	orphan
}

// kin are some children of a row and, where their keys are made of its, theirs in turn:
// parents first. Only before anything moves do values say who belongs to whom.
func (s *settler) kin(parent *applier, id string, children []orphan) ([]kin, error) {
	var out []kin
	seen := map[docKey]bool{}
	var add func(parent *applier, id string, children []orphan) error
	add = func(parent *applier, id string, children []orphan) error {
		for _, o := range children {
			out = append(out, kin{parent, id, o})
			k := docKey{o.child.child.Name, o.id}
			if seen[k] {
				continue
			}
			seen[k] = true
			a, err := s.applier(s.byName[k.table])
			if err != nil {
				return err
			}
			made := slices.DeleteFunc(slices.Clone(a.p.children), func(c childRef) bool { return !overlap(c.fk.ParentColumns, o.child.fk.Columns) })
			below, err := s.childrenBy(made, a.p, o.id) // a key without an index takes a scan for each
			if err != nil {
				return err
			}
			if err := add(a, o.id, below); err != nil {
				return err
			}
		}
		return nil
	}
	return out, add(parent, id, children)
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(x string) bool {
		return slices.ContainsFunc(b, func(y string) bool { return fold(x) == fold(y) })
	})
}

// repoint makes rows refer to their parents' keys as they are now: in documents they
// refer by id, so this is no edit. Those whose own keys are made of them may swap
// theirs, too: all step aside first.
func (s *settler) repoint(list []kin) error {
	return s.tx.ourselves(func() error {
		if err := s.stepAside(list); err != nil {
			return err
		}
		for _, o := range list {
			if err := s.setReference(s.byName[o.child.child.Name], o, func(v any) any { return v }); err != nil {
				return err
			}
		}
		return nil
	})
}

// stepAside gives rows keys that are nobody's, for a moment: not what the application allows.
func (s *settler) stepAside(list []kin) (err error) {
	var moves []int
	for n, o := range list {
		child := s.byName[o.child.child.Name]
		if len(list) > 1 && slices.ContainsFunc(child.t.uniqueKeys(), func(u uniqueKey) bool {
			return slices.ContainsFunc(u.terms, func(t keyTerm) bool { return t.column == "" || overlap([]string{t.column}, o.child.fk.Columns) })
		}) {
			moves = append(moves, n)
		}
	}
	if len(moves) == 0 {
		return nil
	}
	var ignored int
	if err := s.tx.row(`PRAGMA ignore_check_constraints`).Scan(&ignored); err != nil {
		return err
	}
	if err := drain(s.tx.quiet, s.tx.conn, `PRAGMA ignore_check_constraints = ON`); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, drain(s.tx.quiet, s.tx.conn, fmt.Sprintf(`PRAGMA ignore_check_constraints = %d`, ignored)))
	}()
	for _, n := range moves {
		if err := s.setReference(s.byName[list[n].child.child.Name], list[n], func(v any) any { return aside(v, list[n].orphan.id, n) }); err != nil {
			return err
		}
	}
	return nil
}

// setReference sets a row's reference to what as makes of its parent's key.
func (s *settler) setReference(child *plan, o kin, as func(any) any) error {
	key, err := o.parent.keyOf(o.child.fk.ParentColumns, o.id)
	if err != nil || len(key) == 0 {
		return err
	}
	set := make([]string, len(key))
	args := make([]any, len(key))
	for i, c := range o.child.fk.Columns {
		set[i], args[i] = quote(c)+" = ?", as(key[i])
	}
	clear(s.tx.keys)
	return s.tx.exec("UPDATE"+child.or+" "+child.name+" SET "+strings.Join(set, ", ")+" WHERE clientId = ?", append(args, o.orphan.id)...)
}

// aside is a value of the same type that no other row has.
func aside(v any, id string, n int) any {
	switch v.(type) {
	case string:
		return id
	case []byte:
		return []byte(id)
	case int64:
		return math.MinInt64 + int64(n)
	case float64:
		return -math.MaxFloat32 - float64(n)*1e30
	default:
		return v
	}
}

// over lays a document's fields over the row's own values, for columns that the
// document does not know.
func (p *plan) over(old []any, fields map[string]any) map[string]any {
	out := make(map[string]any, len(fields))
	maps.Copy(out, fields)
	for i := range p.cols {
		if c := &p.cols[i]; c.surrogate {
			out[c.Name] = old[i]
		}
	}
	return out
}

// insertRaw puts a row back that was taken out: the document's values, and the old
// ones for columns it does not have.
func (a *applier) insertRaw(d *messages.Document, old []any) (outcome, error) {
	out, err := a.insert(d)
	if err != nil || out != applied {
		return out, err
	}
	var set []string
	var args []any
	for i := range a.p.cols {
		c := &a.p.cols[i]
		if _, ok := d.Fields[c.Name]; !ok && old[i] != nil {
			set, args = append(set, c.quoted+" = ?"), append(args, old[i])
		}
	}
	if len(set) == 0 {
		return applied, nil
	}
	return a.put(d.ID, "UPDATE"+a.p.or+" "+a.p.name+" SET "+strings.Join(set, ", ")+" WHERE clientId = ?", append(args, d.ID))
}
