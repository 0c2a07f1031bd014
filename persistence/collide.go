package persistence

import (
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// collisions decides what still meets a unique key after everything has arrived.
// Rows that swapped their values (or passed them round) are no collision: they are
// taken out and put back together. What remains is set aside with the reason.
func (s *settler) collisions() error {
	type moved struct {
		a        *applier
		doc      messages.Document
		old      []any // the row's values of all columns, in the plan's order
		children []orphan
	}
	var set []moved
	for _, p := range s.plans {
		if _, err := s.each(p, "collides", func(a *applier, d *messages.Document) (bool, error) {
			row, err := p.rowByID(s.tx, d.ID)
			if err != nil || row == nil || row.dirty {
				return false, err
			}
			children, err := s.childrenOf(p, d.ID)
			set = append(set, moved{a, *d, row.values, children})
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
			for _, m := range set {
				d := m.doc
				d.Fields = m.a.p.over(m.old, m.doc.Fields)
				out, err := m.a.insertRaw(&d, m.old)
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
		for i := range set {
			s.at = docKey{set[i].a.p.t.Name, set[i].doc.ID}
			if err := s.repoint(set[i].a, set[i].doc.ID, set[i].children); err != nil {
				return err
			}
			if err := set[i].a.file(&set[i].doc, applied); err != nil {
				return err
			}
		}
		break
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

// repoint makes children refer to their parent's key as it is now: in documents
// they refer by id, so this is no edit.
func (s *settler) repoint(parent *applier, id string, children []orphan) error {
	for _, o := range children {
		key, err := parent.keyOf(o.child.fk.ParentColumns, id)
		if err != nil {
			return err
		}
		set := make([]string, len(key))
		for i, c := range o.child.fk.Columns {
			set[i] = quote(c) + " = ?"
		}
		if len(key) == 0 {
			continue
		}
		a, err := s.applier(s.byName[o.child.child.Name])
		if err != nil {
			return err
		}
		before, err := a.naturalKeys(o.id)
		if err != nil {
			return err
		}
		if err := s.tx.exec("UPDATE"+a.p.or+" "+a.p.name+" SET "+strings.Join(set, ", ")+" WHERE clientId = ?", append(slices.Clone(key), o.id)...); err != nil {
			return err
		}
		if err := a.follow(o.id, before); err != nil {
			return err
		}
	}
	return nil
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
