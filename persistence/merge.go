package persistence

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// Two devices create the tag "home". The documents are two, and only one row can be
// here: the smaller document id lives on, on every device the same. The children of
// the other move to it, and its tombstone names the survivor, so that whoever still
// refers to it is led there.

var errNoHolder = errors.New("a unique key is taken and no row has it")

// maxHolders bounds how many rows one document can push out of the way: one a
// unique key.
const maxHolders = 64

// survivor follows the merges of a document to the one that lives on; "" when it
// was not merged, or in a circle, where nobody does.
func (t *tx) survivor(table, id string) (string, error) {
	last := ""
	for range 100 {
		var next string
		ok, err := found(t.row(`SELECT survivor FROM tidemark_tombstones WHERE tableName = ? AND clientId = ? AND survivor <> ''`, table, id).Scan(&next))
		if err != nil || !ok || next == id {
			return last, err
		}
		last, id = next, next
	}
	return "", nil
}

// edited marks a row as changed by us, now.
func (a *applier) edited(id string) error {
	if r := a.rows[id]; r != nil {
		r.dirty = true
		a.know(id, r)
	}
	return a.tx.exec(`UPDATE `+a.p.name+` SET isDirty = 1, updatedBy = ?,
		updatedOn = max(coalesce(updatedOn, 0) + 1, (SELECT `+now+` FROM tidemark_state)) WHERE clientId = ?`, a.me, id)
}

// holders finds the rows that have a unique key which a statement wants. The
// triggers that watch over INSERT OR REPLACE note them: the statement is tried with
// those awake, as one that changes nothing, and taken back.
func (a *applier) holders(query string, args []any, self string) ([]string, error) {
	// What the application's ignored inserts have left there since the last sweep is no answer.
	for _, q := range []string{`SAVEPOINT tidemark_holders`, `DELETE FROM tidemark_replaced`, `UPDATE tidemark_state SET applying = 0`} {
		if err := a.tx.exec(q); err != nil {
			return nil, err
		}
	}
	var ids []string
	_, err := a.tx.run(query, args...)
	if err == nil {
		err = a.tx.each(`SELECT DISTINCT clientId FROM tidemark_replaced WHERE tableName = ? AND clientId <> ? ORDER BY clientId`, []any{a.p.t.Name, self},
			func(scan func(...any) error) error {
				var id string
				err := scan(&id)
				ids = append(ids, id)
				return err
			})
	} else if rowsFault(err) {
		err = nil // the application's triggers refuse it: then nobody can tell
	}
	if err != nil {
		return nil, err
	}
	for _, q := range []string{`ROLLBACK TO tidemark_holders`, `RELEASE tidemark_holders`} {
		if err := a.tx.exec(q); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// whole does all of work, or undoes what it has done when it answers false.
func (s *settler) whole(work func() (bool, error)) (bool, error) {
	if err := s.tx.exec(`SAVEPOINT tidemark_whole`); err != nil {
		return false, err
	}
	counts, changed := s.out.Counts, len(s.changed)
	counts.Tables = maps.Clone(counts.Tables)
	done, err := work()
	if err != nil {
		return false, err
	}
	if done {
		return true, s.tx.exec(`RELEASE tidemark_whole`)
	}
	for _, q := range []string{`ROLLBACK TO tidemark_whole`, `RELEASE tidemark_whole`} {
		if err := s.tx.exec(q); err != nil {
			return false, err
		}
	}
	s.out.Counts = counts
	clear(s.tx.keys)
	again := map[string][]messages.Document{}
	for _, k := range s.changed[changed:] {
		delete(s.appliers[k.table].rows, k.id)
		again[k.table] = append(again[k.table], messages.Document{ID: k.id})
	}
	s.changed = s.changed[:changed]
	for table, docs := range again {
		if err := s.appliers[table].look(docs); err != nil {
			return false, err
		}
	}
	return false, nil
}

// mergeWhole merges a document with the rows in its way, or changes nothing.
func (s *settler) mergeWhole(a *applier, d *messages.Document) (bool, error) {
	return s.whole(func() (bool, error) {
		s.orphans = nil
		for range maxHolders {
			again, err := s.merge(a, d)
			if errors.Is(err, errNoHolder) {
				return false, nil
			}
			if err != nil || !again {
				return len(s.orphans) == 0, err
			}
		}
		return false, nil
	})
}

// merge decides a document that meets the unique key of other rows. again: those
// rows are out of the way, try the document once more; otherwise it is settled.
func (s *settler) merge(a *applier, d *messages.Document) (again bool, err error) {
	cols, vals, out, err := a.values(d)
	if err != nil || out != applied {
		return false, err
	}
	var query string
	var args []any
	if a.rows[d.ID] == nil {
		query, args, _ = a.insertion("INSERT OR IGNORE INTO ", d, cols, vals)
	} else {
		var set []string
		for i, c := range cols {
			if pc := &a.p.cols[c]; !pc.surrogate {
				set, args = append(set, pc.quoted+" = ?"), append(args, vals[i])
			}
		}
		query, args = "UPDATE OR IGNORE "+a.p.name+" SET "+strings.Join(set, ", ")+" WHERE clientId = ?", append(args, d.ID)
	}
	ids, err := a.holders(query, args, d.ID)
	if err != nil {
		return false, err
	}
	if len(ids) == 0 {
		return false, errNoHolder
	}
	if ids[0] < d.ID {
		return false, s.lose(a, d, ids[0])
	}
	for _, id := range ids {
		orphans, err := s.bringDown(a, id, d.ID)
		if err != nil {
			return false, err
		}
		s.wait(orphans, docKey{a.p.t.Name, d.ID})
	}
	row, err := s.itself(a, d)
	if err != nil {
		return false, err
	}
	done, err := s.retry(a, row)
	if row != d {
		s.unpromise(a.p, d.ID)
	}
	if err != nil || !done {
		return !done, err
	}
	if a.rows[d.ID] == nil {
		return false, nil // it did not fit after all: the orphans say so
	}
	if err := a.edited(d.ID); err != nil {
		return false, err
	}
	return false, s.settleOrphans(a, d.ID)
}

// lose gives way to a row that is here: the document is deleted in its favour.
func (s *settler) lose(a *applier, d *messages.Document, survivor string) error {
	if a.rows[d.ID] != nil { // an older version of it is here, under another key
		if err := s.tx.exec(`UPDATE `+a.p.name+` SET serverId = clientId, serverVersion = ? WHERE clientId = ?`, d.UpdateTime, d.ID); err != nil {
			return err
		}
		orphans, err := s.bringDown(a, d.ID, survivor)
		if err != nil {
			return err
		}
		if err := s.moveTo(a, orphans, survivor); err != nil {
			return err
		}
	} else {
		if err := s.tx.exec(`INSERT INTO tidemark_tombstones (tableName, clientId, createdOn, updatedOn, updatedBy, serverId, isDirty, serverVersion, survivor)
			SELECT ?, ?, ?, max(?, `+now+`), ?, ?, 1, ?, ? FROM tidemark_state WHERE true
			ON CONFLICT (tableName, clientId) DO UPDATE SET updatedOn = max(updatedOn, excluded.updatedOn), serverId = excluded.serverId, isDirty = 1,
			serverVersion = excluded.serverVersion, survivor = excluded.survivor`,
			a.p.t.Name, d.ID, d.CreatedOn, d.UpdatedOn+1, a.me, d.ID, d.UpdateTime, survivor); err != nil {
			return err
		}
		a.tombs = true
	}
	if err := a.keepConflict(nil, d, "merged", "it has the same unique key as document "+survivor+", which lives on"); err != nil {
		return err
	}
	if err := a.edited(survivor); err != nil {
		return err
	}
	return a.file(d, applied)
}

// orphan is a child of a row that was merged into another.
type orphan struct {
	child childRef
	id    string
}

// bringDown deletes a row in favour of another one, keeps it as a conflict, and
// returns its children.
func (s *settler) bringDown(a *applier, id, survivor string) ([]orphan, error) {
	row, err := a.p.rowByID(s.tx, id)
	if err != nil || row == nil {
		return nil, err
	}
	orphans, err := s.childrenOf(a.p, id)
	if err != nil {
		return nil, err
	}
	d := a.p.document(row, row.updatedBy)
	if err := a.keepConflict(row, &d, "merged", "it has the same unique key as document "+survivor+", which lives on"); err != nil {
		return nil, err
	}
	if err := s.tx.remove(a.p, id); err != nil {
		return nil, err
	}
	a.know(id, nil)
	s.unpromise(a.p, id)
	a.tombs = true
	var server any
	if row.serverID != "" {
		server = row.serverID
	}
	return orphans, s.tx.exec(`INSERT INTO tidemark_tombstones (tableName, clientId, createdOn, updatedOn, updatedBy, serverId, isDirty, serverVersion, survivor)
		SELECT ?, ?, ?, max(?, `+now+`), ?, ?, 1, ?, ? FROM tidemark_state WHERE true
		ON CONFLICT (tableName, clientId) DO UPDATE SET updatedOn = max(updatedOn, excluded.updatedOn), isDirty = 1, survivor = excluded.survivor`,
		a.p.t.Name, id, row.createdOn, row.updatedOn+1, a.me, server, row.serverVersion, survivor)
}

func (s *settler) childrenOf(p *plan, id string) ([]orphan, error) {
	return s.childrenBy(p.children, p, id)
}

// childrenBy are a row's children by some of the foreign keys that refer to its table.
func (s *settler) childrenBy(keys []childRef, p *plan, id string) ([]orphan, error) {
	var out []orphan
	for _, c := range keys {
		match := make([]string, len(c.fk.Columns))
		for i, col := range c.fk.Columns {
			match[i] = "p." + quote(c.fk.ParentColumns[i]) + " = c." + quote(col) // the parent's collation counts
		}
		if err := s.tx.each(`SELECT c.clientId FROM `+p.name+` p JOIN `+quote(c.child.Name)+` c ON `+strings.Join(match, " AND ")+` WHERE p.clientId = ? ORDER BY c.clientId`,
			[]any{id}, func(scan func(...any) error) error {
				o := orphan{child: c}
				err := scan(&o.id)
				if o.id != id || c.child != p.t {
					out = append(out, o)
				}
				return err
			}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// wait keeps children for a row that is about to be inserted.
func (s *settler) wait(orphans []orphan, parent docKey) {
	if s.orphans == nil {
		s.orphans = map[docKey][]orphan{}
	}
	s.orphans[parent] = append(s.orphans[parent], orphans...)
}

func (s *settler) settleOrphans(a *applier, id string) error {
	k := docKey{a.p.t.Name, id}
	list := s.orphans[k]
	delete(s.orphans, k)
	return s.moveTo(a, list, id)
}

// moveTo makes children refer to another parent. A child that then has a unique key
// twice is merged in its turn.
func (s *settler) moveTo(parent *applier, orphans []orphan, id string) error {
	for _, o := range orphans {
		key, err := parent.keyOf(o.child.fk.ParentColumns, id)
		if err != nil {
			return err
		}
		if key == nil {
			continue
		}
		a, err := s.applier(s.byName[o.child.child.Name])
		if err != nil {
			return err
		}
		set := make([]string, len(key))
		for i, c := range o.child.fk.Columns {
			set[i] = quote(c) + " = ?"
		}
		statement := func(verb string) string {
			return verb + a.p.name + " SET " + strings.Join(set, ", ") + " WHERE clientId = ?"
		}
		args := append(slices.Clone(key), o.id)
		before, err := a.naturalKeys(o.id) // its own key may be made of its parent's
		if err != nil {
			return err
		}
		if _, err := s.tx.run(statement("UPDATE"+a.p.or+" "), args...); err == nil {
			if err := a.edited(o.id); err != nil {
				return err
			}
			if err := a.follow(o.id, before); err != nil {
				return err
			}
			continue
		} else if !collision(err) {
			return err
		}
		ids, err := a.holders(statement("UPDATE OR IGNORE "), args, o.id)
		if err != nil {
			return err
		}
		for _, h := range ids {
			loser, winner := h, o.id
			if h < o.id {
				loser, winner = o.id, h
			}
			grand, err := s.bringDown(a, loser, winner)
			if err != nil {
				return err
			}
			if winner == o.id {
				own, err := s.childrenOf(a.p, o.id) // they may meet the keys of the loser's
				if err != nil {
					return err
				}
				if _, err := s.tx.run(statement("UPDATE"+a.p.or+" "), args...); err != nil && !collision(err) {
					return err
				}
				if err := s.moveTo(a, own, o.id); err != nil {
					return err
				}
			}
			if err := a.edited(winner); err != nil {
				return err
			}
			if err := s.moveTo(a, grand, winner); err != nil {
				return err
			}
			if loser == o.id {
				break
			}
		}
	}
	return nil
}

// mergedElsewhere applies the tombstone of a row that another device merged: its
// children move to the survivor.
func (s *settler) mergedElsewhere(a *applier, d *messages.Document) (bool, error) {
	survivor := d.Survivor
	if next, err := s.tx.survivor(a.p.t.Name, survivor); err != nil {
		return false, err
	} else if next != "" {
		survivor = next
	}
	if survivor == d.ID {
		return false, nil
	}
	there, err := a.p.rowByID(s.tx, survivor)
	if err != nil || there == nil {
		return false, err
	}
	row, err := a.p.rowByID(s.tx, d.ID)
	if err != nil {
		return false, err
	}
	if row == nil {
		if err := a.tombstone(d); err != nil {
			return false, err
		}
		return true, a.file(d, applied)
	}
	if row.dirty && (a.p.lacks(d, row) || !a.p.same(row, d)) { // a tombstone may have no fields
		if err := a.keepConflict(row, d, "server", "changed here after it was merged into document "+survivor+" there"); err != nil {
			return false, err
		}
	}
	orphans, err := s.childrenOf(a.p, d.ID)
	if err != nil {
		return false, err
	}
	if err := s.tx.remove(a.p, d.ID); err != nil {
		return false, err
	}
	a.know(d.ID, nil)
	if err := a.tombstone(d); err != nil {
		return false, err
	}
	if err := s.moveTo(a, orphans, survivor); err != nil {
		return false, err
	}
	return true, a.file(d, applied)
}
