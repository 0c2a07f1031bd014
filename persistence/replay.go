package persistence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tidemark-sync/tidemark/messages"
)

// Replayed says what became of a dead letter.
type Replayed struct {
	ID         int64  `json:"id"`
	Stage      string `json:"stage"`
	Table      string `json:"table"`
	DocumentID string `json:"documentId"`
	Row        string `json:"row"`
	// Outcome is "requested" (the next upload tries the row), "applied" (the document
	// is here), "waiting" (for a parent; it is tried again by every cycle),
	// "superseded" (a newer version is here, or up) or "failed" (Reason says why).
	Outcome string `json:"outcome"`
	Reason  string `json:"reason"`
	// Traceparent names the span, in W3C form, in which it failed last; "" when nobody
	// traced that. A replay goes on with its trace.
	Traceparent string `json:"-"`
}

const (
	outcomeRequested  = "requested"
	outcomeApplied    = "applied"
	outcomeWaiting    = "waiting"
	outcomeSuperseded = "superseded"
	outcomeFailed     = "failed"
)

// errDryRun takes back what a dry run did.
var errDryRun = errors.New("a dry run")

// replayPage and replayBytes bound one transaction of a replay.
const (
	replayPage  = 200
	replayBytes = 4 << 20
)

// ReplayDeadLetters hands dead letters to the stage that failed, and to no other: a row
// is tried by the next upload although nobody edited it, parents before children, and
// its letter goes when the server has acknowledged it; a document is applied at once,
// again parents first. tell hears what became of each. Doing it twice does no harm. A
// dry run changes nothing, and looks at each letter by itself.
func (l *Local) ReplayDeadLetters(ctx context.Context, f DeadLetterFilter, dryRun bool, tell func(Replayed) error) error {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return err
	}
	if err := f.known(ctx, l.db.DB); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	r := &replay{l: l, f: f, dryRun: dryRun, plans: plans, tell: tell}
	if err := l.db.DB.QueryRowContext(ctx, `SELECT coalesce(max(id), 0) FROM tidemark_dead_letters`).Scan(&r.last); err != nil {
		return fmt.Errorf("replay: %w", explain(err))
	}
	stages := map[string][]string{}
	where, args := f.where()
	if err := eachRow(ctx, l.db.DB, `SELECT DISTINCT tableName, handler FROM tidemark_dead_letters WHERE `+where+` AND documentId <> '' AND handler IN ('upload', 'download')
		ORDER BY handler DESC`, func(scan func(...any) error) error {
		var table, stage string
		err := scan(&table, &stage)
		stages[table] = append(stages[table], stage)
		return err
	}, args...); err != nil {
		return fmt.Errorf("replay: %w", explain(err))
	}
	for _, p := range plans {
		for _, stage := range stages[p.t.Name] {
			if err := r.table(ctx, p, stage); err != nil {
				return fmt.Errorf("replay dead letters of table %q: %w", p.t.Name, err)
			}
		}
	}
	if err := r.others(ctx); err != nil {
		return fmt.Errorf("replay: %w", explain(err))
	}
	return nil
}

type replay struct {
	l      *Local
	f      DeadLetterFilter
	dryRun bool
	plans  []*plan // parents first
	last   int64   // letters that come later are not replayed
	tell   func(Replayed) error
}

// stored is a letter as it is replayed.
type storedLetter struct {
	Replayed
	payload []byte
}

// table replays a table's letters of one stage, a page a transaction.
func (r *replay) table(ctx context.Context, p *plan, stage string) error {
	for after := int64(0); ; {
		var page []storedLetter
		var counts messages.Counts
		err := r.l.applying(ctx, p, r.plans, &counts, func(a *applier) ([]messages.Document, error) {
			var err error
			if page, err = r.page(a, stage, after); err != nil || len(page) == 0 {
				return nil, err
			}
			docs, err := r.handle(a, stage, page)
			if err == nil && r.dryRun {
				err = errDryRun
			}
			return docs, err
		})
		if err != nil && !errors.Is(err, errDryRun) {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		for _, s := range page {
			if err := r.tell(s.Replayed); err != nil {
				return err
			}
		}
		after = page[len(page)-1].ID
	}
}

// page reads the next letters of a table and stage. The plus keeps SQLite from finding
// all of them by an index, to sort them for every page.
func (r *replay) page(a *applier, stage string, after int64) ([]storedLetter, error) {
	where, args := r.f.where()
	var page []storedLetter
	size := 0
	err := a.tx.each(`SELECT id, handler, tableName, documentId, payload, traceparent FROM tidemark_dead_letters
		WHERE `+where+` AND +tableName = ? AND +handler = ? AND documentId <> '' AND id > ? AND id <= ? ORDER BY id LIMIT ?`,
		append(args, a.p.t.Name, stage, after, r.last, replayPage), func(scan func(...any) error) error {
			if size > replayBytes {
				return errFull
			}
			var s storedLetter
			err := scan(&s.ID, &s.Stage, &s.Table, &s.DocumentID, &s.payload, &s.Traceparent)
			size += len(s.payload)
			page = append(page, s)
			return err
		})
	if errors.Is(err, errFull) {
		err = nil
	}
	return page, err
}

func (r *replay) handle(a *applier, stage string, page []storedLetter) (docs []messages.Document, err error) {
	if stage == messages.StageDownload {
		docs = make([]messages.Document, len(page))
		for i, s := range page {
			if docs[i], err = unmarshalDocument(s.Table, s.payload); err != nil {
				return nil, fmt.Errorf("%w; discard dead letter %d", err, s.ID)
			}
		}
		if err := a.look(docs); err != nil {
			return nil, err
		}
		if err := a.lookParents(docs); err != nil {
			return nil, err
		}
	}
	for i := range page {
		s := &page[i]
		s.payload = nil
		if s.Row, err = a.p.rowLabel(a.tx.ctx, a.tx.conn, s.DocumentID); err != nil {
			return docs, err
		}
		if stage == messages.StageUpload {
			err = r.upload(a, s)
		} else {
			err = r.download(a, s, &docs[i])
		}
		if err != nil {
			return docs, err
		}
	}
	return docs, nil
}

// upload asks the next upload to try a row again, unless it is already plain that it
// cannot go up.
func (r *replay) upload(a *applier, s *storedLetter) error {
	row, err := a.p.rowByID(a.tx, s.DocumentID)
	if err != nil {
		return err
	}
	if row == nil || !row.dirty {
		var buried bool
		if err := a.tx.row(`SELECT EXISTS (SELECT 1 FROM tidemark_tombstones WHERE tableName = ? AND clientId = ? AND isDirty = 1)`, s.Table, s.DocumentID).Scan(&buried); err != nil {
			return err
		}
		if !buried {
			s.Outcome = outcomeSuperseded
			return a.tx.clearLetter(s.Stage, s.Table, s.DocumentID)
		}
	} else {
		d := a.p.document(row, a.me)
		if reason := (&gatherer{}).unfit(a.p, row, &d); reason != "" {
			s.Outcome, s.Reason = outcomeFailed, reason
			raw, err := marshalDocument(&d)
			if err != nil {
				return err
			}
			return r.again(a, s, classLocal, raw, row.updatedOn)
		}
	}
	s.Outcome = outcomeRequested
	return a.tx.exec(`UPDATE tidemark_dead_letters SET state = 'dead', updatedOn = 0 WHERE id = ?`, s.ID)
}

// again updates a letter that failed once more.
func (r *replay) again(a *applier, s *storedLetter, class string, raw []byte, updatedOn int64) error {
	if err := a.tx.exec(`UPDATE tidemark_dead_letters SET state = 'dead' WHERE id = ?`, s.ID); err != nil {
		return err
	}
	return a.tx.letter(s.Stage, s.Table, s.DocumentID, class, s.Reason, raw, updatedOn)
}

// download applies a document again.
func (r *replay) download(a *applier, s *storedLetter, d *messages.Document) error {
	out, err := a.one(d)
	if err != nil {
		return err
	}
	switch out {
	case applied:
		s.Outcome = outcomeApplied
	case skipped:
		s.Outcome = outcomeSuperseded
		return a.tx.clearLetter(s.Stage, s.Table, s.DocumentID)
	case waiting:
		s.Outcome, s.Reason = outcomeWaiting, a.reason
	case pending:
		s.Outcome, s.Reason = outcomeWaiting, "a delete, which the next cycle decides"
	case collides, dead:
		s.Outcome, s.Reason = outcomeFailed, a.reason
		raw, err := marshalDocument(d)
		if err != nil {
			return err
		}
		return r.again(a, s, messages.ErrRejected.Error(), raw, d.UpdateTime)
	}
	return a.file(d, out)
}

// message asks for a letter of a whole message to be tried again: the next cycle makes
// the same message as of then, and hands it to the stage. The one that was kept is about
// a moment that has passed.
func (r *replay) message(ctx context.Context, id int64) (requested bool, err error) {
	err = r.l.write(ctx, func(tx *tx) error {
		n, err := tx.run(`UPDATE tidemark_dead_letters SET state = 'dead', updatedOn = 0 WHERE id = ? AND `+isStage, id)
		requested = n > 0
		if err == nil && r.dryRun {
			err = errDryRun
		}
		return err
	})
	if errors.Is(err, errDryRun) {
		err = nil
	}
	return requested, err
}

// others replays letters of whole messages, and tells of those that nobody can replay.
func (r *replay) others(ctx context.Context) error {
	tables := []string{}
	for _, p := range r.plans {
		tables = append(tables, p.t.Name)
	}
	list, err := json.Marshal(tables)
	if err != nil {
		return err
	}
	where, args := r.f.where()
	for id, err := range r.l.pagedIDs(ctx, `SELECT id FROM tidemark_dead_letters WHERE `+where+` AND (documentId = '' OR handler NOT IN ('upload', 'download') OR
		tableName NOT IN (SELECT value FROM json_each(?))) AND id > ? ORDER BY id LIMIT ?`, append(args, string(list)), 0, 0) {
		if err != nil {
			return err
		}
		s := Replayed{ID: id, Outcome: outcomeFailed}
		if ok, err := found(r.l.db.DB.QueryRowContext(ctx, `SELECT handler, tableName, documentId, traceparent FROM tidemark_dead_letters WHERE id = ?`, id).
			Scan(&s.Stage, &s.Table, &s.DocumentID, &s.Traceparent)); err != nil || !ok {
			return err
		}
		requested, err := r.message(ctx, id)
		if err != nil {
			return err
		}
		s.Reason = fmt.Sprintf("table %q is not synced any more", s.Table)
		if requested {
			s.Outcome, s.Reason = outcomeRequested, ""
		} else if s.DocumentID == "" || s.Stage != messages.StageUpload && s.Stage != messages.StageDownload {
			s.Reason = fmt.Sprintf("this program cannot replay what stage %q could not handle", s.Stage)
		}
		if err := r.tell(s); err != nil {
			return err
		}
	}
	return nil
}
