package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	tidemark "github.com/tidemark-sync/tidemark"
)

// simFields has tables whose conflicts are settled column by column, or by the
// application.
var simFields = simSchema{
	name: "fields",
	ddl: `CREATE TABLE card (id INTEGER PRIMARY KEY, b TEXT, v TEXT, x TEXT, y TEXT);
CREATE TABLE tally (id INTEGER PRIMARY KEY, b TEXT, v TEXT, most INTEGER, words TEXT);
CREATE TABLE page (id INTEGER PRIMARY KEY, b TEXT, v TEXT, x TEXT, card INTEGER REFERENCES card(id) ON DELETE SET NULL);`,
	tables: []simTable{
		{name: "card", key: []string{"id"}, fields: true, values: []string{"x", "y"}, combine: tidemark.MergeByField},
		{name: "tally", key: []string{"id"}, fields: true, values: []string{"most", "words"}, combine: tidemark.ByApplication},
		{name: "page", key: []string{"id"}, fields: true, values: []string{"x"}, combine: tidemark.MergeByField, refs: []simRef{{columns: []string{"card"}, parent: "card"}}},
	},
	setup: []tidemark.Table{
		{Name: "card", Policy: tidemark.MergeByField},
		{Name: "tally", Policy: tidemark.ByApplication},
		{Name: "page", Policy: tidemark.MergeByField},
	},
}

// simPolicies says, by a table's number, who decides its conflicts, where no other
// policy is set; the first is none.
var simPolicies = [][2]tidemark.Policy{
	{},
	{tidemark.MergeByField, tidemark.MergeByField},
	{tidemark.ByApplication, tidemark.ByApplication},
	{tidemark.MergeByField, tidemark.ByApplication},
}

// with is the schema with one of simPolicies.
func (s simSchema) with(policies int) simSchema {
	if policies == 0 {
		return s
	}
	s.tables, s.setup = slices.Clone(s.tables), slices.Clone(s.setup)
	for i := range s.tables {
		t := &s.tables[i]
		if !t.policy && t.combine == "" {
			t.combine = simPolicies[policies][i%2]
			s.setup = append(s.setup, tidemark.Table{Name: t.name, Policy: t.combine})
		}
	}
	return s
}

// columns are those that the value consists of.
func (t *simTable) columns() []string { return append([]string{"v"}, t.values...) }

// tracked: every edit puts something new there, so that the model knows whose it is.
func (t *simTable) tracked(column string) bool { return column == "v" || t.fields }

// entry is what an edit with this number puts into a column.
func (t *simTable) entry(column string, n int) string {
	switch column {
	case "most":
		return strconv.Itoa(n)
	case "words":
		return fmt.Sprintf("'w%d'", n)
	default:
		return fmt.Sprintf("'v%d'", n)
	}
}

// setSome changes one column of the value, or two.
func (w *simWriter) setSome(t *simTable, n int) string {
	columns := t.columns()
	w.rnd.Shuffle(len(columns), func(i, j int) { columns[i], columns[j] = columns[j], columns[i] })
	var sets []string
	for _, c := range columns[:1+w.rnd.IntN(4)/3] {
		expr := t.entry(c, n)
		if c == "words" {
			expr = "words || ',' || " + expr
		}
		sets = append(sets, c+" = "+expr)
	}
	return strings.Join(sets, ", ")
}

// simResolver is the application's rule: the greatest number, and all of the words.
func simResolver(c tidemark.Contest) (map[string]any, error) {
	out := map[string]any{}
	for name, local := range c.Local {
		server := c.Server[name]
		switch a, b := number(local), number(server); {
		case name == "b": // the one that was made later: it may have replaced the other
			if out[name] = local; slices.Compare(made(local), made(server)) < 0 {
				out[name] = server
			}
		case name == "words":
			words := append(elements(fmt.Sprint(local)), elements(fmt.Sprint(server))...)
			slices.SortFunc(words, func(a, b string) int { return number(a) - number(b) })
			out[name] = strings.Join(slices.Compact(words), ",")
		case name != "v" && name != "most" && name != "x":
		case a >= b:
			out[name] = local
		default:
			out[name] = server
		}
	}
	return out, nil
}

func elements(words string) []string { return strings.Split(words, ",") }

// number is that of the edit which wrote a value.
func number(v any) int {
	n, err := strconv.Atoi(strings.TrimLeft(fmt.Sprint(v), "vw"))
	if err != nil {
		return -1
	}
	return n
}

// made orders the names of rows by when they were made up.
func made(b any) (numbers []int) {
	for n := range strings.SplitSeq(strings.TrimLeft(fmt.Sprint(b), "b"), ".") {
		numbers = append(numbers, number(n))
	}
	return numbers
}

// was and is are a column's values before and after an event; "" for none.
func (e *simEvent) was(column int) string { return part(e.prev, column) }

func (e *simEvent) is(column int) string {
	if e.deleted {
		return ""
	}
	return part(e.value, column)
}

func part(value string, column int) string {
	if value == "" {
		return ""
	}
	return strings.Split(value, "|")[column]
}

// columnKey names a column's value in a row.
func columnKey(b, column, value string) string { return b + " " + column + " = " + value }

// remember notes a row's value column by column, and words one by one.
func (t *simTable) remember(in map[string]bool, b, value string) {
	if t.combine == "" {
		return
	}
	for i, c := range t.columns() {
		in[columnKey(b, c, part(value, i))] = true
		if c == "words" {
			for _, e := range elements(part(value, i)) {
				in[columnKey(b, c, e)] = true
			}
		}
	}
}

// muddle notes that a device may not know any more what its changed rows were before:
// its file was copied, or their upload is under way or was cut off.
func (m *simModel) muddle(db simQueryer) {
	for i := range m.schema.tables {
		if t := &m.schema.tables[i]; t.fields {
			rows, err := db.QueryContext(context.Background(), "SELECT coalesce(b, '?') FROM "+t.name+" WHERE isDirty = 1")
			if err != nil {
				panic(fmt.Errorf("read table %s: %w", t.name, err))
			}
			for rows.Next() {
				var b string
				if err := rows.Scan(&b); err != nil {
					panic(fmt.Errorf("read table %s: %w", t.name, err))
				}
				m.muddled[b] = true
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				panic(fmt.Errorf("read table %s: %w", t.name, err))
			}
		}
	}
}

// simFamily are rows that may have had one document after each other, with all their
// events.
type simFamily struct {
	rows   []string
	events []simEvent
}

func (m *simModel) families() map[string]*simFamily {
	out := map[string]*simFamily{}
	for _, b := range slices.Sorted(maps.Keys(m.rows)) {
		out[b] = &simFamily{rows: []string{b}}
	}
	for _, b := range slices.Sorted(maps.Keys(m.rows)) {
		for _, from := range m.rows[b].from {
			f, g := out[b], out[from]
			if g == nil || f == g {
				continue
			}
			f.rows = append(f.rows, g.rows...)
			for _, other := range g.rows {
				out[other] = f
			}
		}
	}
	for _, b := range slices.Sorted(maps.Keys(m.rows)) {
		out[b].events = append(out[b].events, m.rows[b].events...)
	}
	return out
}

// any reports whether a value of a column is noted for one of the rows: of words, all.
func (f *simFamily) any(in map[string]bool, column, value string) bool {
	return slices.ContainsFunc(f.rows, func(b string) bool {
		if in[columnKey(b, column, value)] {
			return true
		}
		return column == "words" && !slices.ContainsFunc(elements(value), func(w string) bool { return !in[columnKey(b, column, w)] })
	})
}

// lostColumn: a file was lost before the value that it had in a column went up.
func (m *simModel) lostColumn(f *simFamily, e *simEvent, i int, column string) bool {
	if e.deleted {
		return e.lost
	}
	return e.excused && !f.any(m.landed, column, e.is(i)) && !f.any(m.final, column, e.is(i))
}

// supersededColumn are the values of a column that somebody replaced knowingly.
func (m *simModel) supersededColumn(f *simFamily, i int, column string) map[string]bool {
	out := map[string]bool{}
	for grown := true; grown; {
		grown = false
		for k := range f.events {
			e := &f.events[k]
			if was := e.was(i); was != "" && !out[was] && (e.deleted || e.is(i) != was) && (!m.lostColumn(f, e, i, column) || !e.deleted && out[e.is(i)]) {
				out[was], grown = true, true
			}
		}
	}
	return out
}

// twin: a clone has made another row of the table in the same millisecond, and the rule
// that finds rows by their times took the one for the other; this one is kept as a loser.
func (m *simModel) twin(h *simHistory, f *simFamily) bool {
	first := h.events[0]
	for _, o := range m.rows {
		if o != h && o.table == h.table && len(o.events) > 0 && o.events[0].device != first.device && o.events[0].at.UnixMilli() == first.at.UnixMilli() {
			return f.any(m.kept, "v", first.is(0))
		}
	}
	return false
}

// checkColumns holds a row whose conflicts are settled within it against what users
// wrote, column by column.
func (m *simModel) checkColumns(b string, h *simHistory, f *simFamily, row simRow, present bool) bool {
	t := h.table
	for i, c := range t.columns() {
		if present && !f.wrote(i, c, part(row.value, i)) {
			m.problem("invented", "row %s of %s has %s = %s, which nobody wrote: %s", b, t.name, c, part(row.value, i), h.trace())
			return false
		}
		if !t.tracked(c) {
			continue
		}
		superseded := m.supersededColumn(f, i, c)
		for k := range h.events {
			e := &h.events[k]
			n := e.is(i)
			if n == "" || n == e.was(i) || m.lostColumn(f, e, i, c) || superseded[n] || f.any(m.final, c, n) || f.any(m.kept, c, n) {
				continue
			}
			m.problem("lost", "row %s of %s: the edit of %s to %s by %s is neither there nor kept as a loser; there is %q: %s", b, t.name, c, n, e.device.name, row.value, h.trace())
			return false
		}
	}
	if !t.fields || len(h.from) > 0 || slices.ContainsFunc(h.events, func(e simEvent) bool { return e.deleted }) {
		return true // rows as a whole won and lost against deletes
	}
	if !present {
		if !slices.ContainsFunc(h.events, func(e simEvent) bool { return e.excused }) && !m.twin(h, f) {
			m.problem("gone", "row %s of %s is gone and nobody deleted it: %s", b, t.name, h.trace())
			return false
		}
		return true
	}
	if len(t.refs) > 0 {
		return true // rows as a whole win and lose against rows whose parents are not there
	}
	for i, c := range t.columns() {
		switch {
		case t.combine == tidemark.ByApplication:
			if missing := m.unresolved(f, h, i, c, part(row.value, i)); missing != "" {
				m.problem("resolved", "row %s of %s has %s = %s, without %s: %s", b, t.name, c, part(row.value, i), missing, h.trace())
				return false
			}
		case !m.muddled[b]:
			if want := m.unchallenged(f, h, i, c); len(want) > 0 && !slices.Contains(want, part(row.value, i)) {
				m.problem("field", "row %s of %s has %s = %s, and nobody challenged the edit to %v: %s", b, t.name, c, part(row.value, i), want, h.trace())
				return false
			}
		}
	}
	return true
}

// wrote: somebody wrote that value, or each word of it, into that column.
func (f *simFamily) wrote(i int, column, value string) bool {
	words := map[string]bool{}
	for k := range f.events {
		e := &f.events[k]
		if !e.deleted && e.is(i) == value {
			return true
		}
		if column == "words" {
			for _, w := range elements(e.is(i)) {
				words[w] = true
			}
		}
	}
	return column == "words" && !slices.ContainsFunc(elements(value), func(w string) bool { return !words[w] })
}

// unresolved is a value that the application's rule must have let through and did not:
// the greatest number wins, and no word goes.
func (m *simModel) unresolved(f *simFamily, h *simHistory, i int, column, final string) string {
	for k := range h.events {
		e := &h.events[k]
		if e.is(i) == e.was(i) || m.lostColumn(f, e, i, column) {
			continue
		}
		if column != "words" {
			if number(e.is(i)) > number(final) {
				return e.is(i)
			}
			continue
		}
		for _, w := range elements(e.is(i)) {
			if !slices.Contains(elements(e.was(i)), w) && !slices.Contains(elements(final), w) {
				return w
			}
		}
	}
	return ""
}

// unchallenged are the values one of which a column must have when each of its edits
// was made upon the one before: the last, or, where that was lost with a file, also an
// earlier one. nil when two people changed it beside each other.
func (m *simModel) unchallenged(f *simFamily, h *simHistory, i int, column string) []string {
	var want []string
	for k := range h.events {
		e := &h.events[k]
		if e.is(i) == e.was(i) {
			continue
		}
		if len(want) > 0 && e.was(i) != want[len(want)-1] {
			return nil
		}
		if !m.lostColumn(f, e, i, column) {
			want = want[:0]
		}
		want = append(want, e.is(i))
	}
	return want
}
