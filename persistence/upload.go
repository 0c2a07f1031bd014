package persistence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
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
		var attached bool // or a column that came since then would go up empty
		if err := tx.row(`SELECT schemaVersion = (SELECT schema_version FROM pragma_schema_version) FROM tidemark_state`).Scan(&attached); err != nil {
			return err
		}
		if !attached {
			return messages.ErrSchemaChanged
		}
		if cur.Table == 0 && cur.After == "" && !cur.Tombstones { // the upload begins
			if err := tx.clearSettled(plans); err != nil {
				return err
			}
			if err := tx.fostered(plans, g.me); err != nil {
				return err
			}
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

// fostered makes rows dirty whose parent is another row than it was, though nothing of
// theirs changed: it was deleted and inserted again with its key, or its number was given
// again. What the server agreed on cannot refer to what it does not know.
func (t *tx) fostered(plans []*plan, me string) error {
	for _, p := range plans {
		if len(p.children) == 0 {
			continue
		}
		var left, born bool
		if err := t.row(`SELECT EXISTS (SELECT 1 FROM tidemark_tombstones WHERE tableName = ? AND isDirty = 1 AND localKey <> '')`, p.t.Name).Scan(&left); err != nil {
			return err
		}
		if !left { // nobody has had a key that is another one's now
			continue
		}
		unknown := `p.isDirty = 1 AND p.serverId IS NULL AND p.clientId IS NOT NULL`
		if err := t.row(`SELECT EXISTS (SELECT 1 FROM ` + p.name + ` p WHERE ` + unknown + `)`).Scan(&born); err != nil {
			return err
		}
		if !born {
			continue
		}
		for _, c := range p.children {
			child, match := p.all[c.child.Name], make([]string, len(c.fk.Columns))
			for i, col := range c.fk.Columns {
				match[i] = "p." + quote(c.fk.ParentColumns[i]) + " = c." + quote(col)
			}
			var ids []string
			if err := t.each(`SELECT c.clientId FROM `+p.name+` p CROSS JOIN `+child.name+` c ON `+strings.Join(match, " AND ")+` WHERE `+unknown+` AND c.isDirty = 0 AND c.clientId IS NOT NULL`, nil,
				func(scan func(...any) error) error {
					var id string
					err := scan(&id)
					ids = append(ids, id)
					return err
				}); err != nil {
				return err
			}
			if len(ids) == 0 {
				continue
			}
			if err := t.suspended(child.onTracked, func() error {
				for _, id := range ids {
					if err := t.exec(`INSERT INTO tidemark_left (tableName, clientId, parentTable, parentKey, parentId) SELECT ?, c.clientId, ?, '', d.clientId FROM `+child.name+` c JOIN tidemark_tombstones d
						ON d.tableName = ? AND d.isDirty = 1 AND d.localKey <> '' AND d.localKey = `+keyText("c.", c.fk.Columns)+` WHERE c.clientId = ? ON CONFLICT DO NOTHING`, c.child.Name, p.t.Name, p.t.Name, id); err != nil {
						return err
					}
					if err := t.exec(`UPDATE `+child.name+` SET isDirty = 1, updatedBy = ?, updatedOn = max(coalesce(updatedOn, 0) + 1, (SELECT `+now+` FROM tidemark_state)) WHERE clientId = ?`, me, id); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return nil
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
	restarts int
}

// maxDepth bounds how many new ancestors one row brings along at once.
const maxDepth = 1000

// maxRestarts bounds how often a chain is begun again further up: a circle has no
// end, and is then gathered as a whole.
const maxRestarts = 100

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
			g.restarts++
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
	case depth > maxDepth && g.restarts < maxRestarts:
		return false, &tooDeepError{p, r}
	}
	if refused, err := g.holdRefused(k, r.updatedOn); err != nil || refused {
		return false, err
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

// refusedBefore: the server has refused this row as it is, or the owner has given it
// up; only an edit, or a replay of its letter, tries again.
func (t *tx) refusedBefore(table, id string, updatedOn int64) (refused, givenUp bool, err error) {
	var n, discarded int
	err = t.row(`SELECT count(*), count(*) FILTER (WHERE state = 'discarded') FROM tidemark_dead_letters WHERE handler = 'upload' AND tableName = ? AND documentId = ? AND documentId <> ''
		AND updatedOn = ? AND (class <> 'local' OR state = 'discarded')`, table, id, updatedOn).Scan(&n, &discarded)
	return n > 0, n > 0 && n == discarded, err
}

// holdRefused holds what was refused before. What was given up is not counted as set
// aside any more.
func (g *gatherer) holdRefused(k messages.DocumentKey, updatedOn int64) (bool, error) {
	refused, givenUp, err := g.tx.refusedBefore(k.Table, k.ID, updatedOn)
	switch {
	case err != nil || !refused:
		return false, err
	case givenUp:
		g.cur.Hold(k.Table, k.ID)
	default:
		g.hold(k, messages.TableCounts{Dead: 1})
	}
	return true, nil
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
		return fmt.Sprintf("the row takes %s bytes and the server takes at most %s a document: shorten it", grouped(n), grouped(messages.MaxDocumentBytes))
	}
	return ""
}

func (t *tx) setAside(d *messages.Document, reason string, updatedOn int64) error {
	var had string
	ok, err := found(t.row(`SELECT reason FROM tidemark_dead_letters WHERE handler = 'upload' AND tableName = ? AND documentId = ? AND documentId <> '' AND updatedOn = ?`,
		d.Table, d.ID, updatedOn).Scan(&had))
	if err != nil || ok && had == reason {
		return err
	}
	raw, err := marshalDocument(d)
	if err != nil {
		return err
	}
	return t.letter(messages.StageUpload, d.Table, d.ID, classLocal, reason, raw, updatedOn)
}

const selectTombstone = `SELECT clientId, coalesce(createdOn, updatedOn), updatedOn, CASE WHEN serverId IS NULL THEN 0 ELSE coalesce(serverVersion, 0) END, survivor
	FROM tidemark_tombstones WHERE tableName = ? AND isDirty = 1 AND clientId `

func (g *gatherer) scanTombstone(table string, scan func(...any) error) (messages.Write, error) {
	w := messages.Write{Document: messages.Document{Table: table, Deleted: true, UpdatedBy: g.me}}
	err := scan(&w.Document.ID, &w.Document.CreatedOn, &w.Document.UpdatedOn, &w.Expect, &w.Document.Survivor)
	return w, err
}

func (g *gatherer) tombstones() error {
	for ; g.cur.Table >= 0; g.cur.Table, g.cur.After = g.cur.Table-1, "" {
		p := g.plans[g.cur.Table]
		for {
			var writes []messages.Write
			err := g.tx.each(selectTombstone+`> ? ORDER BY clientId LIMIT 500`, []any{p.t.Name, g.cur.After},
				func(scan func(...any) error) error {
					w, err := g.scanTombstone(p.t.Name, scan)
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
				k := messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}
				waits, err := g.waits(k, w)
				if err == nil && !waits {
					clear(g.visiting)
					err = g.bury(w, 0)
				}
				if err != nil {
					return err
				}
				g.cur.After = w.Document.ID
			}
		}
	}
	return nil
}

// waits reports whether a tombstone cannot go up yet, and holds it: it is refused, or
// below it is something that the server has not taken and that still refers to it there, or
// the row that it was merged into has not gone up.
func (g *gatherer) waits(k messages.DocumentKey, w messages.Write) (bool, error) {
	if g.in[k] || g.cur.Held[k] {
		return g.cur.Held[k], nil
	}
	if refused, err := g.holdRefused(k, w.Document.UpdatedOn); err != nil || refused {
		return refused, err
	}
	waits, err := g.tx.survivorWaits(g.byTable[k.Table], w.Document.Survivor, g.in)
	if err != nil {
		return false, err
	}
	if waits {
		g.hold(k, messages.TableCounts{Waiting: 1})
		return true, nil
	}
	waits, err = g.tx.referredTo(k, g.byTable, g.cur, g.in, map[messages.DocumentKey]bool{})
	if err == nil && waits {
		g.hold(k, messages.TableCounts{Waiting: 1})
	}
	return waits, err
}

// bury appends a tombstone after those of the rows that referred to it; none of them waits.
func (g *gatherer) bury(w messages.Write, depth int) error {
	k := messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}
	if _, open := g.visiting[k]; open || g.in[k] || depth > 100*maxDepth {
		return nil
	}
	g.visiting[k] = depth
	children, err := g.tx.leavers(k)
	if err != nil {
		return err
	}
	for _, c := range children {
		if g.byTable[c.Table] == nil || g.in[c] {
			continue
		}
		child, err := g.scanTombstone(c.Table, g.tx.row(selectTombstone+`= ?`, c.Table, c.ID).Scan)
		if ok, err := found(err); err != nil {
			return err
		} else if !ok {
			continue // it is up already
		}
		if err := g.bury(child, depth+1); err != nil {
			return err
		}
	}
	g.closed = len(g.writes)
	return g.put(w)
}

// grouped is a number as people read it: 1,048,576.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
