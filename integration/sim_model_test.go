package integration

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

// simModel is what users did, as seen in their databases before and after each of
// their transactions; tidemark has no part in it.
type simModel struct {
	schema  *simSchema
	strict  bool // all clocks are right: the later edit wins
	picky   bool // the server refuses some rows
	rows    map[string]*simHistory
	landed  map[string]bool     // versions that the server had, by birth mark and value
	buried  map[string]int64    // when rows that the server had as deleted were deleted last, in ms
	kept    map[string]bool     // versions in conflicts or dead letters of any device, ever
	beaten  map[string]bool     // those in conflicts
	final   map[string]bool     // those that everybody has in the end, column by column
	muddled map[string]bool     // rows whose version before an edit a device may not know any more
	copied  map[*simDevice]bool // what their file had yet to send may be in two files
	problem func(class, format string, args ...any)
}

// simHistory is what became of one row, by its birth mark.
type simHistory struct {
	table  *simTable
	events []simEvent
	from   []string // rows whose place it may have taken, and their document, by birth mark
}

type simEvent struct {
	device  *simDevice
	at      time.Time
	deleted bool
	touch   bool // the value is as before: only its parents or counters changed, or it changed and changed back
	value   string
	extra   string // of the column that old devices do not have; "" there
	old     bool   // by a device that was not upgraded
	off     bool   // its clock was wrong by more than what is worth a correction
	prev    string // the value it was made upon; "" for a new row
	lost    bool   // its file was rolled back, or vanished, before it went up
	excused bool   // its file was rolled back, or vanished
	parents []string
	before  map[string]simRow // of a delete: what the device had
}

// simRow is a row as a SELECT sees it.
type simRow struct {
	table    *simTable
	clientID string
	value    string   // v and the table's other values
	extra    string   //
	rest     string   // everything else that the application put there, foreign keys as they are here
	parents  []string // by birth mark, one a foreign key, "" for NULL
	line     string   // the row as it should be on every device
}

const simWindow = 50 * time.Millisecond // updatedOn rises strictly and may run ahead by that

type simQueryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// read reads all rows of a device by their birth marks.
func (m *simModel) read(db simQueryer, old bool) map[string]simRow {
	out := map[string]simRow{}
	for i := range m.schema.tables {
		t := &m.schema.tables[i]
		if t.young && old {
			continue
		}
		rows, err := db.QueryContext(context.Background(), m.query(t, old))
		if err != nil {
			panic(fmt.Errorf("read table %s: %w", t.name, err))
		}
		for rows.Next() {
			var b, id, extra string
			values := make([]string, 1+len(t.values))
			rest := make([]string, len(m.restColumns(t)))
			parents := make([]string, len(t.refs))
			parentIDs := make([]string, len(t.refs))
			dest := []any{&b, &id, &extra}
			for i := range values {
				dest = append(dest, &values[i])
			}
			for i := range rest {
				dest = append(dest, &rest[i])
			}
			for i := range parents {
				dest = append(dest, &parents[i], &parentIDs[i])
			}
			if err := rows.Scan(dest...); err != nil {
				panic(fmt.Errorf("read table %s: %w", t.name, err))
			}
			r := simRow{table: t, clientID: id, value: strings.Join(values, "|"), extra: extra, rest: strings.Join(rest, "|"), parents: parents}
			r.line = fmt.Sprintf("%s %s %s %s %s %v %v", t.name, id, b, r.value, extra, parents, parentIDs)
			if len(t.counters) > 0 {
				r.line += " " + r.rest
			}
			if !t.surrogate() {
				for i, c := range m.restColumns(t) { // natural keys are data
					if slices.Contains(t.key, c) && !slices.ContainsFunc(t.refs, func(f simRef) bool {
						return slices.Contains(f.columns, c) && m.schema.table(f.parent).surrogate()
					}) {
						r.line += " " + c + "=" + rest[i]
					}
				}
			}
			if twice, ok := out[b]; ok {
				m.problem("twice", "row %s is there twice: %s and %s", b, twice.line, r.line)
			}
			out[b] = r
		}
		if err := rows.Err(); err != nil {
			panic(fmt.Errorf("read table %s: %w", t.name, err))
		}
		_ = rows.Close()
	}
	return out
}

// restColumns are counters and those of foreign keys and natural keys.
func (m *simModel) restColumns(t *simTable) []string {
	out := slices.Clone(t.counters)
	for _, r := range t.refs {
		for _, c := range r.columns {
			if !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	for _, c := range t.key {
		if !slices.Contains(out, c) && !t.surrogate() {
			out = append(out, c)
		}
	}
	return out
}

func (m *simModel) query(t *simTable, old bool) string {
	var b strings.Builder
	b.WriteString("SELECT coalesce(t.b, '?'), coalesce(t.clientId, ''), ")
	if t.extra != "" && !old {
		b.WriteString("coalesce(t." + t.extra + ", '')")
	} else {
		b.WriteString("''")
	}
	for _, c := range append(append([]string{"v"}, t.values...), m.restColumns(t)...) {
		b.WriteString(", coalesce(t." + c + ", 'NULL')")
	}
	for _, r := range t.refs {
		p := m.schema.table(r.parent)
		var on []string
		for i, c := range r.columns {
			on = append(on, "p."+p.key[i]+" = t."+c)
		}
		where := " FROM " + p.name + " p WHERE " + strings.Join(on, " AND ")
		b.WriteString(", coalesce((SELECT p.b" + where + "), ''), coalesce((SELECT p.clientId" + where + "), '')")
	}
	b.WriteString(" FROM " + t.name + " t ORDER BY t.b")
	return b.String()
}

func (r *simRow) same(o *simRow) bool {
	return r.value == o.value && r.rest == o.rest && r.extra == o.extra
}

// touched collects the rows that a statement changed.
func (m *simModel) touched(before, after map[string]simRow, out map[string]bool) {
	for b, row := range after {
		if was, ok := before[b]; ok && !was.same(&row) {
			out[b] = true
		}
	}
}

// observe compares a device before and after a transaction of its user. What it touched
// and left as it was has been edited, too: a counter that went up and down again.
func (m *simModel) observe(d *simDevice, before, after map[string]simRow, touched map[string]bool) (said []string) {
	now := time.Now()
	vanished := map[*simTable][]string{}
	for _, b := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[b]; !ok {
			vanished[before[b].table] = append(vanished[before[b].table], b)
		}
	}
	for _, b := range slices.Sorted(maps.Keys(after)) {
		row := after[b]
		was, existed := before[b]
		same := existed && was.same(&row)
		if same && !touched[b] {
			continue
		}
		h := m.rows[b]
		if h == nil {
			h = &simHistory{table: row.table, from: vanished[row.table]}
			m.rows[b] = h
		}
		e := simEvent{device: d, at: now, touch: existed && was.value == row.value, value: row.value, extra: row.extra, old: d.old, off: d.offset.Abs() > time.Minute, parents: row.parents}
		if existed {
			e.prev = was.value
		}
		h.events = append(h.events, e)
		said = append(said, fmt.Sprintf("%s=%s%v", b, row.value, row.parents))
	}
	for _, b := range slices.Sorted(maps.Keys(before)) {
		if _, ok := after[b]; !ok {
			if m.rows[b] == nil {
				m.problem("unknown", "%s had row %s, which nobody made", d.name, before[b].line)
				continue
			}
			m.rows[b].events = append(m.rows[b].events, simEvent{device: d, at: now, deleted: true, prev: before[b].value, off: d.offset.Abs() > time.Minute, before: before})
			said = append(said, b+" deleted")
		}
	}
	return said
}

// land remembers a version that the server has.
func (m *simModel) land(doc *messages.Document) {
	if b, ok := doc.Fields["b"].(string); ok {
		if doc.Deleted {
			m.landed[b+" deleted"] = true
			m.buried[b] = max(m.buried[b], doc.UpdatedOn)
			return
		}
		if t := m.schema.table(doc.Table); t != nil {
			value := fieldsValue(t, doc.Fields)
			m.landed[b+" "+value] = true
			t.remember(m.landed, b, value)
		}
	}
}

func fieldsValue(t *simTable, fields map[string]any) string {
	parts := make([]string, 0, 4)
	for _, c := range append([]string{"v"}, t.values...) {
		switch v := fields[c].(type) {
		case nil:
			parts = append(parts, "NULL")
		default:
			parts = append(parts, fmt.Sprint(v))
		}
	}
	return strings.Join(parts, "|")
}

// keep collects what a device keeps of losers.
func (m *simModel) keep(db *sql.DB) {
	rows, err := db.QueryContext(context.Background(), `SELECT winner = 'server', tableName, localVersion FROM tidemark_conflicts UNION ALL SELECT 1, tableName, serverVersion FROM tidemark_conflicts
		UNION ALL SELECT 0, tableName, payload FROM tidemark_dead_letters`)
	if err != nil {
		panic(fmt.Errorf("read the conflicts: %w", err))
	}
	defer rows.Close()
	for rows.Next() {
		var conflict bool
		var table string
		var raw []byte
		if err := rows.Scan(&conflict, &table, &raw); err != nil {
			panic(fmt.Errorf("read the conflicts: %w", err))
		}
		var doc struct{ Fields map[string]any }
		t := m.schema.table(table)
		if t == nil || json.Unmarshal(raw, &doc) != nil {
			continue
		}
		if b, ok := doc.Fields["b"].(string); ok {
			value := fieldsValue(t, doc.Fields)
			k := b + " " + value
			m.kept[k], m.beaten[k] = true, m.beaten[k] || conflict
			t.remember(m.kept, b, value)
		}
	}
	if err := rows.Err(); err != nil {
		panic(fmt.Errorf("read the conflicts: %w", err))
	}
}

// lose excuses what a device did since a moment and had not uploaded.
func (m *simModel) lose(d *simDevice, since time.Time) {
	for b, h := range m.rows {
		for i := range h.events {
			e := &h.events[i]
			if e.device != d || e.at.Before(since) {
				continue
			}
			e.excused = true
			if e.deleted {
				e.lost = !m.gone(b, e) && !m.inherited(b)
			} else {
				e.lost = !m.landed[b+" "+e.value] && !m.beaten[b+" "+e.value]
			}
		}
	}
}

// gone: the server has had this delete, or a later one.
func (m *simModel) gone(b string, e *simEvent) bool {
	return m.landed[b+" deleted"] && (!m.strict || m.buried[b] >= e.at.Add(-simWindow).UnixMilli())
}

// inherited: the server has the row that took this one's place, and its document.
func (m *simModel) inherited(b string) bool {
	for heir, h := range m.rows {
		if slices.Contains(h.from, b) && slices.ContainsFunc(h.events, func(e simEvent) bool {
			return m.landed[heir+" "+e.value] || h.table.combine != "" && m.landed[columnKey(heir, "v", e.is(0))]
		}) {
			return true
		}
	}
	return false
}

// check holds the rows that everybody has in the end against what users did.
func (m *simModel) check(final map[string]simRow) {
	for b, row := range final {
		row.table.remember(m.final, b, row.value)
	}
	for b, h := range m.rows {
		row, present := final[b]
		for i := range h.events { // a clone may have saved it
			e := &h.events[i]
			e.lost = e.lost && (e.deleted && present && !m.gone(b, e) || !e.deleted && !m.landed[b+" "+e.value] && row.value != e.value)
		}
	}
	families := m.families()
	for _, b := range slices.Sorted(maps.Keys(m.rows)) {
		m.checkRow(b, m.rows[b], families[b], final)
	}
	for _, b := range slices.Sorted(maps.Keys(final)) {
		if m.rows[b] == nil {
			m.problem("unknown", "row %s was never made: %s", b, final[b].line)
		}
	}
}

func (m *simModel) checkRow(b string, h *simHistory, f *simFamily, final map[string]simRow) {
	row, present := final[b]
	if h.table.combine != "" {
		if m.checkColumns(b, h, f, row, present) && present && !m.livesRightly(b, final, map[string]bool{}) {
			m.problem("back", "row %s of %s was deleted and has come back: %s", b, h.table.name, h.trace())
		}
		return
	}
	wrote := false
	superseded := h.superseded()
	var last time.Time
	some := false
	for _, e := range h.events {
		wrote = wrote || !e.deleted && e.value == row.value
		if !e.lost {
			some = true
			if e.at.After(last) {
				last = e.at
			}
		}
	}
	if present && !wrote {
		m.problem("invented", "row %s of %s has %s, which nobody wrote: %s", b, h.table.name, row.value, h.trace())
		return
	}
	if !some {
		return
	}
	latest, latestDeleted, anyLost := map[string]bool{}, false, false
	for _, e := range h.events {
		anyLost = anyLost || e.lost
		if e.lost || last.Sub(e.at) > simWindow {
			continue
		}
		if e.deleted {
			latestDeleted = true
		} else {
			latest[e.value] = true
		}
	}
	// Every version that nobody replaced knowingly is there, or kept as a loser.
	for _, e := range h.events {
		if e.deleted || e.lost || superseded[e.value] || present && row.value == e.value || m.kept[b+" "+e.value] {
			continue
		}
		m.problem("lost", "row %s of %s: the edit to %s by %s is neither there nor kept as a loser; there is %q: %s", b, h.table.name, e.value, e.device.name, row.value, h.trace())
		return
	}
	if present && !h.table.policy && !m.livesRightly(b, final, map[string]bool{}) {
		m.problem("back", "row %s of %s was deleted and has come back: %s", b, h.table.name, h.trace())
		return
	}
	if !m.strict || h.table.merges || h.table.policy || slices.ContainsFunc(h.events, func(e simEvent) bool { return e.touch && e.excused }) {
		return // whether a touch went up before its file was lost is not to be seen in the row
	}
	if present && len(latest) > 0 && !latest[row.value] && !latestDeleted {
		m.problem("order", "row %s of %s has %s, which is not the last edit: %s", b, h.table.name, row.value, h.trace())
	}
	if !present && !latestDeleted && !anyLost && len(latest) > 0 && !m.replaced(h) {
		m.problem("order", "row %s of %s is gone although it was edited last: %s", b, h.table.name, h.trace())
	}
	if present && h.table.extra != "" && !latestDeleted {
		m.checkExtra(b, h, row, last)
	}
}

// superseded are the versions that somebody replaced knowingly. What was lost with
// a file counts when somebody else had it and went on from there.
func (h *simHistory) superseded() map[string]bool {
	out := map[string]bool{}
	for grown := true; grown; {
		grown = false
		for _, e := range h.events {
			if e.prev != "" && !out[e.prev] && (e.deleted || e.prev != e.value) && (!e.lost || !e.deleted && out[e.value]) {
				out[e.prev], grown = true, true
			}
		}
	}
	return out
}

// checkExtra: a device without a column does not erase it.
func (m *simModel) checkExtra(b string, h *simHistory, row simRow, last time.Time) {
	known, young := map[string]bool{}, false
	for _, e := range h.events {
		if !e.deleted && !e.old {
			young = true
			known[e.extra] = true
		}
		if last.Sub(e.at) <= simWindow && !e.deleted && !e.old && e.value == row.value && row.extra != e.extra {
			m.problem("extra", "row %s of %s has %s = %q and was given %q: %s", b, h.table.name, h.table.extra, row.extra, e.extra, h.trace())
			return
		}
	}
	if young && !known[row.extra] && row.extra != "" {
		m.problem("extra", "row %s of %s has %s = %q, which nobody wrote: %s", b, h.table.name, h.table.extra, row.extra, h.trace())
	}
}

// replaced: the row's document may be another row's by now, by INSERT OR REPLACE.
func (m *simModel) replaced(h *simHistory) bool {
	return len(h.from) > 0 || h.deleted()
}

func (h *simHistory) deleted() bool {
	return slices.ContainsFunc(h.events, func(e simEvent) bool { return e.deleted })
}

// livesRightly: nothing deleted comes back unless it was edited, or given a child,
// after or beside the delete. What a delete did not know of was beside it.
func (m *simModel) livesRightly(b string, final map[string]simRow, asked map[string]bool) bool {
	h := m.rows[b]
	asked[b] = true
	var del *simEvent
	for i := range h.events {
		e := &h.events[i]
		if e.deleted && !e.lost && (del == nil || e.at.After(del.at)) {
			del = e
		}
	}
	if del == nil {
		return true
	}
	for i := range h.events {
		e := &h.events[i]
		if (e.off || del.off) && (del.excused || m.copied[e.device]) && !e.deleted {
			return true // an unsent copy of it, made before the delete, may be corrected later than the delete was
		}
		if e.deleted || e.value == del.prev && !e.touch {
			continue
		}
		later := !e.at.Before(del.at.Add(-simWindow))
		beside := !m.strict && (e.touch || !m.before(h, e.value, del.prev))
		if h.table.merges || h.table.policy || h.table.combine == tidemark.ByApplication {
			beside = e.touch || !m.before(h, e.value, del.prev)
		}
		if later || beside {
			return true
		}
	}
	if h.table.merges && m.merged(final) {
		return true
	}
	// Somebody else edited, later, the row in whose place it came: it is the same document.
	for _, from := range h.from {
		if o := m.rows[from]; o != nil && h.table.combine != "" && slices.ContainsFunc(o.events, func(e simEvent) bool { return !e.deleted && e.at.After(del.at) }) {
			return true
		}
	}
	// A child that was deleted with it and lives on rightly holds it.
	for c, row := range final {
		if !asked[c] && m.rows[c] != nil && slices.Contains(row.parents, b) && m.rows[c].deleted() && m.livesRightly(c, final, asked) {
			return true
		}
	}
	// The last delete may be beside a revival: that of another delete, for a child which
	// that one did not know of.
	return slices.ContainsFunc(h.events, func(e simEvent) bool { return e.deleted && !e.lost && m.gotChild(b, &e, map[string]bool{}) })
}

// merged: some row gave way to another one with its unique key. That is an edit of
// the one that lives on, and of the children that move to it.
func (m *simModel) merged(final map[string]simRow) bool {
	for b, h := range m.rows {
		if _, present := final[b]; present || !h.table.merges {
			continue
		}
		for _, e := range h.events {
			if m.kept[b+" "+e.value] {
				return true
			}
		}
	}
	return false
}

// before reports whether a version is one that the other was made upon.
func (m *simModel) before(h *simHistory, value, upon string) bool {
	for range len(h.events) + 1 {
		if value == upon {
			return true
		}
		next := ""
		for _, e := range h.events {
			if !e.deleted && e.value == upon && e.prev != upon {
				next = e.prev
			}
		}
		if next == "" {
			return false
		}
		upon = next
	}
	return false
}

// gotChild: some row that the delete did not know of, or did not know as such,
// referred to it; or one that did so was revived itself.
func (m *simModel) gotChild(b string, del *simEvent, asked map[string]bool) bool {
	if asked[b] {
		return false
	}
	asked[b] = true
	// A child of the row whose document it took over holds it, too.
	if h := m.rows[b]; h != nil && slices.ContainsFunc(h.from, func(from string) bool { return m.gotChild(from, del, asked) }) {
		return true
	}
	for c, h := range m.rows {
		if c == b {
			continue
		}
		if slices.Contains(h.from, b) && m.gotChild(c, del, asked) { // and of the row that took over its own
			return true
		}
		known, had := del.before[c]
		for i := range h.events {
			e := &h.events[i]
			if e.deleted || !slices.Contains(e.parents, b) {
				continue
			}
			if e.at.After(del.at.Add(-simWindow)) || !had || known.value != e.value && !m.before(h, e.value, known.value) {
				return true
			}
			// What two copies of a file have yet to send goes up twice: merged once more by
			// field, the later one wins against what others put back meanwhile (from its base,
			// nothing has changed); and where the server refuses one, nobody knows of it.
			if m.copied[e.device] && (h.table.combine != "" || m.picky) {
				return true
			}
			if m.gotChild(c, del, asked) {
				return true
			}
		}
	}
	return false
}

func (h *simHistory) trace() string {
	var b strings.Builder
	for _, e := range h.events {
		what := e.value
		if e.deleted {
			what = "deleted"
		}
		if e.lost {
			what += " (lost)"
		}
		fmt.Fprintf(&b, "%s %s %s→%s; ", e.at.Format("15:04:05.000"), e.device.name, e.prev, what)
	}
	return b.String()
}
