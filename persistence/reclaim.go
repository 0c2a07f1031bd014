package persistence

import (
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// reclaim gives a document back to its row after the application rebuilt the table
// (SQLite's way to change one) and the row lost its identity with the tracked
// columns. The row is the one with the document's primary key – a renumbered
// INTEGER PRIMARY KEY is remembered – or, in a table without one, with the same
// content. What the rebuild changed in it is an edit of ours, unless it copied what
// somebody else had changed or deleted meanwhile.
func (a *applier) reclaim(d *messages.Document) (out outcome, done bool, err error) {
	cols, vals, out, err := a.values(d)
	if err != nil || out != applied {
		return out, out != applied && !d.Deleted, err
	}
	var where []string
	var args []any
	keyed := len(a.p.t.PrimaryKey) > 0
	for i, c := range cols {
		pc := &a.p.cols[c]
		v := vals[i]
		if keyed && pc.PK == 0 {
			continue
		}
		if pc.surrogate {
			var n int64
			if ok, err := found(a.tx.row(`SELECT localKey FROM tidemark_renumbered WHERE tableName = ? AND clientId = ?`, a.p.t.Name, d.ID).Scan(&n)); err != nil {
				return 0, false, err
			} else if ok {
				v = n
			}
		}
		where, args = append(where, pc.quoted+" IS ?"), append(args, v)
	}
	if len(where) == 0 {
		return 0, false, nil
	}
	var id string
	ok, err := found(a.tx.row(`SELECT clientId FROM `+a.p.name+` WHERE isDirty = 1 AND serverId IS NULL AND `+strings.Join(where, " AND ")+` LIMIT 1`, args...).Scan(&id))
	if err != nil || !ok {
		return 0, false, err
	}
	if a.gained != nil { // what the rebuild added is no edit where it holds nothing
		part := *d
		part.ID = id
		if out, err := a.fill(&part, &rowRef{dirty: true}); err != nil || out != applied && out != skipped {
			return out, true, err
		}
	}
	row, err := a.p.rowByID(a.tx, id)
	if err != nil || row == nil {
		return 0, false, err
	}
	same := a.p.same(row, d)
	// A version that came after what the rebuild copied: not even a stale copy of it.
	newer := d.UpdateTime > a.rebuilt && d.Stamp.Device != a.me && d.UpdatedBy != a.me
	claim := func(version int64, dirty int, on int64) error {
		a.know(id, nil)
		a.know(d.ID, &rowRef{dirty: dirty == 1, version: version})
		_, err := a.tx.run(`UPDATE `+a.p.name+` SET clientId = ?, serverId = ?, serverVersion = ?, isDirty = ?, createdOn = ?,
			updatedOn = CASE WHEN updatedOn > ? THEN updatedOn ELSE ? END WHERE clientId = ?`, d.ID, d.ID, version, dirty, d.CreatedOn, on, on, id)
		return err
	}
	switch {
	case d.Deleted && (!newer || !same || len(d.Fields) == 0):
		return 0, false, nil // the number was given again, or what was deleted has been changed here
	case d.Deleted:
		if err := claim(d.UpdateTime-1, 0, d.UpdatedOn-1); err != nil {
			return 0, true, err
		}
		out, err = a.one(d)
		return out, true, err
	case same && !a.p.filled(d, row):
		out, err = a.adopt(d, id)
		return out, true, err
	case newer && !same && a.p.surrogate != "" && d.CreatedOn > a.rebuilt/1000:
		return 0, false, nil // another device's new row has the number, too
	}
	if err := claim(d.UpdateTime, 1, d.UpdatedOn+1); err != nil {
		return 0, true, err
	}
	if !newer || same {
		return applied, true, nil
	}
	if row, err = a.p.rowByID(a.tx, d.ID); err != nil || row == nil {
		return 0, true, err
	}
	if out, err = a.overwrite(row, d); err != nil || out != applied {
		return out, true, err
	}
	return applied, true, a.keepConflict(row, d, "server", "the table was rebuilt here, and the document had been changed since the last sync")
}

// filled reports whether the row holds something, which ADD COLUMN does not put there, in
// a column that the document does not have.
func (p *plan) filled(d *messages.Document, row *localRow) bool {
	for i := range p.cols {
		c := &p.cols[i]
		if _, ok := d.Fields[c.Name]; !ok && !c.surrogate && row.values[i] != nil && !c.isDefault(row.values[i]) {
			return true
		}
	}
	return false
}
