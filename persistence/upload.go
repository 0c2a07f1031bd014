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

// Dirty gathers the next writes of an upload, at most one commit's worth: dirty
// rows with parents before children – a row whose new parent comes later in the
// order brings it along, so rows that refer to each other share a commit – then
// tombstones with children before parents. It is empty when nothing is left. Rows
// that cannot go up are set aside with the reason, rows whose parent cannot are
// held; both are counted in the cursor.
func (l *Local) Dirty(ctx context.Context, cur *messages.Cursor) ([]messages.Write, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return nil, err
	}
	var g *gatherer
	next := *cur
	err = l.write(ctx, func(tx *tx) error {
		next = *cur
		next.Counts = messages.Counts{}
		g = &gatherer{tx: tx, cur: &next, plans: plans, byTable: map[string]*plan{}, in: map[messages.DocumentKey]bool{}, visiting: map[messages.DocumentKey]int{}}
		for _, p := range plans {
			g.byTable[p.t.Name] = p
		}
		if g.me, err = tx.installationID(); err != nil {
			return err
		}
		err := g.rows()
		if err == nil && next.Tombstones {
			err = g.tombstones()
		}
		if errors.Is(err, errFull) {
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("gather dirty rows: %w", err)
	}
	counts := cur.Counts
	counts.Add(next.Counts)
	*cur = next
	cur.Counts = counts
	return g.writes, nil
}

var errFull = errors.New("the commit is full")

type gatherer struct {
	tx      *tx
	cur     *messages.Cursor
	me      string
	plans   []*plan
	byTable map[string]*plan
	writes  []messages.Write
	in      map[messages.DocumentKey]bool
	bytes   int
	// visiting has the depth of the rows whose parents are being added; openLow is
	// the least depth that a row in writes refers back to: up to closed, writes is
	// complete in itself.
	visiting map[messages.DocumentKey]int
	openLow  int
	closed   int
}

// maxDepth bounds how many new ancestors one row brings along at once.
const maxDepth = 1000

const notOpen = int(^uint(0) >> 1)

func (g *gatherer) rows() error {
	for ; !g.cur.Tombstones; g.cur.Table, g.cur.After = g.cur.Table+1, "" {
		if g.cur.Table >= len(g.plans) {
			g.cur.Tombstones, g.cur.Table, g.cur.After = true, len(g.plans)-1, ""
			return nil
		}
		p := g.plans[g.cur.Table]
		for {
			var rows []*localRow
			// isDirty = 1 is spelled as in the partial index, or it would be a scan.
			err := g.tx.each(p.selectSQL+` WHERE t.isDirty = 1 AND t.clientId > ? ORDER BY t.clientId LIMIT 500`, []any{g.cur.After},
				func(scan func(...any) error) error {
					r, err := p.scanRow(scan)
					rows = append(rows, r)
					return err
				})
			if err != nil {
				return err
			}
			if len(rows) == 0 {
				break
			}
			for _, r := range rows {
				if err := g.top(p, r); err != nil {
					return err
				}
				g.cur.After = r.clientID
			}
		}
	}
	return nil
}

// top adds a row and what it needs. When the commit is full before the row is in,
// only what is complete stays.
func (g *gatherer) top(p *plan, r *localRow) error {
	start := len(g.writes)
	g.openLow, g.closed = notOpen, start
	clear(g.visiting)
	for tries := 0; ; tries++ {
		ok, err := g.add(p, r, 0)
		if errors.Is(err, errFull) {
			g.truncate(g.closed)
			return err
		}
		var deep *tooDeepError
		if errors.As(err, &deep) && tries < 100_000 {
			// A long chain: its far end goes first, in commits of its own.
			g.truncate(g.closed)
			clear(g.visiting)
			if err := g.top(deep.p, deep.r); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if !ok {
			g.truncate(start)
		}
		return nil
	}
}

type tooDeepError struct {
	p *plan
	r *localRow
}

func (*tooDeepError) Error() string { return "too many new ancestors" }

func (g *gatherer) truncate(n int) {
	for _, w := range g.writes[n:] {
		delete(g.in, messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID})
		g.bytes -= w.Document.Size()
	}
	g.writes = g.writes[:n]
}

// add appends a dirty row after its new parents. false: the row cannot go up now.
func (g *gatherer) add(p *plan, r *localRow, depth int) (bool, error) {
	k := messages.DocumentKey{Table: p.t.Name, ID: r.clientID}
	switch {
	case g.in[k]:
		return true, nil
	case g.cur.Held[k]:
		return false, nil
	case depth > maxDepth:
		return false, &tooDeepError{p, r}
	}
	refused, err := g.refusedBefore(p, r)
	if err != nil {
		return false, err
	}
	if refused {
		g.hold(k, messages.TableCounts{Dead: 1})
		return false, nil
	}
	d := p.document(r, g.me)
	if reason := g.unfit(p, r, &d); reason != "" {
		if err := g.tx.setAside(&d, reason, r.updatedOn); err != nil {
			return false, err
		}
		g.hold(k, messages.TableCounts{Dead: 1})
		return false, nil
	}
	g.visiting[k] = depth
	defer delete(g.visiting, k)
	for i, o := range r.parents {
		if o.null || o.known {
			continue
		}
		pp := g.byTable[p.refs[i].parent.Name]
		pk := messages.DocumentKey{Table: pp.t.Name, ID: o.id}
		if at, open := g.visiting[pk]; open {
			g.openLow = min(g.openLow, at)
			continue
		}
		ok := g.in[pk]
		if !ok && !g.cur.Held[pk] {
			parent, err := pp.rowByID(g.tx, o.id)
			if err != nil {
				return false, err
			}
			if parent != nil {
				if ok, err = g.add(pp, parent, depth+1); err != nil {
					return false, err
				}
			}
		}
		if !ok {
			g.hold(k, messages.TableCounts{Waiting: 1})
			return false, nil
		}
	}
	if g.in[k] { // a circle brought it in
		return true, nil
	}
	w := messages.Write{Document: d}
	if r.serverID != "" {
		w.Expect = r.serverVersion
		if p.surrogate != "" { // the document keeps its creator's number
			delete(d.Fields, p.column(p.surrogate))
		}
	}
	if err := g.put(w); err != nil {
		return false, err
	}
	if g.openLow >= depth {
		g.openLow, g.closed = notOpen, len(g.writes)
	}
	return true, nil
}

func (g *gatherer) put(w messages.Write) error {
	size := w.Document.Size()
	full := len(g.writes) >= messages.MaxCommitWrites-1 || g.bytes+size > messages.MaxCommitBytes
	if full && g.closed > 0 {
		return errFull
	}
	g.writes = append(g.writes, w)
	g.in[messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}] = true
	g.bytes += size
	return nil
}

func (g *gatherer) hold(k messages.DocumentKey, c messages.TableCounts) {
	g.cur.Hold(k.Table, k.ID)
	g.cur.Counts.Table(k.Table, c)
}

// refusedBefore: the server has refused this row as it is; only an edit, or a
// replay of its letter, tries again.
func (g *gatherer) refusedBefore(p *plan, r *localRow) (bool, error) {
	var n int
	err := g.tx.row(`SELECT count(*) FROM tidemark_dead_letters WHERE handler = 'upload' AND tableName = ? AND documentId = ? AND state = 'dead'
		AND updatedOn = ? AND class <> 'local'`, p.t.Name, r.clientID, r.updatedOn).Scan(&n)
	return n > 0, err
}

// classLocal marks letters that this device decided by itself; they are looked at
// again in every upload.
const classLocal = "local"

// unfit says why the server could never take a row, or "".
func (g *gatherer) unfit(p *plan, r *localRow, d *messages.Document) string {
	for i, o := range r.parents {
		if o.dangling {
			return fmt.Sprintf("column %q refers to a row of table %q that does not exist: add the parent, or set the column to NULL",
				p.refs[i].fk.Columns[0], p.refs[i].parent.Name)
		}
	}
	for i := range p.cols {
		if s, ok := r.values[i].(string); ok && !utf8.ValidString(s) {
			return fmt.Sprintf("column %q holds text that is not valid UTF-8: store it as a BLOB, or repair it", p.cols[i].Name)
		}
	}
	if n := d.Size(); n > messages.MaxDocumentBytes {
		return fmt.Sprintf("the row takes %d bytes and the server takes at most %d a document: shorten it", n, messages.MaxDocumentBytes)
	}
	return ""
}

func (t *tx) setAside(d *messages.Document, reason string, updatedOn int64) error {
	var had string
	ok, err := found(t.row(`SELECT reason FROM tidemark_dead_letters WHERE handler = 'upload' AND tableName = ? AND documentId = ? AND state = 'dead'`,
		d.Table, d.ID).Scan(&had))
	if err != nil || ok && had == reason {
		return err
	}
	raw, err := marshalDocument(d)
	if err != nil {
		return err
	}
	return t.letter(messages.StageUpload, d.Table, d.ID, classLocal, reason, raw, updatedOn)
}

func (g *gatherer) tombstones() error {
	for ; g.cur.Table >= 0; g.cur.Table, g.cur.After = g.cur.Table-1, "" {
		p := g.plans[g.cur.Table]
		for {
			var writes []messages.Write
			err := g.tx.each(`SELECT clientId, coalesce(createdOn, updatedOn), updatedOn, CASE WHEN serverId IS NULL THEN 0 ELSE coalesce(serverVersion, 0) END, survivor
				FROM tidemark_tombstones WHERE tableName = ? AND isDirty = 1 AND clientId > ? ORDER BY clientId LIMIT 500`, []any{p.t.Name, g.cur.After},
				func(scan func(...any) error) error {
					w := messages.Write{Document: messages.Document{Table: p.t.Name, Deleted: true, UpdatedBy: g.me}}
					err := scan(&w.Document.ID, &w.Document.CreatedOn, &w.Document.UpdatedOn, &w.Expect, &w.Document.Survivor)
					writes = append(writes, w)
					return err
				})
			if err != nil {
				return err
			}
			if len(writes) == 0 {
				break
			}
			for _, w := range writes {
				waits, err := g.stillReferred(&w.Document)
				if err != nil {
					return err
				}
				k := messages.DocumentKey{Table: p.t.Name, ID: w.Document.ID}
				if waits {
					g.hold(k, messages.TableCounts{Waiting: 1})
				} else if !g.cur.Held[k] {
					g.closed = len(g.writes)
					if err := g.put(w); err != nil {
						return err
					}
				}
				g.cur.After = w.Document.ID
			}
		}
	}
	return nil
}

// stillReferred: a row that referred to the deleted one when we last agreed with
// the server has not gone up yet; there it still refers to it.
func (g *gatherer) stillReferred(d *messages.Document) (bool, error) {
	waits := false
	err := g.tx.each(`SELECT tableName, clientId FROM tidemark_left WHERE parentTable = ? AND parentId = ?`, []any{d.Table, d.ID},
		func(scan func(...any) error) error {
			var k messages.DocumentKey
			err := scan(&k.Table, &k.ID)
			waits = waits || !g.in[k]
			return err
		})
	return waits, err
}

// journalEntry is one write as the journal remembers it.
type journalEntry struct {
	Table     string `json:"t"`
	ID        string `json:"i"`
	UpdatedOn int64  `json:"u"`
	Deleted   bool   `json:"d,omitempty"`
}

// Prepare makes the commit for some writes, with the next sequence number and a
// new token, and saves the token with a journal of what the commit holds. Without
// writes it renews the record only: the number stays. Children whose parent is
// neither on the server nor in the commit are left out.
func (l *Local) Prepare(ctx context.Context, writes []messages.Write) (messages.Commit, error) {
	var c messages.Commit
	err := l.write(ctx, func(tx *tx) error {
		c = messages.Commit{Device: messages.Device{Name: l.info.Name, Platform: l.info.Platform, Version: l.info.Version, Token: newID(), Tables: map[string]int64{}}}
		var tables string
		if err := tx.row(`SELECT installationId, seq, recordVersion, recordTables FROM tidemark_state`).Scan(&c.Device.ID, &c.Device.Seq, &c.Expect, &tables); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(tables), &c.Device.Tables); err != nil {
			return fmt.Errorf("the bookkeeping is damaged: %w", err)
		}
		var err error
		if c.Device.Seen, err = tx.seen(); err != nil {
			return err
		}
		if len(writes) > 0 {
			c.Device.Seq++
			c.Announce = true
		}
		journal := make([]journalEntry, len(writes))
		c.Writes = slices.Clone(writes)
		for i := range c.Writes {
			d := &c.Writes[i].Document
			d.Stamp = messages.Stamp{Device: c.Device.ID, Seq: c.Device.Seq}
			d.UpdatedBy = c.Device.ID
			c.Device.Tables[d.Table] = c.Device.Seq
			journal[i] = journalEntry{d.Table, d.ID, d.UpdatedOn, d.Deleted}
		}
		raw, err := json.Marshal(journal)
		if err != nil {
			return err
		}
		return tx.exec(`INSERT INTO tidemark_tokens (token, seq, sentOn, journal) VALUES (?, ?, ?, ?)`, c.Device.Token, c.Device.Seq, time.Now().UnixMilli(), raw)
	})
	if err != nil {
		return c, fmt.Errorf("prepare a commit: %w", err)
	}
	return c, nil
}

// Acknowledge records that the commit with this token took effect at updateTime
// (µs): its rows are clean unless they were edited meanwhile, and no other token
// can have landed. It returns the rows acknowledged, per table; messages.ErrNotFound
// when the token is not ours.
func (l *Local) Acknowledge(ctx context.Context, token string, updateTime int64) (messages.Counts, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return messages.Counts{}, err
	}
	byTable := map[string]*plan{}
	for _, p := range plans {
		byTable[p.t.Name] = p
	}
	var counts messages.Counts
	err = l.write(ctx, func(tx *tx) error {
		counts = messages.Counts{}
		var seq int64
		var raw []byte
		ok, err := found(tx.row(`SELECT seq, journal FROM tidemark_tokens WHERE token = ?`, token).Scan(&seq, &raw))
		if err != nil {
			return err
		}
		if !ok {
			return messages.ErrNotFound
		}
		var journal []journalEntry
		if err := json.Unmarshal(raw, &journal); err != nil {
			return fmt.Errorf("the journal of a commit is damaged: %w", err)
		}
		me, err := tx.installationID()
		if err != nil {
			return err
		}
		var recordTables string
		if err := tx.row(`SELECT recordTables FROM tidemark_state`).Scan(&recordTables); err != nil {
			return err
		}
		tables := map[string]int64{}
		if err := json.Unmarshal([]byte(recordTables), &tables); err != nil {
			return fmt.Errorf("the bookkeeping is damaged: %w", err)
		}
		var letters int
		if err := tx.row(`SELECT EXISTS (SELECT 1 FROM tidemark_dead_letters WHERE handler = 'upload' AND state = 'dead')`).Scan(&letters); err != nil {
			return err
		}
		for _, e := range journal {
			tables[e.Table] = seq
			counts.Table(e.Table, messages.TableCounts{Uploaded: 1})
			p := byTable[e.Table]
			if p == nil {
				continue // the table was dropped or excluded meanwhile
			}
			if err := tx.acknowledge(p, e, me, updateTime); err != nil {
				return err
			}
			if letters > 0 {
				if err := tx.clearLetter(messages.StageUpload, e.Table, e.ID); err != nil {
					return err
				}
			}
		}
		rawTables, err := json.Marshal(tables)
		if err != nil {
			return err
		}
		if err := tx.exec(`UPDATE tidemark_state SET seq = ?, recordVersion = ?, recordTables = ?, registeredOn = ?, changedRows = changedRows + ?`,
			seq, updateTime, string(rawTables), time.Now().UnixMilli(), len(journal)); err != nil {
			return err
		}
		return tx.exec(`DELETE FROM tidemark_tokens`)
	})
	if err != nil {
		return counts, fmt.Errorf("record an acknowledged commit: %w", err)
	}
	return counts, nil
}

func (t *tx) acknowledge(p *plan, e journalEntry, me string, updateTime int64) error {
	if !e.Deleted {
		// An edit made while the commit was on its way keeps the row dirty.
		n, err := t.run(`UPDATE `+p.name+` SET serverId = clientId, serverVersion = ?, isDirty = CASE WHEN updatedOn = ? THEN 0 ELSE 1 END,
			updatedBy = ? WHERE clientId = ?`, updateTime, e.UpdatedOn, me, e.ID)
		if err != nil {
			return err
		}
		if n > 0 {
			if len(p.refs) == 0 {
				return nil
			}
			return t.exec(`DELETE FROM tidemark_left WHERE tableName = ? AND clientId = ?`, e.Table, e.ID)
		}
		// Deleted meanwhile: its tombstone goes on top of this version.
		return t.exec(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ? WHERE tableName = ? AND clientId = ?`, updateTime, e.Table, e.ID)
	}
	n, err := t.run(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ?, isDirty = CASE WHEN updatedOn = ? THEN 0 ELSE 1 END,
		updatedBy = ? WHERE tableName = ? AND clientId = ?`, updateTime, e.UpdatedOn, me, e.Table, e.ID)
	if err != nil || n > 0 {
		return err
	}
	// The row came back meanwhile: it goes on top of the tombstone.
	return t.exec(`UPDATE `+p.name+` SET serverId = clientId, serverVersion = ?, isDirty = 1 WHERE clientId = ?`, updateTime, e.ID)
}

// SetAside puts a row that the server refuses to take into the dead letters.
func (l *Local) SetAside(ctx context.Context, w messages.Write, class, reason string) error {
	err := l.write(ctx, func(tx *tx) error {
		raw, err := marshalDocument(&w.Document)
		if err != nil {
			return err
		}
		return tx.letter(messages.StageUpload, w.Document.Table, w.Document.ID, class, reason, raw, w.Document.UpdatedOn)
	})
	if err != nil {
		return fmt.Errorf("set a refused row aside: %w", err)
	}
	return nil
}

// Closed drops from some writes those whose parent is neither acknowledged nor
// among them, and holds them in the cursor: what is left of a commit that was
// split.
func (l *Local) Closed(ctx context.Context, cur *messages.Cursor, writes []messages.Write) ([]messages.Write, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return nil, err
	}
	byTable := map[string]*plan{}
	for _, p := range plans {
		byTable[p.t.Name] = p
	}
	out := slices.Clone(writes)
	err = l.write(ctx, func(tx *tx) error {
		for {
			in := map[messages.DocumentKey]bool{}
			for _, w := range out {
				in[messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}] = true
			}
			before := len(out)
			var failed error
			out = slices.DeleteFunc(out, func(w messages.Write) bool {
				p := byTable[w.Document.Table]
				if p == nil || w.Document.Deleted || failed != nil {
					return false
				}
				for i := range p.refs {
					id, ok := w.Document.Fields[p.refs[i].field].(string)
					if !ok || in[messages.DocumentKey{Table: p.refs[i].parent.Name, ID: id}] {
						continue
					}
					var n int
					if failed = tx.row(`SELECT count(*) FROM `+quote(p.refs[i].parent.Name)+` WHERE clientId = ? AND serverId IS NOT NULL`, id).Scan(&n); failed != nil {
						return false
					}
					if n == 0 {
						cur.Hold(w.Document.Table, w.Document.ID)
						cur.Counts.Table(w.Document.Table, messages.TableCounts{Waiting: 1})
						return true
					}
				}
				return false
			})
			if failed != nil || len(out) == before {
				return failed
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("split a commit: %w", err)
	}
	return out, nil
}

// Moved settles a commit whose precondition did not hold against the documents as
// they are now: newer versions that the next download will bring are left to it,
// others are resolved here; a document that is gone will be created again.
func (l *Local) Moved(ctx context.Context, c messages.Commit, now []messages.Document) (messages.Moved, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return messages.Moved{}, err
	}
	byTable := map[string]*plan{}
	for _, p := range plans {
		byTable[p.t.Name] = p
	}
	current := map[messages.DocumentKey]*messages.Document{}
	for i := range now {
		current[messages.DocumentKey{Table: now[i].Table, ID: now[i].ID}] = &now[i]
	}
	var out messages.Moved
	err = l.write(ctx, func(tx *tx) error {
		out = messages.Moved{Leave: map[messages.DocumentKey]bool{}}
		seen, err := tx.seen()
		if err != nil {
			return err
		}
		appliers := map[string]*applier{}
		for i := range c.Writes {
			w := &c.Writes[i]
			k := messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}
			d, p := current[k], byTable[w.Document.Table]
			version := int64(0)
			if d != nil {
				version = d.UpdateTime
			}
			if p == nil || version == w.Expect {
				continue
			}
			out.Leave[k] = true
			if d == nil { // purged: we knew its tombstone, so it starts anew
				if w.Document.Deleted {
					err = tx.exec(`UPDATE tidemark_tombstones SET isDirty = 0 WHERE tableName = ? AND clientId = ?`, k.Table, k.ID)
				} else {
					err = tx.exec(`UPDATE `+p.name+` SET serverId = NULL, serverVersion = NULL WHERE clientId = ?`, k.ID)
				}
				if err != nil {
					return err
				}
				continue
			}
			if d.Stamp.Device != "" && d.Stamp.Device != c.Device.ID && d.Stamp.Seq > seen[d.Stamp.Device] {
				continue // the next download brings it, in a consistent cut
			}
			a := appliers[k.Table]
			if a == nil {
				if a, err = newApplier(tx, p, &out.Counts); err != nil {
					return err
				}
				appliers[k.Table] = a
			}
			if err := a.look([]messages.Document{*d}); err != nil {
				return err
			}
			res, err := a.one(d)
			if err != nil {
				return err
			}
			if err := a.file(d, res); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("settle documents that moved: %w", err)
	}
	return out, nil
}
