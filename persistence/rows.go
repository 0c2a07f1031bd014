package persistence

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// values maps a document's fields to the row's columns: the columns it has, in the
// plan's order, and their values. reason says what is in the way.
func (a *applier) values(d *messages.Document) (cols []int, vals []any, out outcome, err error) {
	p := a.p
	cols = make([]int, 0, len(p.cols))
	vals = make([]any, 0, len(p.cols)+7)
	a.moved = false
	for i := range p.cols {
		c := &p.cols[i]
		v, ok := d.Fields[c.Name]
		if !ok {
			continue
		}
		if c.ref >= 0 && v != nil {
			id, isID := v.(string)
			if !isID {
				a.reason = fmt.Sprintf("column %q refers to table %q and the document has no document id there", c.Name, p.refs[c.ref].parent.Name)
				return nil, nil, dead, nil
			}
			key, err := a.parentKey(&p.refs[c.ref], id)
			if err != nil {
				return nil, nil, 0, err
			}
			if key == nil {
				a.missing = id
				a.reason = fmt.Sprintf("waits for its parent, document %s of table %q", id, p.refs[c.ref].parent.Name)
				return nil, nil, waiting, nil
			}
			v = key[0]
		} else if err := fits(c.Column, v); err != nil {
			if c.surrogate { // a local number: SQLite gives one
				continue
			}
			a.reason = err.Error()
			return nil, nil, dead, nil
		}
		if v = toSQL(v); c.ref < 0 {
			v = stored(c.Column, v)
		}
		cols, vals = append(cols, i), append(vals, v)
	}
	for i := range p.refs {
		r := &p.refs[i]
		if len(r.cols) == 1 {
			if p.cols[r.cols[0]].ref == i {
				continue
			}
		}
		id, ok := d.Fields[r.field].(string)
		if !ok {
			if there, err := a.refersToSomething(r, d.ID, cols, vals); err != nil {
				return nil, nil, 0, err
			} else if !there {
				a.reason = fmt.Sprintf("columns %s refer to a row of table %q that is not here: the field %q has to be the document id of that row",
					strings.Join(r.fk.Columns, ", "), r.parent.Name, r.field)
				return nil, nil, dead, nil
			}
			continue
		}
		key, err := a.parentKey(r, id)
		if err != nil {
			return nil, nil, 0, err
		}
		if key == nil {
			a.missing = id
			a.reason = fmt.Sprintf("waits for its parent, document %s of table %q", id, r.parent.Name)
			return nil, nil, waiting, nil
		}
		for k, c := range r.cols {
			if at := slices.Index(cols, c); at >= 0 {
				vals[at] = key[k]
			} else {
				cols, vals = append(cols, c), append(vals, key[k])
			}
		}
	}
	return cols, vals, applied, nil
}

// refersToSomething checks a foreign key of a document that somebody wrote without
// the parent's document id.
func (a *applier) refersToSomething(r *ref, id string, cols []int, vals []any) (bool, error) {
	key := make([]any, len(r.cols))
	where := make([]string, len(r.cols))
	given := false
	for i, c := range r.cols {
		where[i] = quote(r.fk.ParentColumns[i]) + " = ?"
		if at := slices.Index(cols, c); at >= 0 {
			if vals[at] == nil {
				return true, nil
			}
			key[i], given = vals[at], true
		}
	}
	if !given {
		return true, nil
	}
	if a.rows[id] != nil {
		row, err := a.p.rowByID(a.tx, id)
		if err != nil {
			return false, err
		}
		for i, c := range r.cols {
			if row != nil && !slices.Contains(cols, c) {
				key[i] = row.values[c]
			}
		}
	}
	if slices.Contains(key, nil) {
		return true, nil
	}
	var n int
	err := a.tx.row(`SELECT EXISTS (SELECT 1 FROM `+quote(r.parent.Name)+` WHERE `+strings.Join(where, " AND ")+`)`, key...).Scan(&n)
	return n > 0, err
}

// parentKey is the local key of a parent by its document id; nil when it is not
// here.
func (a *applier) parentKey(r *ref, id string) ([]any, error) {
	cacheKey := r.cacheKey(id)
	k, ok := a.tx.promised[cacheKey]
	if !ok {
		k, ok = a.tx.keys[cacheKey]
	}
	if ok {
		if slices.Contains(k, nil) {
			return nil, nil // nobody can refer to a key that is NULL
		}
		return k, nil
	}
	key := make([]any, len(r.fk.ParentColumns))
	dest := make([]any, len(key))
	for i := range key {
		dest[i] = &key[i]
	}
	ok, err := found(a.tx.row(r.keySQL, id).Scan(dest...))
	if err != nil {
		return nil, err
	}
	if !ok {
		// A parent that was merged into another row is that row. Otherwise it may
		// still arrive within this transaction: not remembered.
		survivor, err := a.tx.survivor(r.parent.Name, id)
		if err != nil || survivor == "" {
			return nil, err
		}
		a.moved = true
		return a.parentKey(r, survivor)
	}
	if len(a.tx.keys) > 4096 {
		clear(a.tx.keys)
	}
	a.tx.keys[cacheKey] = whole(key)
	if slices.Contains(key, nil) {
		return nil, nil
	}
	return key, nil
}

// insert adds the row of a document that is new here.
func (a *applier) insert(d *messages.Document) (outcome, error) {
	cols, vals, out, err := a.values(d)
	if err != nil || out != applied {
		return out, err
	}
	moved := a.moved
	query, args, renumbered := a.insertion("INSERT"+a.p.or+" INTO ", d, cols, vals)
	if out, err := a.done(a.tx.handle(handling("INSERT", a.p.t, d.ID), query, args...)); err != nil || out != applied {
		return out, err
	}
	a.know(d.ID, &rowRef{version: d.UpdateTime})
	if a.p.surrogate != "" { // one that SQLite gave may be the next document's own
		n, given := d.Fields[a.p.surrogate].(int64)
		if !given || renumbered {
			ok, err := found(a.tx.row(`SELECT `+quote(a.p.surrogate)+` FROM `+a.p.name+` WHERE clientId = ?`, d.ID).Scan(&n))
			if err != nil {
				return 0, err
			}
			if !ok { // a trigger of the application has replaced it already (UPDATE OR REPLACE)
				a.know(d.ID, nil)
				return applied, a.dropBase(d.ID)
			}
		}
		a.taken[n] = true
	}
	if err := a.dropBase(d.ID); err != nil {
		return 0, err
	}
	if moved {
		if err := a.edited(d.ID); err != nil {
			return 0, err
		}
	}
	if !renumbered {
		return applied, nil
	}
	return applied, a.renumber(d.ID)
}

// renumber remembers the INTEGER PRIMARY KEY of a row whose document has another.
func (a *applier) renumber(id string) error {
	return a.tx.exec(`INSERT INTO tidemark_renumbered (tableName, clientId, localKey) SELECT ?, clientId, `+quote(a.p.surrogate)+` FROM `+a.p.name+` WHERE clientId = ?
		ON CONFLICT (tableName, clientId) DO UPDATE SET localKey = excluded.localKey`, a.p.t.Name, id)
}

// insertion is the statement that inserts a document's row.
func (a *applier) insertion(verb string, d *messages.Document, cols []int, vals []any) (query string, args []any, renumbered bool) {
	args = make([]any, 0, 6+len(vals))
	args = append(args, d.ID, d.ID, d.CreatedOn, d.UpdatedOn, d.UpdatedBy, d.UpdateTime)
	given := make([]int, 0, len(cols))
	for i, c := range cols {
		if a.p.cols[c].surrogate {
			n, ok := vals[i].(int64)
			if !ok || a.taken[n] || a.p.auto && n > maxSurrogate {
				renumbered = ok
				continue // the number is taken here: SQLite gives another
			}
		}
		given, args = append(given, c), append(args, vals[i])
	}
	return a.inserts.text(verb, given, a.p.insertSQL), args, renumbered
}

// rowStatement is the statement for the columns that the last document had: most
// documents of a table have the same.
type rowStatement struct {
	first, query string
	cols         []int
}

func (s *rowStatement) text(first string, cols []int, build func(first string, cols []int) string) string {
	if s.query == "" || s.first != first || !slices.Equal(s.cols, cols) {
		*s = rowStatement{first, build(first, cols), slices.Clone(cols)}
	}
	return s.query
}

func (p *plan) insertSQL(verb string, cols []int) string {
	var names, marks strings.Builder
	for _, c := range cols {
		names.WriteString(", " + p.cols[c].quoted)
		marks.WriteString(", ?")
	}
	return verb + p.name + " (clientId, serverId, createdOn, updatedOn, updatedBy, isDirty, serverVersion" + names.String() +
		") VALUES (?, ?, ?, ?, ?, 0, ?" + marks.String() + ")"
}

func (p *plan) updateSQL(first string, cols []int) string {
	var set strings.Builder
	set.WriteString("UPDATE" + p.or + " " + p.name + " SET " + first + "createdOn = ?, updatedOn = ?, updatedBy = ?, isDirty = ?, serverVersion = ?")
	for _, c := range cols {
		set.WriteString(", " + p.cols[c].quoted + " = ?")
	}
	return set.String() + " WHERE clientId = ?"
}

// update overwrites the columns that the document has. updatedOn 0 takes the
// document's and leaves the row clean; otherwise the row is an edit of ours made
// then, on top of the document.
func (a *applier) update(d *messages.Document, updatedOn int64) (outcome, error) {
	cols, vals, out, err := a.values(d)
	if err != nil || out != applied {
		return out, err
	}
	dirty, by := 0, d.UpdatedBy
	if updatedOn == 0 {
		updatedOn = d.UpdatedOn
	} else {
		dirty, by = 1, a.me
	}
	moved := a.moved
	var before [][]any
	if before, err = a.naturalKeys(d.ID); err != nil {
		return 0, err
	}
	args := make([]any, 0, 7+len(vals))
	args = append(args, d.CreatedOn, updatedOn, by, dirty, d.UpdateTime)
	given := make([]int, 0, len(cols))
	for i, c := range cols {
		if !a.p.cols[c].surrogate { // a local number stays
			given, args = append(given, c), append(args, vals[i])
		}
	}
	first := ""
	if r := a.rows[d.ID]; r == nil || !r.named {
		first = "serverId = clientId, "
	}
	args = append(args, d.ID)
	if out, err := a.put(d.ID, a.updates.text(first, given, a.p.updateSQL), args); err != nil || out != applied {
		return out, err
	}
	if dirty == 0 {
		if err := a.agreed(d.ID); err != nil {
			return 0, err
		}
	}
	a.know(d.ID, &rowRef{version: d.UpdateTime, named: true, dirty: dirty == 1})
	if moved {
		if err := a.edited(d.ID); err != nil {
			return 0, err
		}
	}
	return applied, a.follow(d.ID, before)
}

// agreed drops what was kept of a row only while it was dirty.
func (a *applier) agreed(id string) error {
	if err := a.dropBase(id); err != nil {
		return err
	}
	if a.fresh {
		return nil
	}
	return a.tx.forgetLeft(a.p, id)
}

// naturalKeys are the row's values that other tables refer to and that are data.
func (a *applier) naturalKeys(id string) ([][]any, error) {
	var out [][]any
	for _, c := range a.p.natural {
		key, err := a.keyOf(c.fk.ParentColumns, id)
		if err != nil {
			return nil, err
		}
		out = append(out, key)
	}
	return out, nil
}

func (a *applier) keyOf(columns []string, id string) ([]any, error) {
	names := make([]string, len(columns))
	key := make([]any, len(columns))
	dest := make([]any, len(columns))
	for i, c := range columns {
		names[i], dest[i] = "+"+quote(c), &key[i]
	}
	if ok, err := found(a.tx.row("SELECT "+strings.Join(names, ", ")+" FROM "+a.p.name+" WHERE clientId = ?", id).Scan(dest...)); err != nil || !ok {
		return nil, err
	}
	return whole(key), nil
}

// follow moves the children along when a key that they refer to changed: in
// documents they refer by id, so nothing of theirs changed.
func (a *applier) follow(id string, before [][]any) error {
	if len(before) == 0 {
		return nil
	}
	return a.tx.ourselves(func() error { return a.carry(id, before) })
}

// ourselves runs fn, whose statements are no trigger's doing.
func (t *tx) ourselves(fn func() error) (err error) {
	if t.reacts {
		if err := t.exec(`UPDATE tidemark_state SET applying = applying + 1`); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.exec(`UPDATE tidemark_state SET applying = applying - 1`)) }()
	}
	return fn()
}

func (a *applier) carry(id string, before [][]any) error {
	for i, c := range a.p.natural {
		if before == nil || before[i] == nil {
			continue
		}
		after, err := a.keyOf(c.fk.ParentColumns, id)
		if err != nil {
			return err
		}
		if slices.EqualFunc(before[i], after, equal) || slices.Contains(before[i], nil) {
			continue
		}
		set, where := make([]string, len(after)), make([]string, len(after))
		for k, col := range c.fk.Columns {
			set[k], where[k] = quote(col)+" = ?", quote(col)+" = ?"+a.p.t.collate(c.fk.ParentColumns[k])
		}
		below, err := a.below(c, where, before[i])
		if err != nil {
			return err
		}
		if _, err := a.tx.run("UPDATE"+a.plans[c.child.Name].or+" "+quote(c.child.Name)+" SET "+strings.Join(set, ", ")+" WHERE "+strings.Join(where, " AND "),
			slices.Concat(after, before[i])...); err != nil {
			return err
		}
		clear(a.tx.keys)
		if err := a.rebase(c, before[i], after); err != nil {
			return err
		}
		for _, b := range below { // a key may be made of its parent's
			if err := b.a.carry(b.id, b.keys); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebase makes versions that edits start from refer to a parent's key as it is now: what
// followed is no edit.
func (a *applier) rebase(c childRef, before, after []any) error {
	child := a.plans[c.child.Name]
	if child == nil || !child.options.Policy.keepsBase() {
		return nil
	}
	var same, names []string
	var args []any
	for k, col := range c.fk.Columns {
		names = append(names, child.column(col))
		same = append(same, `SELECT clientId FROM tidemark_bases WHERE tableName = ? AND columnName = ? AND value = ?`+a.p.t.collate(c.fk.ParentColumns[k]))
		args = append(args, c.child.Name, names[k], before[k])
	}
	var ids []string
	if err := a.tx.each(strings.Join(same, " INTERSECT "), args, func(scan func(...any) error) error {
		var id string
		err := scan(&id)
		ids = append(ids, id)
		return err
	}); err != nil {
		return err
	}
	for _, id := range ids {
		for k, name := range names {
			if err := a.tx.exec(`UPDATE tidemark_bases SET value = ? WHERE tableName = ? AND clientId = ? AND columnName = ?`, after[k], c.child.Name, id, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// followed is a child whose own children may have to follow in their turn.
type followed struct {
	a    *applier
	id   string
	keys [][]any
}

// below lists the children that refer to a key and that others refer to by the
// columns that are about to change.
func (a *applier) below(c childRef, where []string, key []any) ([]followed, error) {
	child := a.plans[c.child.Name]
	if child == nil || !slices.ContainsFunc(child.natural, func(n childRef) bool {
		return slices.ContainsFunc(n.fk.ParentColumns, func(p string) bool {
			return slices.ContainsFunc(c.fk.Columns, func(f string) bool { return strings.EqualFold(p, f) })
		})
	}) {
		return nil, nil
	}
	other := &applier{tx: a.tx, p: child, plans: a.plans, counts: a.counts, me: a.me}
	var out []followed
	err := a.tx.each("SELECT clientId FROM "+child.name+" WHERE "+strings.Join(where, " AND "), key, func(scan func(...any) error) error {
		f := followed{a: other}
		err := scan(&f.id)
		out = append(out, f)
		return err
	})
	for i := range out {
		if err == nil {
			out[i].keys, err = other.naturalKeys(out[i].id)
		}
	}
	return out, err
}

// put runs a statement that updates one row.
func (a *applier) put(id, query string, args []any) (outcome, error) {
	return a.done(a.tx.handle(handling("UPDATE", a.p.t, id), query, args...))
}

// done decides what came of a statement that was to write one row.
func (a *applier) done(n int64, err error) (outcome, error) {
	if err != nil {
		return a.refused(err)
	}
	if n == 0 {
		a.reason = "a trigger of the application ignores the row: RAISE(IGNORE)"
		return dead, nil
	}
	return applied, nil
}

// remove deletes a row that is there.
func (t *tx) remove(p *plan, id string) error {
	n, err := t.delete(p, id)
	if err == nil && n == 0 {
		return errKept
	}
	return err
}

// delete returns how many rows it deleted: none when a trigger of the application keeps
// the row.
func (t *tx) delete(p *plan, id string) (int64, error) {
	clear(t.keys)
	return t.handle(handling("DELETE", p.t, id), `DELETE FROM `+p.name+` WHERE clientId = ?`, id)
}

// handle runs a statement that inserts, updates or deletes one row, and nothing else may:
// what triggers of the application insert, delete and replace meanwhile is ignored.
func (t *tx) handle(what, query string, args ...any) (int64, error) {
	if !t.reacts {
		return t.run(query, args...)
	}
	const handling = `UPDATE tidemark_state SET handling = ?`
	if err := t.exec(handling, what); err != nil {
		return 0, err
	}
	n, err := t.run(query, args...)
	if done := t.exec(handling, nil); err == nil { // else the transaction may be gone with it
		err = done
	}
	return n, err
}

// refused decides what a failed statement means.
func (a *applier) refused(err error) (outcome, error) {
	if !rowsFault(err) {
		return 0, err
	}
	// A trigger's RAISE(ROLLBACK), or ON CONFLICT ROLLBACK, has undone everything.
	n, aliveErr := a.tx.run(`UPDATE tidemark_state SET applying = 1 WHERE applying > 0`)
	if aliveErr != nil || n != 1 {
		return 0, fmt.Errorf("%w: %w", errUndone, err)
	}
	a.reason = err.Error()
	if collision(err) {
		return collides, nil
	}
	return dead, nil
}
