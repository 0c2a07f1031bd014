package persistence

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/tidemark-sync/tidemark/messages"
)

// Settle ends a download, in one transaction: received documents that waited are
// tried again, rows that refer to each other in a circle go in together, unique
// keys are decided, tombstones are applied or their rows revived, and what was seen
// moves to the targets. asked and fetched are the lookups that earlier Settlements of
// the same download wanted, and the documents that exist.
func (l *Local) Settle(ctx context.Context, asked map[string][]string, fetched []messages.Document, step messages.Step) (messages.Settlement, error) {
	plans, err := l.allPlans(ctx)
	if err != nil || len(plans) == 0 {
		return messages.Settlement{}, err
	}
	skip := map[docKey]string{}
	for {
		var at docKey
		out, err := l.settle(ctx, plans, asked, fetched, step, skip, &at)
		if culpable(err) && at.id != "" && skip[at] == "" {
			skip[at] = err.Error() // leave it out and settle again
			continue
		}
		if err != nil {
			return out, fmt.Errorf("settle the download: %w", err)
		}
		return out, nil
	}
}

// settle is one try. at is the document that it was at when it failed.
func (l *Local) settle(ctx context.Context, plans []*plan, asked map[string][]string, fetched []messages.Document, step messages.Step,
	skip map[docKey]string, at *docKey,
) (out messages.Settlement, err error) {
	err = l.write(ctx, func(tx *tx) error {
		out = messages.Settlement{Lookup: map[string][]string{}}
		s := &settler{tx: tx, plans: plans, out: &out, appliers: map[string]*applier{}, byName: map[string]*plan{}, asked: asked, skip: skip}
		defer func() { *at = s.at }()
		for _, p := range plans {
			s.byName[p.t.Name] = p
		}
		var broken bool
		if err := tx.row(`SELECT cutBroken FROM tidemark_state`).Scan(&broken); err != nil {
			return err
		}
		if err := tx.listen(plans); err != nil {
			return err
		}
		if err := s.undelete(fetched, false); err != nil {
			return err
		}
		if err := s.inbox(); err != nil {
			return err
		}
		if broken {
			// What was read whole was read at two times: a tombstone and a child may
			// belong to different moments. The next round has one cut.
			out.Again, out.Lookup = true, nil
		} else {
			if err := s.vanished(); err != nil {
				return err
			}
			if err := s.wanted(); err != nil || len(out.Lookup) > 0 {
				return err
			}
			if err := s.guard(l.deleteGuard()); err != nil {
				return err
			}
			// A delete frees a unique key: first the deletes, then what waited for the
			// key, then who really has the same one.
			if err := s.tombstones(); err != nil {
				return err
			}
			if err := s.inbox(); err != nil {
				return err
			}
			if err := s.undelete(fetched, true); err != nil {
				return err
			}
			if err := s.collisions(); err != nil {
				return err
			}
			if err := s.refer(); err != nil {
				return err
			}
			if err := s.withdraw(); err != nil {
				return err
			}
			if tx.reacts {
				if err := s.touched(fetched); err != nil || len(out.Lookup) > 0 {
					return err
				}
			}
		}
		if err := tx.advance(); err != nil {
			return err
		}
		step.Counts.Add(out.Counts)
		return tx.step(step)
	})
	return out, err
}

type settler struct {
	tx       *tx
	plans    []*plan // parents first
	byName   map[string]*plan
	out      *messages.Settlement
	appliers map[string]*applier
	asked    map[string][]string
	skip     map[docKey]string   // documents whose statements made it fail
	at       docKey              // the document under way
	final    bool                // what meets a unique key now will not be free of it
	changed  []docKey            // documents of which something else is known than before
	orphans  map[docKey][]orphan // children of rows that were merged into one about to be inserted
}

func (s *settler) applier(p *plan) (*applier, error) {
	if a := s.appliers[p.t.Name]; a != nil {
		return a, nil
	}
	a, err := newApplier(s.tx, p, &s.out.Counts)
	if err != nil {
		return nil, err
	}
	a.settle, a.final, a.at, a.changed, a.skip = true, s.final, &s.at, &s.changed, map[string]string{}
	for k, why := range s.skip {
		if k.table == p.t.Name {
			a.skip[k.id] = why
		}
	}
	s.appliers[p.t.Name] = a
	return a, nil
}

// received reads a table's documents of one kind from the inbox, in batches.
func (s *settler) received(p *plan, kind, after string, limit int) ([]messages.Document, error) {
	var docs []messages.Document
	err := s.tx.each(`SELECT document FROM tidemark_inbox WHERE tableName = ? AND kind = ? AND documentId > ? ORDER BY documentId LIMIT ?`,
		[]any{p.t.Name, kind, after, limit}, func(scan func(...any) error) error {
			var raw []byte
			if err := scan(&raw); err != nil {
				return err
			}
			d, err := unmarshalDocument(p.t.Name, raw)
			docs = append(docs, d)
			return err
		})
	return docs, err
}

const inboxBatch = 500

// each calls fn with every document of one kind and reports whether any was
// settled.
func (s *settler) each(p *plan, kind string, fn func(a *applier, d *messages.Document) (bool, error)) (progress bool, err error) {
	a, err := s.applier(p)
	if err != nil {
		return false, err
	}
	for after := ""; ; {
		s.at = docKey{}
		docs, err := s.received(p, kind, after, inboxBatch)
		if err != nil || len(docs) == 0 {
			return progress, err
		}
		after = docs[len(docs)-1].ID
		if err := a.look(docs); err != nil {
			return progress, err
		}
		for i := range docs {
			s.at = docKey{p.t.Name, docs[i].ID}
			if why, skip := s.skip[s.at]; skip {
				a.reason, progress = why, true
				if err := a.file(&docs[i], dead); err != nil {
					return progress, err
				}
				continue
			}
			done, err := fn(a, &docs[i])
			if err != nil {
				return progress, err
			}
			progress = progress || done
		}
	}
}

// retry tries a received document once more and says whether that settled it.
func (s *settler) retry(a *applier, d *messages.Document) (bool, error) {
	out, err := a.one(d)
	if err != nil {
		return false, err
	}
	return s.record(a, d, out)
}

// record keeps in the inbox what became of a document there, and says whether that
// settled it.
func (s *settler) record(a *applier, d *messages.Document, out outcome) (bool, error) {
	switch out {
	case applied, dead:
		return true, a.file(d, out)
	case skipped:
		return true, s.tx.exec(`DELETE FROM tidemark_inbox WHERE tableName = ? AND documentId = ?`, a.p.t.Name, d.ID)
	case pending:
	case waiting, collides:
		kind := map[outcome]string{waiting: "waiting", collides: "collides"}[out]
		return false, s.tx.exec(`UPDATE tidemark_inbox SET kind = ?, reason = ? WHERE tableName = ? AND documentId = ?`, kind, a.reason, a.p.t.Name, d.ID)
	}
	return false, nil
}

// inbox retries what waits until nothing moves any more, then lets the rows in
// that only wait for each other.
func (s *settler) inbox() error {
	for {
		progress, err := s.arrivals()
		if err != nil {
			return err
		}
		for _, p := range s.plans {
			moved, err := s.each(p, "collides", s.retry)
			if err != nil {
				return err
			}
			progress = progress || moved
		}
		if progress {
			continue
		}
		moved, err := s.circles(false)
		if err != nil || !moved {
			return err
		}
	}
}

// arrivals lets in what waits for nothing any more, and then what waited for that:
// each document is tried when the last of its parents is in, so that a long chain in
// the wrong order takes no longer than one in the right order.
func (s *settler) arrivals() (progress bool, err error) {
	var ready []docKey
	wants := map[docKey]int{}
	children := map[docKey][]docKey{}
	for _, p := range s.plans {
		if _, err := s.each(p, "waiting", func(a *applier, d *messages.Document) (bool, error) {
			k := docKey{p.t.Name, d.ID}
			ms, err := s.missing(a, d)
			if err != nil {
				return false, err
			}
			if len(ms) == 0 {
				ready = append(ready, k)
			}
			wants[k] = len(ms)
			for _, m := range ms {
				children[m] = append(children[m], k)
			}
			return false, nil
		}); err != nil {
			return false, err
		}
	}
	for len(ready) > 0 {
		k := ready[0]
		ready = ready[1:]
		a, err := s.applier(s.byName[k.table])
		if err != nil {
			return progress, err
		}
		var raw []byte
		ok, err := found(s.tx.row(`SELECT document FROM tidemark_inbox WHERE tableName = ? AND documentId = ? AND kind = 'waiting'`, k.table, k.id).Scan(&raw))
		if err != nil {
			return progress, err
		}
		if !ok {
			continue
		}
		d, err := unmarshalDocument(k.table, raw)
		if err != nil {
			return progress, err
		}
		if err := a.look([]messages.Document{d}); err != nil {
			return progress, err
		}
		done, err := s.retry(a, &d)
		if err != nil {
			return progress, err
		}
		progress = progress || done
		if a.rows[k.id] == nil {
			continue
		}
		for _, c := range children[k] {
			if wants[c]--; wants[c] == 0 {
				ready = append(ready, c)
			}
		}
	}
	return progress, nil
}

// docKey names a document across tables.
type docKey struct{ table, id string }

// missing lists the parents of a document that are not here.
func (s *settler) missing(a *applier, d *messages.Document) ([]docKey, error) {
	var out []docKey
	for i := range a.p.refs {
		r := &a.p.refs[i]
		id, ok := d.Fields[r.field].(string)
		if !ok {
			continue
		}
		key, err := a.parentKey(r, id)
		if err != nil {
			return nil, err
		}
		if key == nil {
			out = append(out, docKey{r.parent.Name, id})
		}
	}
	return out, nil
}

// wanted names the parents that waiting documents refer to and that were deleted
// here: the child's side wins, and the parent's data is on the server.
func (s *settler) wanted() error {
	for _, p := range s.plans {
		if _, err := s.each(p, "waiting", func(a *applier, d *messages.Document) (bool, error) {
			ms, err := s.missing(a, d)
			if err != nil {
				return false, err
			}
			for _, m := range ms {
				if err := s.want(m); err != nil {
					return false, err
				}
			}
			return false, nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// want asks for a document that is missing because it was deleted here.
func (s *settler) want(k docKey) error {
	survivor, err := s.tx.survivor(k.table, k.id)
	if err != nil {
		return err
	}
	if survivor != "" {
		k.id = survivor
	}
	if slices.Contains(s.asked[k.table], k.id) || slices.Contains(s.out.Lookup[k.table], k.id) {
		return nil
	}
	var n int
	if err := s.tx.row(`SELECT count(*) FROM tidemark_tombstones WHERE tableName = ? AND clientId = ? AND survivor = ''`, k.table, k.id).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		s.out.Lookup[k.table] = append(s.out.Lookup[k.table], k.id)
	}
	return nil
}

// undelete brings back rows that were deleted here and got a child elsewhere: as
// they are on the server when they live there, otherwise as an edit that revives
// the document. Where its unique key is taken it has to wait until the deletes have
// been applied; then it is merged with the row that has it.
func (s *settler) undelete(fetched []messages.Document, deletesDone bool) error {
	if len(fetched) == 0 {
		return nil
	}
	wanted, err := s.heldByWaiting()
	if err != nil {
		return err
	}
	for progress := true; progress; {
		progress = false
		open := map[docKey][]docKey{} // who waits for others that are to come back, or for itself
		docs := map[docKey]messages.Document{}
		for i := range fetched {
			d := fetched[i]
			p := s.byName[d.Table]
			if p == nil {
				continue
			}
			a, err := s.applier(p)
			if err != nil {
				return err
			}
			if err := a.look([]messages.Document{d}); err != nil {
				return err
			}
			if a.rows[d.ID] != nil || !wanted[docKey{d.Table, d.ID}] {
				continue
			}
			tombstone := d
			d.Deleted = false
			s.at = docKey{d.Table, d.ID}
			out := dead
			if a.reason = a.skip[d.ID]; a.reason == "" {
				out, err = a.insert(&d)
			}
			if err != nil {
				return err
			}
			if out == waiting {
				ms, err := s.missing(a, &d)
				if err != nil {
					return err
				}
				for n, m := range ms {
					if survivor, err := s.tx.survivor(m.table, m.id); err != nil {
						return err
					} else if survivor != "" {
						m.id = survivor
					}
					ms[n] = m
					progress = progress || !wanted[m]
					wanted[m] = true
					if err := s.want(m); err != nil {
						return err
					}
				}
				open[s.at], docs[s.at] = ms, tombstone
				continue
			}
			if out == collides && !deletesDone {
				continue
			}
			if err := a.dropTombstone(d.ID); err != nil {
				return err
			}
			if out == collides && p.options.Unique != SetAside {
				merged, err := s.mergeWhole(a, &d)
				if err != nil {
					return err
				}
				if merged { // its children find the one that lives on
					delete(wanted, s.at)
					progress = true
					continue
				}
			}
			if out != applied {
				if err := a.file(&d, dead); err != nil {
					return err
				}
				continue
			}
			progress = true
			if err := s.back(a, &tombstone); err != nil {
				return err
			}
			if err := a.file(&d, applied); err != nil {
				return err
			}
		}
		if !progress {
			if progress, err = s.backTogether(open, docs, deletesDone); err != nil {
				return err
			}
		}
	}
	return nil
}

// back makes a row that is here again an edit, where it was deleted on the server.
func (s *settler) back(a *applier, d *messages.Document) error {
	r := a.rows[d.ID]
	if !d.Deleted || r == nil || r.dirty { // it was merged, or is an edit already
		return nil
	}
	if err := s.tx.exec(`UPDATE `+a.p.name+` SET isDirty = 1, updatedOn = ?, updatedBy = ? WHERE clientId = ?`, d.UpdatedOn+1, a.me, d.ID); err != nil {
		return err
	}
	r.dirty = true
	return s.revived(d)
}

// backTogether brings rows back that refer to each other, or to themselves.
func (s *settler) backTogether(needs map[docKey][]docKey, docs map[docKey]messages.Document, decide bool) (bool, error) {
	alive := maps.Clone(docs)
	for k, d := range alive {
		d.Deleted, d.Survivor = false, ""
		alive[k] = d
	}
	for {
		if inside(needs); len(needs) == 0 {
			return false, nil
		}
		c := s.circle(needs, alive)
		if done, err := s.allBack(c, docs, decide); err != nil || done {
			return done, err
		}
		if len(c.failed) == 0 {
			return false, nil
		}
		for k, r := range c.failed { // without those that do not fit
			delete(needs, k)
			if !decide && r.out == collides {
				continue
			}
			a, d := s.appliers[k.table], alive[k]
			a.reason = r.reason
			if err := a.dropTombstone(k.id); err != nil {
				return false, err
			}
			if err := a.file(&d, dead); err != nil {
				return false, err
			}
		}
	}
}

func (s *settler) allBack(c *circle, docs map[docKey]messages.Document, decide bool) (bool, error) {
	return s.whole(func() (bool, error) {
		for _, k := range c.order {
			if err := s.appliers[k.table].dropTombstone(k.id); err != nil {
				return false, err
			}
		}
		if done, err := s.together(c, decide); err != nil || !done {
			return false, err
		}
		for _, k := range c.order {
			d := docs[k]
			if err := s.back(s.appliers[k.table], &d); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}
