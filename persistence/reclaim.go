package persistence

import (
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// reclaim gives a document back to its row after the application rebuilt the table
// (SQLite's way to change one) and the row lost its identity with the tracked
// columns. The row is the one with the document's primary key – a renumbered
// INTEGER PRIMARY KEY is remembered – or, in a table without one, with the same
// content. What the rebuild changed in it is an edit of ours.
func (a *applier) reclaim(d *messages.Document) (out outcome, done bool, err error) {
	cols, vals, out, err := a.values(d)
	if err != nil || out != applied {
		return out, out != applied, err
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
	row, err := a.p.rowByID(a.tx, id)
	if err != nil || row == nil {
		return 0, false, err
	}
	if a.p.same(row, d) && !a.p.filled(d, row) {
		out, err = a.adopt(d, id)
		return out, true, err
	}
	if _, err := a.tx.run(`UPDATE `+a.p.name+` SET clientId = ?, serverId = ?, serverVersion = ?, createdOn = ?,
		updatedOn = CASE WHEN updatedOn > ? THEN updatedOn ELSE ? END WHERE clientId = ?`, d.ID, d.ID, d.UpdateTime, d.CreatedOn, d.UpdatedOn, d.UpdatedOn+1, id); err != nil {
		return 0, false, err
	}
	a.know(d.ID, &rowRef{dirty: true, version: d.UpdateTime})
	return applied, true, nil
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
