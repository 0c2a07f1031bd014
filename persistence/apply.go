package persistence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// outcome is what became of one document.
type outcome int

const (
	skipped  outcome = iota // we had it already
	applied                 // the local database changed, or the document was settled
	waiting                 // a parent is missing
	collides                // another row has the same unique key
	pending                 // a tombstone, decided when all has arrived
	dead                    // it does not fit; set aside
)

// applier applies documents of one table inside one transaction.
type applier struct {
	tx      *tx
	p       *plan
	me      string
	counts  *messages.Counts
	gained  map[string]bool    // columns that a whole read is for
	skip    map[string]error   // documents whose statement undid a whole transaction
	rows    map[string]*rowRef // what is here, by document id
	taken   map[int64]bool     // surrogates in use, of those that the page wants
	keys    map[string][]any   // parents' keys, by table and document id
	tombs   bool               // the table has local tombstones
	inbox   bool               // the table has received documents that wait
	letters bool               // the table has dead letters of downloads
	rebuilt bool               // rows have lost their identities
	fresh   bool               // no row here could be the same under the fallback key
	inserts rowStatement
	updates rowStatement
	reason  string // of the last outcome
	moved   bool   // a parent of the last document was merged into another row
	settle  bool   // the whole cut is here: unique keys and parents are final
}

// rowRef is what is known of a local row before its document is applied.
type rowRef struct {
	dirty   bool
	named   bool // serverId is the document's id: to set it again would cost its index
	version int64
}

// errUndone: a trigger of the application rolled the whole transaction back.
var errUndone = errors.New("the statement rolled the transaction back")

// Apply applies documents of one table in their order, and moves the source's
// position to after, all in one transaction. A document that cannot be applied
// yet waits; one that never can is set aside; neither stops the others.
func (l *Local) Apply(ctx context.Context, table string, docs []messages.Document, after *messages.Source) (messages.Counts, error) {
	p, err := l.planOf(ctx, table)
	if err != nil {
		return messages.Counts{}, err
	}
	plans, err := l.allPlans(ctx)
	if err != nil {
		return messages.Counts{}, err
	}
	skip := map[string]error{}
	for {
		counts := messages.Counts{}
		culprit := ""
		err := l.writePage(ctx, func(tx *tx) error {
			if p.reacts {
				if err := tx.sweepAll(plans); err != nil {
					return err
				}
			}
			a, err := newApplier(tx, p, &counts)
			if err != nil {
				return err
			}
			a.skip = skip
			if culprit, err = a.page(docs); err != nil {
				return err
			}
			if p.reacts {
				if err := tx.takeOut(plans); err != nil {
					return err
				}
				if err := a.putBack(docs); err != nil {
					return err
				}
			}
			if n := counts.Tables[table].Applied; n > 0 {
				if err := tx.exec(`UPDATE tidemark_state SET changedRows = changedRows + ?`, n); err != nil {
					return err
				}
			}
			if after == nil {
				return nil
			}
			return tx.moveTo(table, *after)
		})
		if errors.Is(err, errUndone) && culprit != "" && skip[culprit] == nil {
			skip[culprit] = err // leave it out and do the page again
			continue
		}
		if err != nil {
			return messages.Counts{}, fmt.Errorf("apply documents of table %q: %w", table, err)
		}
		return counts, nil
	}
}

func newApplier(t *tx, p *plan, counts *messages.Counts) (*applier, error) {
	a := &applier{tx: t, p: p, counts: counts, keys: map[string][]any{}, rows: map[string]*rowRef{}, taken: map[int64]bool{}}
	var err error
	if a.me, err = t.installationID(); err != nil {
		return nil, err
	}
	exists := func(query string) bool {
		var n int
		if err == nil {
			err = t.row(query, p.t.Name).Scan(&n)
		}
		return n > 0
	}
	a.tombs = exists(`SELECT EXISTS (SELECT 1 FROM tidemark_tombstones WHERE tableName = ?)`)
	a.inbox = exists(`SELECT EXISTS (SELECT 1 FROM tidemark_inbox WHERE tableName = ?)`)
	a.letters = exists(`SELECT EXISTS (SELECT 1 FROM tidemark_dead_letters WHERE handler = 'download' AND tableName = ? AND state = 'dead')`)
	if err != nil {
		return nil, err
	}
	var n int
	if err := t.row(`SELECT EXISTS (SELECT 1 FROM ` + p.name + ` WHERE isDirty = 1)`).Scan(&n); err != nil {
		return nil, err
	}
	a.fresh = n == 0
	var gained string
	if ok, err := found(t.row(`SELECT gained, rebuilt FROM tidemark_DownloadedTracker WHERE tableName = ?`, p.t.Name).Scan(&gained, &a.rebuilt)); err != nil {
		return nil, err
	} else if ok && gained != "[]" {
		var names []string
		if err := json.Unmarshal([]byte(gained), &names); err != nil {
			return nil, fmt.Errorf("the tracker of table %q is damaged: %w", p.t.Name, err)
		}
		a.gained = map[string]bool{}
		for _, c := range names {
			a.gained[c] = true
		}
	}
	return a, nil
}

// page applies the documents; those whose parent is further down the page are
// tried again at its end. It returns the id of the document it was at.
func (a *applier) page(docs []messages.Document) (string, error) {
	if err := a.look(docs); err != nil {
		return "", err
	}
	if err := a.lookParents(docs); err != nil {
		return "", err
	}
	var later []*messages.Document
	for i := range docs {
		d := &docs[i]
		out, err := a.one(d)
		if err != nil {
			return d.ID, err
		}
		a.counts.Table(a.p.t.Name, messages.TableCounts{Downloaded: 1})
		if out == waiting && a.selfReferring() {
			later = append(later, d)
			continue
		}
		if err := a.file(d, out); err != nil {
			return d.ID, err
		}
	}
	for progress := true; progress && len(later) > 0; {
		progress = false
		still := later[:0]
		for _, d := range later {
			out, err := a.one(d)
			if err != nil {
				return d.ID, err
			}
			if out == waiting {
				still = append(still, d)
				continue
			}
			progress = true
			if err := a.file(d, out); err != nil {
				return d.ID, err
			}
		}
		later = still
	}
	for _, d := range later {
		if out, err := a.one(d); err != nil { // once more, for the reason
			return d.ID, err
		} else if err := a.file(d, out); err != nil {
			return d.ID, err
		}
	}
	return "", nil
}

func (a *applier) selfReferring() bool {
	for _, r := range a.p.refs {
		if r.parent == a.p.t {
			return true
		}
	}
	return false
}

// look reads what is here of a page's documents, in two statements instead of two
// a document.
func (a *applier) look(docs []messages.Document) error {
	ids := make([]string, len(docs))
	var numbers []int64
	for i := range docs {
		ids[i] = docs[i].ID
		if a.p.surrogate != "" {
			if n, ok := docs[i].Fields[a.p.surrogate].(int64); ok {
				numbers = append(numbers, n)
			}
		}
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	err = a.tx.each(`SELECT t.clientId, t.isDirty, t.serverId IS t.clientId, coalesce(t.serverVersion, 0) FROM json_each(?) AS j CROSS JOIN `+a.p.name+` AS t ON t.clientId = j.value`,
		[]any{string(list)}, func(scan func(...any) error) error {
			var id string
			r := &rowRef{}
			err := scan(&id, &r.dirty, &r.named, &r.version)
			a.rows[id] = r
			return err
		})
	if err != nil || len(numbers) == 0 {
		return err
	}
	slices.Sort(numbers)
	if list, err = json.Marshal(numbers); err != nil {
		return err
	}
	c := quote(a.p.surrogate)
	return a.tx.each(`SELECT t.`+c+` FROM json_each(?) AS j CROSS JOIN `+a.p.name+` AS t ON t.`+c+` = j.value`,
		[]any{string(list)}, func(scan func(...any) error) error {
			var n int64
			err := scan(&n)
			a.taken[n] = true
			return err
		})
}

// lookParents reads the keys of the parents that a page's documents refer to, in a
// statement a foreign key. Those that are not here yet are looked up again later.
func (a *applier) lookParents(docs []messages.Document) error {
	for i := range a.p.refs {
		r := &a.p.refs[i]
		var ids []string
		for k := range docs {
			if id, ok := docs[k].Fields[r.field].(string); ok {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		list, err := json.Marshal(slices.Compact(ids))
		if err != nil {
			return err
		}
		err = a.tx.each(r.keysSQL, []any{string(list)}, func(scan func(...any) error) error {
			var id string
			key := make([]any, len(r.fk.ParentColumns))
			dest := []any{&id}
			for n := range key {
				dest = append(dest, &key[n])
			}
			err := scan(dest...)
			a.keys[r.keySQL+"\x00"+id] = key
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// one applies one document if it can be.
func (a *applier) one(d *messages.Document) (outcome, error) {
	if err := a.skip[d.ID]; err != nil {
		a.reason = err.Error()
		return dead, nil
	}
	if d.ID == "" || len(d.ID) > 1500 {
		a.reason = "the document id is empty or too long"
		return dead, nil
	}
	r := a.rows[d.ID]
	if r == nil && a.tombs {
		if out, done, err := a.againstTombstone(d); err != nil || done {
			return out, err
		}
	}
	switch {
	case r != nil && r.version >= d.UpdateTime:
		if r.version == d.UpdateTime && a.gained != nil && !d.Deleted {
			return a.fill(d, r)
		}
		return skipped, nil
	case r != nil && d.Deleted:
		if a.settle {
			return applied, nil // settled by its own rules
		}
		return pending, nil
	case r != nil && r.dirty:
		return a.conflict(d)
	case r != nil:
		return a.update(d, 0)
	case d.Deleted:
		return applied, a.tombstone(d)
	}
	if a.rebuilt {
		if out, done, err := a.reclaim(d); err != nil || done {
			return out, err
		}
	}
	if !a.fresh && d.UpdatedOn > 0 {
		if id, err := a.fallback(d); err != nil {
			return 0, err
		} else if id != "" {
			return a.adopt(d, id)
		}
	}
	return a.insert(d)
}

// file records what became of a document beyond the row itself.
func (a *applier) file(d *messages.Document, out outcome) error {
	name := a.p.t.Name
	switch out {
	case skipped:
		return nil
	case waiting, collides, pending:
		kind := map[outcome]string{waiting: "waiting", collides: "collides", pending: "tombstone"}[out]
		if out == waiting {
			a.counts.Table(name, messages.TableCounts{Waiting: 1})
		}
		raw, err := marshalDocument(d)
		if err != nil {
			return err
		}
		a.inbox = true
		return a.tx.exec(`INSERT INTO tidemark_inbox (tableName, documentId, kind, updateTime, reason, document) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (tableName, documentId) DO UPDATE SET kind = excluded.kind, updateTime = excluded.updateTime, reason = excluded.reason,
			document = excluded.document WHERE excluded.updateTime >= tidemark_inbox.updateTime`, name, d.ID, kind, d.UpdateTime, a.reason, raw)
	case dead:
		a.counts.Table(name, messages.TableCounts{Dead: 1})
		if err := a.tx.exec(`DELETE FROM tidemark_inbox WHERE tableName = ? AND documentId = ?`, name, d.ID); err != nil {
			return err
		}
		raw, err := marshalDocument(d)
		if err != nil {
			return err
		}
		a.letters = true
		return a.tx.letter(messages.StageDownload, name, d.ID, messages.ErrRejected.Error(), a.reason, raw, d.UpdateTime)
	case applied:
		a.counts.Table(name, messages.TableCounts{Applied: 1})
	}
	if a.inbox {
		if err := a.tx.exec(`DELETE FROM tidemark_inbox WHERE tableName = ? AND documentId = ? AND updateTime <= ?`, name, d.ID, d.UpdateTime); err != nil {
			return err
		}
	}
	if a.letters {
		return a.tx.clearLetter(messages.StageDownload, name, d.ID)
	}
	return nil
}

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
				a.reason = fmt.Sprintf("waits for its parent, document %s of table %q", id, p.refs[c.ref].parent.Name)
				return nil, nil, waiting, nil
			}
			v = key[0]
		} else if err := fits(c.Column, v); err != nil {
			if c.surrogate && v == nil {
				continue
			}
			a.reason = err.Error()
			return nil, nil, dead, nil
		}
		cols = append(cols, i)
		vals = append(vals, toSQL(v))
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
			continue
		}
		key, err := a.parentKey(r, id)
		if err != nil {
			return nil, nil, 0, err
		}
		if key == nil {
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

// parentKey is the local key of a parent by its document id; nil when it is not
// here.
func (a *applier) parentKey(r *ref, id string) ([]any, error) {
	cacheKey := r.keySQL + "\x00" + id
	if k, ok := a.keys[cacheKey]; ok {
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
	if len(a.keys) > 4096 {
		clear(a.keys)
	}
	a.keys[cacheKey] = key
	return key, nil
}

// insert adds the row of a document that is new here.
func (a *applier) insert(d *messages.Document) (outcome, error) {
	cols, vals, out, err := a.values(d)
	if err != nil || out != applied {
		return out, err
	}
	moved := a.moved
	query, args, renumbered := a.insertion("INSERT INTO ", d, cols, vals)
	if _, err := a.tx.run(query, args...); err != nil {
		return a.refused(err)
	}
	a.rows[d.ID] = &rowRef{version: d.UpdateTime}
	if moved {
		if err := a.edited(d.ID); err != nil {
			return 0, err
		}
	}
	if !renumbered {
		return applied, nil
	}
	return applied, a.tx.exec(`INSERT INTO tidemark_renumbered (tableName, clientId, localKey) SELECT ?, clientId, `+quote(a.p.surrogate)+` FROM `+a.p.name+` WHERE clientId = ?
		ON CONFLICT (tableName, clientId) DO UPDATE SET localKey = excluded.localKey`, a.p.t.Name, d.ID)
}

// insertion is the statement that inserts a document's row.
func (a *applier) insertion(verb string, d *messages.Document, cols []int, vals []any) (query string, args []any, renumbered bool) {
	args = make([]any, 0, 6+len(vals))
	args = append(args, d.ID, d.ID, d.CreatedOn, d.UpdatedOn, d.UpdatedBy, d.UpdateTime)
	given := make([]int, 0, len(cols))
	for i, c := range cols {
		if a.p.cols[c].surrogate {
			n, ok := vals[i].(int64)
			if !ok || a.taken[n] {
				renumbered = ok
				continue // the number is taken here: SQLite gives another
			}
			a.taken[n] = true
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
	set.WriteString("UPDATE " + p.name + " SET " + first + "createdOn = ?, updatedOn = ?, updatedBy = ?, isDirty = ?, serverVersion = ?")
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
	if _, err := a.tx.run(a.updates.text(first, given, a.p.updateSQL), args...); err != nil {
		return a.refused(err)
	}
	if dirty == 0 {
		if err := a.agreed(d.ID); err != nil {
			return 0, err
		}
	}
	a.rows[d.ID] = &rowRef{version: d.UpdateTime, named: true, dirty: dirty == 1}
	if moved {
		if err := a.edited(d.ID); err != nil {
			return 0, err
		}
	}
	return applied, a.follow(d.ID, before)
}

// agreed drops what was kept of a row only while it was dirty.
func (a *applier) agreed(id string) error {
	if len(a.p.refs) == 0 || a.fresh {
		return nil
	}
	return a.tx.exec(`DELETE FROM tidemark_left WHERE tableName = ? AND clientId = ?`, a.p.t.Name, id)
}

// fill sets columns that this table has newly learnt, on a row whose version we
// already had: the document may know more of it than we could take then.
func (a *applier) fill(d *messages.Document, r *rowRef) (outcome, error) {
	part := *d
	part.Fields = map[string]any{}
	for c := range a.gained {
		if v, ok := d.Fields[c]; ok && v != nil {
			part.Fields[c] = v
		}
	}
	if len(part.Fields) == 0 {
		return skipped, nil
	}
	cols, vals, out, err := a.values(&part)
	if err != nil || out != applied {
		return out, err
	}
	row, err := a.p.rowByID(a.tx, d.ID)
	if err != nil || row == nil {
		return 0, err
	}
	var set []string
	var args []any
	for i, c := range cols {
		pc := &a.p.cols[c]
		if pc.surrogate || equal(row.values[c], vals[i]) {
			continue
		}
		if r.dirty && row.values[c] != nil && !pc.isDefault(row.values[c]) {
			continue // the application has filled it here: that edit goes up
		}
		set, args = append(set, pc.quoted+" = ?"), append(args, vals[i])
	}
	if len(set) == 0 {
		return skipped, nil
	}
	if _, err := a.tx.run("UPDATE "+a.p.name+" SET "+strings.Join(set, ", ")+" WHERE clientId = ?", append(args, d.ID)...); err != nil {
		return a.refused(err)
	}
	return applied, nil
}

// isDefault reports whether a value is what ALTER TABLE ADD COLUMN put into every
// row that was there: the column's constant default.
func (c *plannedColumn) isDefault(v any) bool {
	if !c.Default.Valid {
		return v == nil
	}
	return fmt.Sprint(v) == strings.Trim(c.Default.String, "'\"")
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
	return key, nil
}

// follow moves the children along when a key that they refer to changed: in
// documents they refer by id, so nothing of theirs changed.
func (a *applier) follow(id string, before [][]any) (err error) {
	if len(a.p.natural) > 0 && a.p.reacts { // what follows is no trigger's doing
		if err := a.tx.exec(`UPDATE tidemark_state SET applying = 2`); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, a.tx.exec(`UPDATE tidemark_state SET applying = 1`)) }()
	}
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
			set[k], where[k] = quote(col)+" = ?", quote(col)+" = ?"
		}
		if _, err := a.tx.run("UPDATE "+quote(c.child.Name)+" SET "+strings.Join(set, ", ")+" WHERE "+strings.Join(where, " AND "),
			slices.Concat(after, before[i])...); err != nil {
			return err
		}
		clear(a.keys)
	}
	return nil
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

// fallback finds the one row without serverId that was created and changed in the
// same milliseconds as the document: the same row, restored from a snapshot that
// was made before its create was acknowledged.
func (a *applier) fallback(d *messages.Document) (string, error) {
	var ids []string
	err := a.tx.each(`SELECT clientId FROM `+a.p.name+` WHERE serverId IS NULL AND createdOn = ? AND updatedOn = ? LIMIT 2`,
		[]any{d.CreatedOn, d.UpdatedOn}, func(scan func(...any) error) error {
			var id string
			err := scan(&id)
			ids = append(ids, id)
			return err
		})
	if err != nil || len(ids) != 1 {
		return "", err // bulk-loaded rows share their times: more than one is no match
	}
	// Its create may be on its way: then it is another row, or will be known by id.
	var n int
	err = a.tx.row(`SELECT count(*) FROM tidemark_tokens WHERE instr(journal, ?) > 0`, ids[0]).Scan(&n)
	if err != nil || n > 0 {
		return "", err
	}
	return ids[0], nil
}

// adopt gives a local row the document's id and content.
func (a *applier) adopt(d *messages.Document, id string) (outcome, error) {
	row, err := a.p.rowByID(a.tx, id)
	if err != nil || row == nil {
		return 0, err
	}
	if err := a.tx.exec(`UPDATE `+a.p.name+` SET clientId = ? WHERE clientId = ?`, d.ID, id); err != nil {
		return 0, err
	}
	out, err := a.update(d, 0)
	if err != nil {
		return 0, err
	}
	if out != applied {
		return out, a.tx.exec(`UPDATE `+a.p.name+` SET clientId = ? WHERE clientId = ?`, id, d.ID)
	}
	if !a.p.same(row, d) {
		return applied, a.keepConflict(row, d, "server", "the same row by createdOn and updatedOn, with another content")
	}
	return applied, nil
}

// same reports whether the document says what the row says, in every column that
// both know.
func (p *plan) same(r *localRow, d *messages.Document) bool {
	mine := p.document(r, "").Fields
	for i := range p.cols {
		if p.cols[i].surrogate {
			continue
		}
		if v, ok := d.Fields[p.cols[i].Name]; ok && !equal(mine[p.cols[i].Name], toSQL(v)) {
			return false
		}
	}
	return true
}

// tombstone remembers that a document was deleted, so that a late create does not
// bring the row back.
func (a *applier) tombstone(d *messages.Document) error {
	a.tombs = true
	return a.tx.exec(`INSERT INTO tidemark_tombstones (tableName, clientId, createdOn, updatedOn, updatedBy, serverId, isDirty, serverVersion, survivor)
		VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (tableName, clientId) DO UPDATE SET updatedOn = max(updatedOn, excluded.updatedOn),
		updatedBy = excluded.updatedBy, serverId = excluded.serverId, isDirty = 0, serverVersion = excluded.serverVersion,
		survivor = CASE WHEN excluded.survivor <> '' THEN excluded.survivor ELSE survivor END`,
		a.p.t.Name, d.ID, d.CreatedOn, d.UpdatedOn, d.UpdatedBy, d.ID, d.UpdateTime, d.Survivor)
}

// letter sets something aside with the reason; the same thing again updates it.
func (t *tx) letter(handler, table, id, class, reason string, payload []byte, updatedOn int64) error {
	now := time.Now().UnixMilli()
	return t.exec(`INSERT INTO tidemark_dead_letters (handler, tableName, documentId, class, reason, payload, firstOn, lastOn, updatedOn)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (handler, tableName, documentId) WHERE documentId <> '' AND state = 'dead'
		DO UPDATE SET class = excluded.class, reason = excluded.reason, payload = excluded.payload, attempts = attempts + 1, lastOn = excluded.lastOn,
		updatedOn = excluded.updatedOn`, handler, table, id, class, reason, payload, now, now, updatedOn)
}

func (t *tx) clearLetter(handler, table, id string) error {
	return t.exec(`DELETE FROM tidemark_dead_letters WHERE handler = ? AND tableName = ? AND documentId = ? AND state = 'dead'`, handler, table, id)
}
