package persistence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

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
	plans   map[string]*plan
	me      string
	counts  *messages.Counts
	gained  map[string]bool    // columns that a whole read is for
	skip    map[string]string  // documents whose statements undid a whole transaction
	at      *docKey            // the document under way
	rows    map[string]*rowRef // what is here, by document id
	changed *[]docKey          // whose entry in rows changed, for who may have to take that back
	taken   map[int64]bool     // surrogates in use, of those that the page wants
	tombs   bool               // the table has local tombstones
	inbox   bool               // the table has received documents that wait
	letters bool               // the table has dead letters of downloads
	absent  bool               // behind the fence: who was not found on the server is written down
	rebuilt bool               // rows have lost their identities
	till    int64              // read time (µs) up to which the table was complete then; 0: not known
	unknown map[[2]int64]bool  // createdOn and updatedOn of rows the server does not know, read when first wanted
	fresh   bool               // no row here could be the same under the fallback key
	inserts rowStatement
	updates rowStatement
	reason  string // of the last outcome
	moved   bool   // a parent of the last document was merged into another row
	missing string // the parent (by document id) that the last outcome waits for
	settle  bool   // the whole cut is here: parents are final
	final   bool   // so are unique keys: what moves has moved
}

// rowRef is what is known of a local row before its document is applied.
type rowRef struct {
	dirty   bool
	named   bool // serverId is the document's id: to set it again would cost its index
	version int64
}

// maxTime in ms is some 200,000 years ahead; beyond it one more millisecond may not fit.
const maxTime = 1 << 53

var (
	// errUndone: a trigger of the application rolled the whole transaction back.
	errUndone = errors.New("the statement rolled the transaction back")
	// errKept: a trigger of the application did not let a row be deleted.
	errKept = errors.New("a trigger of the application keeps the row: RAISE(IGNORE)")
)

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
	var counts messages.Counts
	err = l.applying(ctx, p, plans, &counts, func(a *applier) ([]messages.Document, error) {
		err := a.page(docs)
		if err == nil && after != nil {
			err = a.tx.moveTo(table, *after)
		}
		return docs, err
	})
	if err != nil {
		return messages.Counts{}, fmt.Errorf("apply documents of table %q: %w", table, err)
	}
	return counts, nil
}

// applying runs work, which applies documents of one table, in one transaction, and
// puts back what the application's triggers changed meanwhile. When a document's
// statement undid the whole transaction, it is done again without that document. work
// returns the documents it applied.
func (l *Local) applying(ctx context.Context, p *plan, plans []*plan, counts *messages.Counts, work func(a *applier) (docs []messages.Document, err error)) error {
	skip := map[string]string{}
	for {
		*counts = messages.Counts{}
		at := docKey{}
		err := l.writePage(ctx, func(tx *tx) error {
			if err := tx.listen(plans); err != nil {
				return err
			}
			a, err := newApplier(tx, p, counts)
			if err != nil {
				return err
			}
			a.skip, a.at = skip, &at
			docs, err := work(a)
			if err != nil {
				return err
			}
			at = docKey{}
			if tx.reacts {
				if err := a.putBack(docs); err != nil {
					return err
				}
			}
			if n := counts.Tables[p.t.Name].Applied; n > 0 {
				if err := tx.exec(`UPDATE tidemark_state SET changedRows = changedRows + ?`, n); err != nil {
					return err
				}
				return tx.addBytes(sizeOf(docs, n))
			}
			return nil
		})
		if culpable(err) && at.id != "" && skip[at.id] == "" {
			skip[at.id] = err.Error() // leave it out and do the page again
			continue
		}
		return err
	}
}

func newApplier(t *tx, p *plan, counts *messages.Counts) (*applier, error) {
	a := &applier{tx: t, p: p, plans: p.all, counts: counts, at: &docKey{}, rows: map[string]*rowRef{}, taken: map[int64]bool{}}
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
	a.absent = exists(`SELECT EXISTS (SELECT 1 FROM tidemark_absent WHERE tableName = ?)`)
	a.letters = exists(`SELECT EXISTS (SELECT 1 FROM tidemark_dead_letters WHERE handler = 'download' AND tableName = ?)`)
	if err != nil {
		return nil, err
	}
	var n int
	if err := t.row(`SELECT EXISTS (SELECT 1 FROM ` + p.name + ` WHERE isDirty = 1)`).Scan(&n); err != nil {
		return nil, err
	}
	a.fresh = n == 0
	var gained string
	if ok, err := found(t.row(`SELECT gained, rebuilt, completeTill FROM tidemark_DownloadedTracker WHERE tableName = ?`, p.t.Name).Scan(&gained, &a.rebuilt, &a.till)); err != nil {
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
// tried again at its end.
func (a *applier) page(docs []messages.Document) error {
	if err := a.look(docs); err != nil {
		return err
	}
	if err := a.lookParents(docs); err != nil {
		return err
	}
	// Documents whose parent is further down the page, by the parent they miss.
	later := map[string][]*messages.Document{}
	self := a.selfReferring()
	for i := range docs {
		a.counts.Table(a.p.t.Name, messages.TableCounts{Downloaded: 1})
		if a.absent {
			if err := a.tx.exec(`DELETE FROM tidemark_absent WHERE tableName = ? AND clientId = ?`, a.p.t.Name, docs[i].ID); err != nil {
				return err
			}
		}
		for next := []*messages.Document{&docs[i]}; len(next) > 0; next = next[1:] {
			d := next[0]
			out, err := a.one(d)
			if err != nil {
				return err
			}
			if out == waiting && self {
				later[a.missing] = append(later[a.missing], d)
				continue
			}
			if err := a.file(d, out); err != nil {
				return err
			}
			if list := later[d.ID]; len(list) > 0 && a.rows[d.ID] != nil {
				next = append(next, list...)
				delete(later, d.ID)
			}
		}
	}
	for _, list := range later {
		for _, d := range list {
			out, err := a.one(d) // once more, for the reason
			if err == nil {
				err = a.file(d, out)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
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

// know remembers what is here of a document from now on; nil: nothing.
func (a *applier) know(id string, r *rowRef) {
	if r == nil {
		delete(a.rows, id)
	} else {
		a.rows[id] = r
	}
	if a.changed != nil {
		*a.changed = append(*a.changed, docKey{a.p.t.Name, id})
	}
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
			a.tx.keys[r.cacheKey(id)] = whole(key)
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
	*a.at = docKey{a.p.t.Name, d.ID}
	if why, skip := a.skip[d.ID]; skip {
		a.reason = why
		return dead, nil
	}
	if d.ID == "" || len(d.ID) > 1500 || !utf8.ValidString(d.ID) { // what is kept of it is JSON
		a.reason = "the document id is empty, longer than 1500 bytes or not valid UTF-8"
		return dead, nil
	}
	if d.CreatedOn < 0 || d.UpdatedOn < 0 || max(d.CreatedOn, d.UpdatedOn) > maxTime {
		a.reason = fmt.Sprintf("createdOn %d or updatedOn %d is no time", d.CreatedOn, d.UpdatedOn)
		return dead, nil
	}
	// A stamp from the future is somebody's who is no device: the same for everybody, and an
	// edit made here after it is later.
	if d.UpdateTime > 0 {
		d.UpdatedOn = min(d.UpdatedOn, d.UpdateTime/1000+wrongBy.Milliseconds())
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
	}
	if a.rebuilt {
		if out, done, err := a.reclaim(d); err != nil || done {
			return out, err
		}
	}
	if d.Deleted {
		return applied, a.tombstone(d)
	}
	if !a.fresh && d.UpdatedOn > 0 {
		if id, err := a.fallback(d); err != nil {
			return 0, err
		} else if id != "" && !a.settle {
			a.reason, a.missing = "may be a row that is here, unless that row's own document arrives", ""
			return waiting, nil
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
		if err := a.tx.exec(`INSERT INTO tidemark_inbox (tableName, documentId, kind, updateTime, reason, document) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (tableName, documentId) DO UPDATE SET kind = excluded.kind, updateTime = excluded.updateTime, reason = excluded.reason,
			document = excluded.document WHERE excluded.updateTime >= tidemark_inbox.updateTime`, name, d.ID, kind, d.UpdateTime, a.reason, raw); err != nil {
			return err
		}
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
		if a.inbox {
			if err := a.tx.exec(`DELETE FROM tidemark_inbox WHERE tableName = ? AND documentId = ? AND updateTime <= ?`, name, d.ID, d.UpdateTime); err != nil {
				return err
			}
		}
	}
	if a.letters { // an older version of it, or this one, did not fit
		return a.tx.clearLetter(messages.StageDownload, name, d.ID)
	}
	return nil
}

// fallback finds the one row without serverId that was created and changed in the
// same milliseconds as the document: the same row, restored from a snapshot that
// was made before its create was acknowledged. Two devices may well write in the
// same millisecond: a row that somebody else changed last is the same only if it
// says the same.
func (a *applier) fallback(d *messages.Document) (string, error) {
	var ids []string
	if a.unknown == nil {
		a.unknown = map[[2]int64]bool{}
		if err := a.tx.each(`SELECT createdOn, updatedOn FROM `+a.p.name+` WHERE isDirty = 1 AND serverId IS NULL`, nil, func(scan func(...any) error) error {
			var k [2]int64
			err := scan(&k[0], &k[1])
			a.unknown[k] = true
			return err
		}); err != nil {
			return "", err
		}
	}
	if !a.unknown[[2]int64{d.CreatedOn, d.UpdatedOn}] {
		return "", nil
	}
	err := a.tx.each(`SELECT clientId FROM `+a.p.name+` WHERE isDirty = 1 AND serverId IS NULL AND createdOn = ? AND updatedOn = ? LIMIT 2`,
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
	row, err := a.p.rowByID(a.tx, ids[0])
	if err != nil || row == nil || row.updatedBy != d.UpdatedBy && !a.p.same(row, d) {
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
	a.know(id, nil)
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
		v, ok := d.Fields[p.cols[i].Name]
		if v = toSQL(v); p.cols[i].ref < 0 {
			v = stored(p.cols[i].Column, v)
		}
		if ok && !equal(mine[p.cols[i].Name], v) {
			return false
		}
	}
	return true
}

// tombstone remembers that a document was deleted, so that a late create does not
// bring the row back.
func (a *applier) tombstone(d *messages.Document) error {
	a.tombs = true
	if err := a.tx.forgetLeft(a.p, d.ID); err != nil {
		return err
	}
	return a.tx.exec(`INSERT INTO tidemark_tombstones (tableName, clientId, createdOn, updatedOn, updatedBy, serverId, isDirty, serverVersion, survivor)
		VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (tableName, clientId) DO UPDATE SET updatedOn = max(updatedOn, excluded.updatedOn),
		updatedBy = excluded.updatedBy, serverId = excluded.serverId, isDirty = 0, serverVersion = excluded.serverVersion,
		survivor = CASE WHEN excluded.survivor <> '' THEN excluded.survivor ELSE survivor END`,
		a.p.t.Name, d.ID, d.CreatedOn, d.UpdatedOn, d.UpdatedBy, d.ID, d.UpdateTime, d.Survivor)
}

// letter sets something aside with the reason; the same thing again updates it. What
// the owner discarded stays so until something about it changes.
func (t *tx) letter(handler, table, id, class, reason string, payload []byte, updatedOn int64) error {
	now := time.Now().UnixMilli()
	return t.exec(`INSERT INTO tidemark_dead_letters (handler, tableName, documentId, class, reason, payload, firstOn, lastOn, updatedOn, traceparent)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (handler, tableName, documentId) WHERE documentId <> ''
		DO UPDATE SET class = excluded.class, reason = excluded.reason, payload = excluded.payload, attempts = attempts + 1, lastOn = excluded.lastOn, traceparent = excluded.traceparent,
		state = CASE WHEN updatedOn = excluded.updatedOn AND reason = excluded.reason THEN state ELSE 'dead' END, updatedOn = excluded.updatedOn`,
		handler, table, id, class, reason, payload, now, now, updatedOn, messages.Traceparent(t.ctx))
}

func (t *tx) clearLetter(handler, table, id string) error {
	return t.exec(`DELETE FROM tidemark_dead_letters WHERE handler = ? AND tableName = ? AND documentId = ? AND documentId <> ''`, handler, table, id)
}
