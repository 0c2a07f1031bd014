package persistence

import (
	"fmt"
	"slices"
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
	_, _, out, err = a.values(d)
	if err != nil || out == waiting && !d.Deleted {
		return out, true, err
	}
	unfit := "" // the table takes it no more: the rebuild has converted the row
	if out == dead {
		unfit = a.reason
	}
	where, args, err := a.identify(d)
	if err != nil || len(where) == 0 {
		return 0, false, err
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
	same := a.p.same(row, d) && !a.p.filled(d, row)
	// A version that came after the last complete read is not what the rebuild copied.
	newer := a.till > 0 && d.UpdateTime > a.till && d.Stamp.Device != a.me && d.UpdatedBy != a.me
	if newer { // unless it has come in all the same: in a snapshot, with its maker's last upload
		seen, err := a.tx.seen()
		if err != nil {
			return 0, false, err
		}
		newer = d.Stamp.Seq == 0 || d.Stamp.Seq > seen[d.Stamp.Device]
	}
	created := d.CreatedOn > a.till/1000 && d.CreatedOn <= d.UpdateTime/1000+wrongBy.Milliseconds()
	claim := func(version int64, dirty bool, on int64) error {
		a.know(id, nil)
		a.know(d.ID, &rowRef{dirty: dirty, version: version})
		_, err := a.tx.run(`UPDATE `+a.p.name+` SET clientId = ?, serverId = ?, serverVersion = ?, isDirty = ?, createdOn = ?, updatedOn = ? WHERE clientId = ?`,
			d.ID, d.ID, version, dirty, d.CreatedOn, on, id)
		return err
	}
	switch {
	case d.Deleted && !newer:
		return 0, false, nil // its number was given again
	case newer && !same && created && (a.p.surrogate != "" || unfit != "" && a.numbered(d)):
		return 0, false, nil // another device's new row has the number, too
	case unfit != "" && !d.Deleted:
		return applied, true, a.converted(d, row, newer, claim, unfit)
	case newer: // it meets an older version, whose edit, if it is one, came before
		edited := row.updatedOn > row.createdOn || a.p.filled(d, row) || a.p.options.Policy == ClientWins
		on := d.UpdatedOn - 1
		if row.updatedOn > row.createdOn { // since the rebuild
			on = row.updatedOn
		}
		if err := claim(d.UpdateTime-1, edited && !same, on); err != nil {
			return 0, true, err
		}
		if !edited && !same {
			if err := a.keepConflict(row, d, "server", "the table was rebuilt here, and the document had changed since the last sync"); err != nil {
				return 0, true, err
			}
		}
		out, err = a.one(d)
		return out, true, err
	case same:
		out, err = a.adopt(d, id)
		return out, true, err
	}
	if err := claim(d.UpdateTime, true, max(row.updatedOn, d.UpdatedOn+1)); err != nil {
		return 0, true, err
	}
	if a.gained != nil { // what the rebuild added is no edit where it holds nothing
		if out, err := a.fill(d, a.rows[d.ID]); err != nil || out != applied && out != skipped {
			return out, true, err
		}
		if row, err = a.p.rowByID(a.tx, d.ID); err != nil || row == nil {
			return 0, true, err
		}
		if a.p.same(row, d) && !a.p.filled(d, row) {
			out, err = a.update(d, 0)
			return out, true, err
		}
	}
	if a.till == 0 { // nobody knows which of the two is the older one
		return applied, true, a.keepConflict(row, d, "local", "the table was rebuilt here")
	}
	return applied, true, nil
}

// numbered reports whether a document comes from a device where its key is a local number.
func (a *applier) numbered(d *messages.Document) bool {
	return len(a.p.t.PrimaryKey) == 1 && slices.ContainsFunc(a.p.cols, func(c plannedColumn) bool {
		_, number := d.Fields[c.Name].(int64)
		return c.PK > 0 && number && fits(c.Column, d.Fields[c.Name]) != nil
	})
}

// converted gives a row the id of a document that does not fit the rebuilt table: the row as
// the rebuild has converted it goes up, with what fits of a version that is newer.
func (a *applier) converted(d *messages.Document, row *localRow, newer bool, claim func(version int64, dirty bool, on int64) error, why string) error {
	if err := claim(d.UpdateTime, true, max(row.updatedOn, d.UpdatedOn+1)); err != nil || !newer {
		if err == nil && a.till == 0 {
			err = a.keepConflict(row, d, "local", "the table was rebuilt here")
		}
		return err
	}
	part := *d
	part.Fields = map[string]any{}
	for i := range a.p.cols {
		c := &a.p.cols[i]
		v, ok := d.Fields[c.Name]
		if _, isID := v.(string); ok && (c.ref < 0 || v == nil || isID) && c.PK == 0 && fits(c.Column, v) == nil {
			part.Fields[c.Name] = v
		}
	}
	winner := "server"
	if out, err := a.update(&part, max(row.updatedOn, d.UpdatedOn)+1); err != nil {
		return err
	} else if out != applied {
		winner = "local"
	}
	return a.keepConflict(row, d, winner, "the table was rebuilt here, and does not take the document any more: "+why)
}

// identify selects the row that was a document's: by its primary key, unless the document
// comes from before the table had one. What does not fit is compared as SQLite converts it.
func (a *applier) identify(d *messages.Document) (where []string, args []any, err error) {
	key := *d
	if slices.ContainsFunc(a.p.cols, func(c plannedColumn) bool { _, ok := d.Fields[c.Name]; return ok && c.PK > 0 }) {
		key.Fields = map[string]any{}
		for _, c := range a.p.cols {
			if v, ok := d.Fields[c.Name]; ok && c.PK > 0 {
				key.Fields[c.Name] = v
			}
		}
	}
	cols, vals, out, err := a.values(&key)
	switch {
	case err != nil || out == waiting:
		return nil, nil, err
	case out == dead:
		cols, vals = nil, nil
		for i := range a.p.cols {
			if v, ok := key.Fields[a.p.cols[i].Name]; ok {
				cols, vals = append(cols, i), append(vals, toSQL(v))
			}
		}
	}
	for i, c := range cols {
		pc, v := &a.p.cols[c], vals[i]
		if _, strange := v.(messages.Unsupported); strange {
			return nil, nil, nil
		}
		if n, ok := v.(int64); ok && pc.PK > 0 && len(a.p.t.PrimaryKey) == 1 { // it was a local number, if it is none now
			if v, err = a.renumbered(d.ID, n); err != nil {
				return nil, nil, err
			}
		}
		where, args = append(where, pc.quoted+" IS ?"), append(args, v)
	}
	return where, args, nil
}

// renumbered is the local number of a document's row, n where it has the document's own.
func (a *applier) renumbered(id string, n int64) (int64, error) {
	_, err := found(a.tx.row(`SELECT localKey FROM tidemark_renumbered WHERE tableName = ? AND clientId = ?`, a.p.t.Name, id).Scan(&n))
	return n, err
}

// unclaimed is the local number that a document's row has, which has lost its identity;
// taken: another row has it.
func (a *applier) unclaimed(d *messages.Document, n int64) (number int64, taken bool, err error) {
	if n, err = a.renumbered(d.ID, n); err != nil {
		return 0, false, err
	}
	err = a.tx.row(`SELECT EXISTS (SELECT 1 FROM `+a.p.name+` WHERE `+quote(a.p.surrogate)+` = ? AND (isDirty = 0 OR serverId IS NOT NULL))`, n).Scan(&taken)
	return n, taken, err
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

// notDefault selects rows that hold something else in a column than ADD COLUMN
// puts there.
func notDefault(c Column) string {
	d := "NULL"
	if c.Default.Valid {
		d = defaultSQL(c)
	}
	for _, t := range tokens(d) {
		if t.kind == bareName && !t.is("NULL") && !t.is("TRUE") && !t.is("FALSE") {
			return "true" // CURRENT_TIMESTAMP and expressions: nobody can tell
		}
	}
	return quote(c.Name) + " IS NOT (" + d + ")"
}

// copies selects rows that have the clientId of another one before them.
func (t *Table) copies() string {
	var key []string
	for _, c := range t.key() {
		key = append(key, t.name(c))
	}
	k := strings.Join(key, ", ")
	return "(" + k + ") IN (SELECT " + k + " FROM (SELECT " + k + ", row_number() OVER (PARTITION BY clientId ORDER BY " + k + ") AS tidemark_copy FROM " + quote(t.Name) +
		" WHERE clientId IS NOT NULL) WHERE tidemark_copy > 1)"
}

// refer gives rows the local keys of their parents, whose table was taken back and has been
// read: while it was excluded here, and no more elsewhere, documents brought their ids.
func (s *settler) refer() error {
	for _, p := range s.plans {
		for i := range p.refs {
			r := &p.refs[i]
			var back bool
			if err := s.tx.row(`SELECT EXISTS (SELECT 1 FROM tidemark_DownloadedTracker WHERE tableName = ? AND downloadedTill IS NULL)`, r.parent.Name).Scan(&back); err != nil {
				return err
			}
			if back && len(r.cols) == 1 { // of several, each has its value
				if err := s.referTo(p, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *settler) referTo(p *plan, r *ref) error {
	a, err := s.applier(p)
	if err != nil {
		return err
	}
	column := quote(r.fk.Columns[0])
	parents := map[string]string{}
	if err := s.tx.each("SELECT clientId, +"+column+" FROM "+p.name+" AS c WHERE isDirty = 1 AND clientId IS NOT NULL AND typeof("+column+") = 'text' AND NOT EXISTS (SELECT 1 FROM "+
		quote(r.parent.Name)+" AS p WHERE p."+quote(r.fk.ParentColumns[0])+" = c."+column+")", nil, func(scan func(...any) error) error {
		var id, parent string
		err := scan(&id, &parent)
		parents[id] = parent
		return err
	}); err != nil {
		return err
	}
	for id, parent := range parents {
		key, err := a.parentKey(r, parent)
		if err != nil {
			return err
		}
		if key == nil {
			continue
		}
		before, err := a.naturalKeys(id)
		if err != nil {
			return err
		}
		if err := s.tx.exec("UPDATE OR IGNORE "+p.name+" SET "+column+" = ? WHERE clientId = ?", key[0], id); err != nil {
			return err
		}
		if err := a.follow(id, before); err != nil {
			return err
		}
	}
	return nil
}

// adoptChildren makes rows dirty whose parents' table is taken back: while it was excluded,
// their documents got its bare keys.
func (a *attacher) adoptChildren() error {
	for _, t := range a.schema.Tables {
		for _, fk := range t.ForeignKeys {
			p := a.schema.Table(fk.Parent)
			if p == nil || !a.stored[p.Name].excluded {
				continue
			}
			refers := make([]string, len(fk.Columns))
			for i, c := range fk.Columns {
				refers[i] = quote(c) + " IS NOT NULL"
			}
			if err := a.suspended(t, func() error { // stamps stay: an edit made elsewhere since then still wins
				n, err := a.exec("UPDATE " + quote(t.Name) + " SET isDirty = 1 WHERE isDirty IS NOT 1 AND " + strings.Join(refers, " AND "))
				a.out.Rows += n
				return err
			}); err != nil {
				return fmt.Errorf("table %q: %w", t.Name, err)
			}
		}
	}
	return nil
}
