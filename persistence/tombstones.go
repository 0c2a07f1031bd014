package persistence

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// tombstones applies the deletes of a download, children before parents. A parent
// that a live or waiting row still refers to is revived instead: nothing that
// somebody created disappears because somebody else deleted something first.
func (s *settler) tombstones() error {
	held, err := s.heldByWaiting()
	if err != nil {
		return err
	}
	for {
		progress := false
		for _, p := range slices.Backward(s.plans) {
			moved, err := s.each(p, "tombstone", func(a *applier, d *messages.Document) (bool, error) {
				if d.Survivor != "" {
					if done, err := s.mergedElsewhere(a, d); err != nil || done {
						return done, err
					}
				}
				if held[docKey{p.t.Name, d.ID}] {
					return false, nil
				}
				refs, err := s.referrers(p, d.ID)
				if err != nil || len(refs) > 0 {
					return false, err
				}
				return true, s.bury(a, d)
			})
			if err != nil {
				return err
			}
			progress = progress || moved
		}
		if progress {
			continue
		}
		moved, err := s.blocked(held)
		if err != nil || !moved {
			return err
		}
	}
}

// heldByWaiting are the parents that documents still in the inbox refer to.
func (s *settler) heldByWaiting() (map[docKey]bool, error) {
	held := map[docKey]bool{}
	for _, p := range s.plans {
		for _, kind := range []string{"waiting", "collides"} {
			if _, err := s.each(p, kind, func(_ *applier, d *messages.Document) (bool, error) {
				for i := range p.refs {
					if id, ok := d.Fields[p.refs[i].field].(string); ok {
						held[docKey{p.refs[i].parent.Name, id}] = true
						survivor, err := s.tx.survivor(p.refs[i].parent.Name, id)
						if err != nil {
							return false, err
						}
						held[docKey{p.refs[i].parent.Name, survivor}] = survivor != ""
					}
				}
				return false, nil
			}); err != nil {
				return nil, err
			}
		}
	}
	return held, nil
}

// referrers lists the live rows that refer to a row, itself excepted.
func (s *settler) referrers(p *plan, id string) ([]docKey, error) {
	var out []docKey
	for _, c := range p.children {
		match := make([]string, len(c.fk.Columns))
		for i, col := range c.fk.Columns {
			match[i] = "p." + quote(c.fk.ParentColumns[i]) + " = c." + quote(col) // the parent's collation counts
		}
		err := s.tx.each(`SELECT c.clientId FROM `+p.name+` p JOIN `+quote(c.child.Name)+` c ON `+strings.Join(match, " AND ")+` WHERE p.clientId = ?`,
			[]any{id}, func(scan func(...any) error) error {
				var child string
				err := scan(&child)
				if child != id || c.child != p.t {
					out = append(out, docKey{c.child.Name, child})
				}
				return err
			})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// blocked decides the tombstones whose rows are referred to: those that only other
// deleted rows refer to go together, the others are revived.
func (s *settler) blocked(held map[docKey]bool) (bool, error) {
	refs := map[docKey][]docKey{}
	docs := map[docKey]messages.Document{}
	for _, p := range s.plans {
		if _, err := s.each(p, "tombstone", func(a *applier, d *messages.Document) (bool, error) {
			k := docKey{p.t.Name, d.ID}
			r, err := s.referrers(p, d.ID)
			if err != nil {
				return false, err
			}
			if row := a.rows[d.ID]; row != nil && row.dirty {
				mine, err := p.rowByID(s.tx, d.ID)
				if err != nil {
					return false, err
				}
				if wins, _ := p.options.localWins(mine.updatedOn, a.me, d.UpdatedOn, d.UpdatedBy); wins {
					return true, s.bury(a, d) // the edit here beats the delete: it lives, and holds its parents
				}
			}
			refs[k], docs[k] = r, *d
			return false, nil
		}); err != nil {
			return false, err
		}
	}
	if len(docs) == 0 {
		return false, nil
	}
	live := map[docKey]bool{}
	for grown := true; grown; {
		grown = false
		for k, rs := range refs {
			if live[k] {
				continue
			}
			if held[k] || slices.ContainsFunc(rs, func(r docKey) bool { _, going := docs[r]; return !going || live[r] }) {
				live[k] = true
				grown = true
			}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(live), func(a, b docKey) int { return cmp.Or(strings.Compare(a.table, b.table), strings.Compare(a.id, b.id)) }) {
		if held[k] {
			continue
		}
		if done, err := s.makeWay(docs[k], slices.DeleteFunc(refs[k], func(r docKey) bool { _, going := docs[r]; return going && !live[r] })); err != nil || done {
			return done, err
		}
	}
	for _, p := range s.plans { // revive parents first, bury in any order
		for k, d := range docs {
			if k.table != p.t.Name {
				continue
			}
			a, err := s.applier(p)
			if err != nil {
				return false, err
			}
			s.at = k
			if live[k] {
				err = s.revive(a, &d)
			} else {
				err = s.bury(a, &d)
			}
			if err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// makeWay buries a row whose children wait for new parents, which may wait for its unique
// key in their turn. They all go on then, or nothing happens.
func (s *settler) makeWay(d messages.Document, children []docKey) (bool, error) {
	waits := func(k docKey) (n int, err error) {
		err = s.tx.row(`SELECT count(*) FROM tidemark_inbox WHERE tableName = ? AND documentId = ? AND kind IN ('waiting', 'collides')`, k.table, k.id).Scan(&n)
		return n, err
	}
	for _, k := range children {
		if n, err := waits(k); err != nil || n == 0 {
			return false, err
		}
	}
	return s.whole(func() (bool, error) {
		a, err := s.applier(s.byName[d.Table])
		if err != nil {
			return false, err
		}
		s.at = docKey{d.Table, d.ID}
		if err := s.bury(a, &d); err != nil {
			return false, err
		}
		if err := s.inbox(); err != nil {
			return false, err
		}
		for _, k := range children {
			if n, err := waits(k); err != nil || n > 0 {
				return false, err
			}
			row, err := s.byName[k.table].rowByID(s.tx, k.id)
			if err != nil || row != nil && slices.ContainsFunc(row.parents, func(o parentOf) bool { return o.dangling }) {
				return false, err
			}
		}
		return true, nil
	})
}

// bury applies one tombstone: the row goes, unless a later edit of it here beats
// the delete.
func (s *settler) bury(a *applier, d *messages.Document) error {
	row, err := a.p.rowByID(s.tx, d.ID)
	if err != nil {
		return err
	}
	if row == nil || row.serverVersion < d.UpdateTime {
		if row != nil && row.dirty {
			wins, why := a.p.options.localWins(row.updatedOn, a.me, d.UpdatedOn, d.UpdatedBy)
			if wins {
				if err := a.putOnTop(d); err != nil {
					return err
				}
				if err := a.keepConflict(row, d, "local", "changed here and deleted there; "+why); err != nil {
					return err
				}
				return a.file(d, applied)
			}
			if err := a.keepConflict(row, d, "server", "changed here and deleted there; "+why); err != nil {
				return err
			}
		}
		if row != nil {
			if err := s.outside(a, d.ID); err != nil {
				return err
			}
			out, err := a.done(s.tx.delete(a.p, d.ID))
			if err != nil {
				return err
			}
			if out != applied { // a trigger of the application keeps the row
				return a.file(d, dead)
			}
		}
		a.know(d.ID, nil)
		if err := a.agreed(d.ID); err != nil {
			return err
		}
		if err := a.tombstone(d); err != nil {
			return err
		}
	}
	return a.file(d, applied)
}

// outside does with the rows of tables that are not synced what their foreign keys say
// when the row that they refer to goes, where the application enforces them: nobody else does.
func (s *settler) outside(a *applier, id string) error {
	if !s.tx.enforced {
		return nil
	}
	for _, c := range a.p.outside {
		match, null := make([]string, len(c.fk.Columns)), make([]string, len(c.fk.Columns))
		for i, col := range c.fk.Columns {
			match[i] = "p." + quote(c.fk.ParentColumns[i]) + " = " + quote(c.child.Name) + "." + quote(col)
			null[i] = quote(col) + " = NULL"
		}
		var query string
		switch c.fk.OnDelete {
		case "CASCADE":
			query = "DELETE FROM " + quote(c.child.Name)
		case "SET NULL":
			query = "UPDATE " + quote(c.child.Name) + " SET " + strings.Join(null, ", ")
		default:
			continue
		}
		if _, err := s.tx.run(query+" WHERE EXISTS (SELECT 1 FROM "+a.p.name+" p WHERE p.clientId = ? AND "+strings.Join(match, " AND ")+")", id); err != nil {
			if _, err := a.refused(err); err != nil {
				return err
			}
		}
	}
	return nil
}

// revive keeps a deleted parent alive: its last data, as an edit one millisecond
// after the delete.
func (s *settler) revive(a *applier, d *messages.Document) error {
	live := *d
	live.Deleted = false
	row, err := a.p.rowByID(s.tx, d.ID)
	if err != nil || row == nil {
		return err
	}
	if wins, _ := a.p.options.localWins(row.updatedOn, a.me, d.UpdatedOn, d.UpdatedBy); row.dirty && wins {
		return s.bury(a, d) // the edit here revives it by itself
	}
	if row.dirty && !a.p.same(row, d) {
		if err := a.keepConflict(row, d, "server", "deleted there after it was changed here, and revived for its children"); err != nil {
			return err
		}
	}
	out, err := a.update(&live, d.UpdatedOn+1)
	if err != nil {
		return err
	}
	if out != applied { // its last data does not fit here: the row as it is lives on
		if err := s.tx.exec(`UPDATE `+a.p.name+` SET serverId = clientId, serverVersion = ?, isDirty = 1, updatedBy = ?,
			updatedOn = CASE WHEN updatedOn > ? THEN updatedOn ELSE ? END WHERE clientId = ?`, d.UpdateTime, a.me, d.UpdatedOn, d.UpdatedOn+1, d.ID); err != nil {
			return err
		}
	} else if err := s.revived(d); err != nil {
		return err
	}
	return a.file(d, applied)
}

// revived remembers that a row lives only for its children: d is its tombstone.
func (s *settler) revived(d *messages.Document) error {
	return s.tx.exec(`INSERT INTO tidemark_revivals (tableName, clientId, deletedOn, deletedBy, serverVersion) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (tableName, clientId) DO UPDATE SET deletedOn = excluded.deletedOn, deletedBy = excluded.deletedBy,
		serverVersion = excluded.serverVersion`, d.Table, d.ID, d.UpdatedOn, d.UpdatedBy, d.UpdateTime)
}

// withdraw takes revivals back that are not needed any more and that nobody has seen:
// the children for whose sake they were made are gone.
func (s *settler) withdraw() error {
	held, err := s.heldByWaiting()
	if err != nil {
		return err
	}
	for progress := true; progress; {
		progress = false
		for _, p := range slices.Backward(s.plans) {
			a, err := s.applier(p)
			if err != nil {
				return err
			}
			var list []messages.Document // tombstones, as they were
			if err := s.tx.each(`SELECT clientId, deletedOn, deletedBy, serverVersion FROM tidemark_revivals WHERE tableName = ? ORDER BY clientId`, []any{p.t.Name},
				func(scan func(...any) error) error {
					d := messages.Document{Table: p.t.Name, Deleted: true}
					err := scan(&d.ID, &d.UpdatedOn, &d.UpdatedBy, &d.UpdateTime)
					list = append(list, d)
					return err
				}); err != nil {
				return err
			}
			for i := range list {
				done, err := s.withdrawn(a, &list[i], held[docKey{p.t.Name, list[i].ID}])
				if err != nil {
					return err
				}
				progress = progress || done
			}
		}
	}
	return nil
}

func (s *settler) withdrawn(a *applier, d *messages.Document, held bool) (bool, error) {
	forget := func() error {
		return s.tx.exec(`DELETE FROM tidemark_revivals WHERE tableName = ? AND clientId = ?`, d.Table, d.ID)
	}
	row, err := a.p.rowByID(s.tx, d.ID)
	if err != nil {
		return false, err
	}
	if row == nil || !row.dirty || row.updatedOn != d.UpdatedOn+1 || row.serverVersion != d.UpdateTime {
		return false, forget() // it went up, or was edited since
	}
	refs, err := s.referrers(a.p, d.ID)
	if err != nil || held || len(refs) > 0 {
		return false, err
	}
	var sent int
	if err := s.tx.row(`SELECT count(*) FROM tidemark_tokens WHERE instr(journal, ?) > 0`, d.ID).Scan(&sent); err != nil {
		return false, err
	}
	d.CreatedOn = row.createdOn
	if out, err := a.done(s.tx.delete(a.p, d.ID)); err != nil {
		return false, err
	} else if out != applied {
		return false, forget() // a trigger of the application keeps the row: it stays revived
	}
	a.know(d.ID, nil)
	if err := a.agreed(d.ID); err != nil {
		return false, err
	}
	if err := a.tombstone(d); err != nil {
		return false, err
	}
	if sent > 0 { // it may have landed: then the row has to be deleted once more
		if err := s.tx.exec(`UPDATE tidemark_tombstones SET isDirty = 1, updatedOn = ?, updatedBy = ? WHERE tableName = ? AND clientId = ?`, d.UpdatedOn+2, a.me, d.Table, d.ID); err != nil {
			return false, err
		}
	}
	return true, forget()
}
