package persistence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// DeadLetter is a row that the server does not take, or a document that does not fit
// here, with what is needed to understand and replay it.
type DeadLetter struct {
	ID int64 `json:"id"`
	// State is "dead", or "discarded": given up until it changes.
	State string `json:"state"`
	// Stage is the one that could not handle it: "upload" or "download"; or any, when it
	// could not handle a message of a cycle at all. Then there is no document.
	Stage      string `json:"stage"`
	Table      string `json:"table"`
	DocumentID string `json:"documentId"`
	// Row is the primary key by which the application knows the row, such as
	// "id = 3"; empty when it has none, or is not here.
	Row string `json:"row"`
	// Class is "local" when this device found the reason itself, otherwise that of the
	// server's answer, such as "rejected" or "unauthorized".
	Class    string    `json:"class"`
	Reason   string    `json:"reason"`
	Attempts int64     `json:"attempts"`
	FirstOn  time.Time `json:"firstOn"`
	LastOn   time.Time `json:"lastOn"`
	// Replay: the next upload tries it again.
	Replay bool `json:"replay"`
	// Version is what could not be handled; nil in lists.
	Version *RowVersion `json:"version,omitempty"`
	// Message is the message that a stage could not handle, and Stack the functions
	// that were running, the innermost first; empty in lists.
	Message json.RawMessage `json:"message,omitempty"`
	Stack   []string        `json:"stack,omitempty"`
}

// Waiting is a document, or a row, that cannot be handled before something else is. It
// is tried again by every cycle.
type Waiting struct {
	// State is "waiting" (for a parent) or "collides" (on a unique key).
	State      string `json:"state"`
	Stage      string `json:"stage"`
	Table      string `json:"table"`
	DocumentID string `json:"documentId"`
	Row        string `json:"row"`
	Reason     string `json:"reason"`
}

const (
	stateDead      = "dead"
	stateDiscarded = "discarded"
)

// DeadLetterFilter chooses dead letters.
type DeadLetterFilter struct {
	IDs   []int64
	Stage string
	Table string
	// Discarded chooses those that were discarded too; so does naming them in IDs.
	Discarded bool
	// Limit is how many are listed at most; 0 is all.
	Limit int
}

func (f DeadLetterFilter) where() (string, []any) {
	var w conditions
	w.ids(f.IDs)
	w.table(f.Table)
	if f.Stage != "" {
		w.add("+handler = ?", f.Stage) // in the order of the ids, not of an index
	}
	if !f.Discarded && f.IDs == nil {
		w.add("state = ?", stateDead)
	}
	return w.text(), w.args
}

// known fails when an id of the filter is none.
func (f DeadLetterFilter) known(ctx context.Context, q queryer) error {
	for _, id := range f.IDs {
		var there bool
		if err := q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM tidemark_dead_letters WHERE id = ?)`, id).Scan(&there); err != nil {
			return explain(err)
		}
		if !there {
			return errNoLetter(id)
		}
	}
	return nil
}

func errNoLetter(id int64) error {
	return fmt.Errorf("dead letter %d: %w: it is done with, or never was; list those there are (pipeline failed)", id, messages.ErrNotFound)
}

// DeadLetters lists dead letters, the oldest first, one at a time: however many there
// are, the memory that it takes stays the same. They may be replayed or discarded
// meanwhile.
func (l *Local) DeadLetters(ctx context.Context, f DeadLetterFilter) iter.Seq2[DeadLetter, error] {
	where, args := f.where()
	return func(yield func(DeadLetter, error) bool) {
		for id, err := range l.pagedIDs(ctx, `SELECT id FROM tidemark_dead_letters WHERE `+where+` AND id > ? ORDER BY id LIMIT ?`, args, 0, f.Limit) {
			var d DeadLetter
			ok := true
			if err == nil {
				d, ok, err = l.deadLetter(ctx, id)
			}
			if errors.Is(err, errUnreadable) { // one of them must not hide the others
				d.Reason, err = d.Reason+" ("+err.Error()+")", nil
			}
			if err != nil {
				yield(d, fmt.Errorf("list dead letters: %w", err))
				return
			}
			d.Version, d.Message, d.Stack = nil, nil, nil
			if ok && !yield(d, nil) { // not ok: done with meanwhile
				return
			}
		}
	}
}

// DeadLetter reads one dead letter with its version; messages.ErrNotFound when there is
// none of that id.
func (l *Local) DeadLetter(ctx context.Context, id int64) (DeadLetter, error) {
	d, ok, err := l.deadLetter(ctx, id)
	if err == nil && !ok {
		err = errNoLetter(id)
	}
	return d, err
}

var errUnreadable = errors.New("what was set aside cannot be read")

func (l *Local) deadLetter(ctx context.Context, id int64) (DeadLetter, bool, error) {
	d := DeadLetter{ID: id}
	var payload []byte
	var metadata string
	var first, last, updatedOn int64
	var ofMessage bool
	ok, err := found(l.db.DB.QueryRowContext(ctx, `SELECT state, handler, tableName, documentId, class, reason, attempts, firstOn, lastOn, updatedOn, payload, metadata, `+isStage+`
		FROM tidemark_dead_letters WHERE id = ?`, id).
		Scan(&d.State, &d.Stage, &d.Table, &d.DocumentID, &d.Class, &d.Reason, &d.Attempts, &first, &last, &updatedOn, &payload, &metadata, &ofMessage))
	if err != nil || !ok {
		return d, false, explain(err)
	}
	d.FirstOn, d.LastOn = fromMilli(first), fromMilli(last)
	d.Replay = (d.Stage == messages.StageUpload || ofMessage) && updatedOn == 0
	if ofMessage {
		var m letterMetadata
		if err := json.Unmarshal([]byte(metadata), &m); err != nil || !json.Valid(payload) {
			return d, true, fmt.Errorf("%w; discard it: %w", errUnreadable, errors.Join(err, messages.ErrRejected))
		}
		d.Message, d.Stack = payload, m.Stack
		return d, true, nil
	}
	p, err := l.planIfAny(ctx, d.Table)
	if err != nil {
		return d, true, err
	}
	if payload != nil {
		doc, err := unmarshalDocument(d.Table, payload)
		if err != nil {
			return d, true, fmt.Errorf("%w: %w; discard dead letter %d, or use the program that wrote it", errUnreadable, err, id)
		}
		d.Version = version(&doc, p)
		if err := d.Version.findParents(ctx, l.db.DB, p); err != nil {
			return d, true, err
		}
		if p != nil && p.surrogate == "" {
			d.Row = p.label(doc.Fields)
		}
	}
	if p == nil || d.DocumentID == "" {
		return d, true, nil
	}
	here, err := p.rowLabel(ctx, l.db.DB, d.DocumentID)
	if here != "" {
		d.Row = here
	}
	return d, true, err
}

// Waiting lists what waits, one at a time: documents for a parent or a unique key, and
// rows for a parent that the server does not take. table "" is all.
func (l *Local) Waiting(ctx context.Context, table string) iter.Seq2[Waiting, error] {
	return func(yield func(Waiting, error) bool) {
		stopped := false
		give := func(w Waiting) bool {
			stopped = !yield(w, nil)
			return !stopped
		}
		err := l.waitingDocuments(ctx, table, give)
		if err == nil && !stopped {
			err = l.waitingRows(ctx, table, give)
		}
		if err != nil && !stopped {
			yield(Waiting{}, fmt.Errorf("list what waits: %w", explain(err)))
		}
	}
}

func (l *Local) waitingDocuments(ctx context.Context, table string, yield func(Waiting) bool) error {
	afterTable, afterID := "", ""
	for {
		var page []Waiting
		err := eachRow(ctx, l.db.DB, `SELECT tableName, documentId, kind, reason FROM tidemark_inbox WHERE kind IN ('waiting', 'collides')
			AND (?1 = '' OR tableName = ?1 COLLATE NOCASE) AND (tableName, documentId) > (?2, ?3) ORDER BY tableName, documentId LIMIT ?4`,
			func(scan func(...any) error) error {
				w := Waiting{Stage: messages.StageDownload}
				err := scan(&w.Table, &w.DocumentID, &w.State, &w.Reason)
				page = append(page, w)
				return err
			}, table, afterTable, afterID, listPage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, w := range page {
			p, err := l.planIfAny(ctx, w.Table)
			if err == nil && p != nil {
				w.Row, err = p.rowLabel(ctx, l.db.DB, w.DocumentID)
			}
			if err != nil {
				return err
			}
			if !yield(w) {
				return nil
			}
		}
		afterTable, afterID = page[len(page)-1].Table, page[len(page)-1].DocumentID
	}
}

// waitingRows lists rows whose parent, or its parent, is a dead letter of the upload.
// It remembers the ids of those, not their rows.
func (l *Local) waitingRows(ctx context.Context, table string, yield func(Waiting) bool) error {
	blocked := map[docKey]bool{}
	if err := eachRow(ctx, l.db.DB, `SELECT tableName, documentId FROM tidemark_dead_letters WHERE handler = ?`, func(scan func(...any) error) error {
		var k docKey
		err := scan(&k.table, &k.id)
		blocked[k] = true
		return err
	}, messages.StageUpload); err != nil || len(blocked) == 0 {
		return err
	}
	plans, err := l.allPlans(ctx)
	if err != nil {
		return err
	}
	for again := true; again; { // once, but where rows of a table refer to each other
		again = false
		for _, p := range plans {
			if len(p.refs) == 0 {
				continue
			}
			for after := ""; ; {
				var rows []*localRow
				if err := eachRow(ctx, l.db.DB, p.selectSQL+` WHERE t.isDirty = 1 AND t.clientId > ? ORDER BY t.clientId LIMIT 100`, func(scan func(...any) error) error {
					r, err := p.scanRow(scan)
					rows = append(rows, r)
					return err
				}, after); err != nil {
					return err
				}
				if len(rows) == 0 {
					break
				}
				after = rows[len(rows)-1].clientID
				for _, r := range rows {
					k := docKey{p.t.Name, r.clientID}
					i := r.blockedBy(p, blocked)
					if i < 0 || blocked[k] {
						continue
					}
					blocked[k], again = true, true
					if table != "" && fold(table) != fold(p.t.Name) {
						continue
					}
					w, err := l.waitingRow(ctx, p, r, i)
					if err != nil {
						return err
					}
					if !yield(w) {
						return nil
					}
				}
			}
		}
	}
	return nil
}

// blockedBy is the foreign key by which a row refers to a parent that cannot go up; -1
// when there is none.
func (r *localRow) blockedBy(p *plan, blocked map[docKey]bool) int {
	for i, o := range r.parents {
		if !o.null && !o.known && blocked[docKey{p.refs[i].parent.Name, o.id}] {
			return i
		}
	}
	return -1
}

func (l *Local) waitingRow(ctx context.Context, p *plan, r *localRow, ref int) (Waiting, error) {
	w := Waiting{State: "waiting", Stage: messages.StageUpload, Table: p.t.Name, DocumentID: r.clientID}
	var err error
	if w.Row, err = p.rowLabel(ctx, l.db.DB, r.clientID); err != nil {
		return w, err
	}
	parent := p.all[p.refs[ref].parent.Name]
	label, err := parent.rowLabel(ctx, l.db.DB, r.parents[ref].id)
	if label == "" {
		label = "document " + r.parents[ref].id
	}
	w.Reason = fmt.Sprintf("waits for its parent, the row %s of table %q, which could not be uploaded", label, parent.t.Name)
	return w, err
}

// clearSettled drops the letters of rows that have nothing to upload any more: another
// device's later edit has won.
func (t *tx) clearSettled(plans []*plan) error {
	tables := map[string]bool{}
	if err := t.each(`SELECT DISTINCT tableName FROM tidemark_dead_letters WHERE handler = 'upload'`, nil, func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		tables[name] = true
		return err
	}); err != nil {
		return err
	}
	for _, p := range plans {
		if !tables[p.t.Name] {
			continue
		}
		if err := t.exec(`DELETE FROM tidemark_dead_letters WHERE handler = 'upload' AND tableName = ? AND documentId <> ''
			AND NOT EXISTS (SELECT 1 FROM `+p.name+` WHERE clientId = tidemark_dead_letters.documentId AND isDirty = 1)
			AND NOT EXISTS (SELECT 1 FROM tidemark_tombstones d WHERE d.tableName = ? AND d.clientId = tidemark_dead_letters.documentId AND d.isDirty = 1)`, p.t.Name, p.t.Name); err != nil {
			return err
		}
	}
	return nil
}

// DiscardDeadLetters gives dead letters up and says how many: they are not counted, and
// not tried again, until the row or the document changes or they are replayed.
func (l *Local) DiscardDeadLetters(ctx context.Context, f DeadLetterFilter) (n int64, err error) {
	where, args := f.where()
	err = l.write(ctx, func(tx *tx) error {
		if err := f.known(ctx, tx.conn); err != nil {
			return err
		}
		// One that was to be tried again is given up as it was.
		n, err = tx.run(`UPDATE tidemark_dead_letters SET state = 'discarded', updatedOn = CASE WHEN `+isStage+` THEN 1 WHEN handler = 'upload' AND updatedOn = 0
			THEN coalesce(json_extract(CAST(payload AS TEXT), '$.updatedOn'), 0) ELSE updatedOn END WHERE `+where, args...)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("discard dead letters: %w", err)
	}
	return n, nil
}
