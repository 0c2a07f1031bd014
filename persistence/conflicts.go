package persistence

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Side is one of the two versions of a conflict.
type Side string

// The sides. The empty Side is the one that lost.
const (
	LocalSide  Side = "local"
	ServerSide Side = "server"
)

// winnerRestored: what had lost came back on the owner's wish; what was there before
// is the local side.
const winnerRestored = "restored"

// Conflict is two versions of one row that could not both stay, and what was decided.
// It is kept until it is discarded.
type Conflict struct {
	ID         int64  `json:"id"`
	Table      string `json:"table"`
	DocumentID string `json:"documentId"`
	// Row is the primary key by which the application knows the row, such as
	// "id = 3"; empty when it has none.
	Row string `json:"row"`
	// Winner is "local" (the version of this device), "server", "merged" (one row or
	// version was made of two) or "restored" (by RestoreConflict).
	Winner     string    `json:"winner"`
	Reason     string    `json:"reason"`
	DetectedOn time.Time `json:"detectedOn"`
	// RestoredOn is when the version that lost was last restored, or nil.
	RestoredOn *time.Time `json:"restoredOn"`
	// Local is the row as it was here, Server the document; nil when there was none,
	// because the row was deleted here or had not been here.
	Local  *RowVersion `json:"local"`
	Server *RowVersion `json:"server"`
	// Differing are the columns in which the versions differ, in the table's order;
	// all that are known when one of them is a delete.
	Differing []string `json:"differing"`
}

// RowVersion is a row, or its document, as it was at one time.
type RowVersion struct {
	// UpdatedOn is when it was last edited, UpdatedBy the installation id of the device
	// that did so.
	UpdatedOn time.Time `json:"updatedOn"`
	UpdatedBy string    `json:"updatedBy"`
	// Deleted: the edit was a delete; Values are the last that were known.
	Deleted bool `json:"deleted"`
	// Values by column. A foreign key is the parent's document id.
	Values Values `json:"values"`
	// Parents are the rows that the foreign keys refer to, by column.
	Parents map[string]Parent `json:"parents"`
}

// Parent is a row that a version refers to.
type Parent struct {
	Table      string `json:"table"`
	DocumentID string `json:"documentId"`
	// Row is its primary key here, as in Conflict; empty when it is not here.
	Row string `json:"row"`
}

// Values are a row's values by column: nil, int64, float64, string or []byte. In JSON
// a float has a point or an exponent, a BLOB is {"bytes": BASE64} and text that is not
// UTF-8 {"text": BASE64}: nothing is lost.
type Values map[string]any

// MarshalJSON implements json.Marshaler.
func (v Values) MarshalJSON() ([]byte, error) {
	out := make(map[string]json.RawMessage, len(v))
	for k, x := range v {
		out[k] = marshalValue(x)
	}
	return json.Marshal(out)
}

// Lost is the side that lost; empty when both went into the winner and differ, so that
// somebody has to choose.
func (c *Conflict) Lost() Side {
	switch c.Winner {
	case string(LocalSide):
		return ServerSide
	case string(ServerSide), winnerRestored:
		return LocalSide
	}
	switch {
	case c.Local == nil:
		return ServerSide
	case c.Server == nil || len(c.Differing) == 0:
		return LocalSide
	}
	return ""
}

// ConflictFilter chooses conflicts; the zero filter chooses all.
type ConflictFilter struct {
	IDs   []int64
	Table string
	// Before chooses those that were decided before.
	Before time.Time
	// Limit is how many at most, the newest first; 0 is all.
	Limit int
}

func (f ConflictFilter) where() (string, []any) {
	var w conditions
	w.ids(f.IDs)
	w.table(f.Table)
	if !f.Before.IsZero() {
		w.add("detectedOn < ?", f.Before.UnixMilli())
	}
	return w.text(), w.args
}

// conditions are the terms of a WHERE clause.
type conditions struct {
	terms []string
	args  []any
}

func (w *conditions) add(term string, args ...any) {
	w.terms, w.args = append(w.terms, term), append(w.args, args...)
}

func (w *conditions) ids(ids []int64) {
	if ids == nil {
		return
	}
	list, _ := json.Marshal(ids) // cannot fail
	w.add("id IN (SELECT value FROM json_each(?))", string(list))
}

func (w *conditions) table(name string) {
	if name != "" {
		w.add("tableName = ? COLLATE NOCASE", name)
	}
}

func (w *conditions) text() string {
	if len(w.terms) == 0 {
		return "true"
	}
	return strings.Join(w.terms, " AND ")
}

// listPage is how many ids are read at a time: no query stays open while the caller
// looks at what it got.
const listPage = 500

// pagedIDs streams the ids that a query selects; it gets the last one and a limit as
// its last two arguments.
func (l *Local) pagedIDs(ctx context.Context, query string, args []any, from int64, limit int) iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		for n := 0; limit == 0 || n < limit; {
			page := listPage
			if limit > 0 {
				page = min(page, limit-n)
			}
			var ids []int64
			err := eachRow(ctx, l.db.DB, query, func(scan func(...any) error) error {
				var id int64
				err := scan(&id)
				ids = append(ids, id)
				return err
			}, append(slices.Clone(args), from, page)...)
			if err != nil {
				yield(0, explain(err))
				return
			}
			for _, id := range ids {
				if !yield(id, nil) {
					return
				}
			}
			if len(ids) < page {
				return
			}
			n, from = n+len(ids), ids[len(ids)-1]
		}
	}
}

// Conflicts lists conflicts, the newest first, one at a time: however many there are,
// the memory that it takes stays the same. Conflicts may be restored or discarded
// meanwhile.
func (l *Local) Conflicts(ctx context.Context, f ConflictFilter) iter.Seq2[Conflict, error] {
	where, args := f.where()
	return func(yield func(Conflict, error) bool) {
		for id, err := range l.pagedIDs(ctx, `SELECT id FROM tidemark_conflicts WHERE `+where+` AND id < ? ORDER BY id DESC LIMIT ?`, args, 1<<62, f.Limit) {
			var c Conflict
			ok := true
			if err == nil {
				c, ok, err = l.conflictByID(ctx, id)
			}
			if err != nil {
				yield(c, fmt.Errorf("list conflicts: %w", err))
				return
			}
			if ok && !yield(c, nil) { // not ok: discarded meanwhile
				return
			}
		}
	}
}

// Conflict reads one conflict; messages.ErrNotFound when there is none of that id.
func (l *Local) Conflict(ctx context.Context, id int64) (Conflict, error) {
	c, ok, err := l.conflictByID(ctx, id)
	if err == nil && !ok {
		err = errNoConflict
	}
	if err != nil {
		return c, fmt.Errorf("conflict %d: %w", id, err)
	}
	return c, nil
}

var errNoConflict = fmt.Errorf("%w: list the conflicts to see which there are (pipeline conflicts)", messages.ErrNotFound)

func (l *Local) conflictByID(ctx context.Context, id int64) (Conflict, bool, error) {
	k, ok, err := readConflict(ctx, l.db.DB, id)
	if err != nil || !ok {
		return Conflict{}, false, err
	}
	p, err := l.planIfAny(ctx, k.table)
	if err != nil {
		return Conflict{}, false, err
	}
	c, err := k.conflict(ctx, l.db.DB, p)
	return c, true, err
}

// planIfAny is the plan of a table, nil when it is not synced any more.
func (l *Local) planIfAny(ctx context.Context, table string) (*plan, error) {
	if _, err := l.Schema(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.plans[table], nil
}

// keptConflict is a conflict as it is stored.
type keptConflict struct {
	id            int64
	table, doc    string
	winner        string
	reason        string
	local, server *messages.Document
	detected      int64
	restored      sql.NullInt64
}

func readConflict(ctx context.Context, q queryer, id int64) (k keptConflict, ok bool, err error) {
	var mine, theirs []byte
	k.id = id
	ok, err = found(q.QueryRowContext(ctx, `SELECT tableName, documentId, winner, reason, localVersion, serverVersion, detectedOn, restoredOn
		FROM tidemark_conflicts WHERE id = ?`, id).Scan(&k.table, &k.doc, &k.winner, &k.reason, &mine, &theirs, &k.detected, &k.restored))
	if err != nil || !ok {
		return k, false, explain(err)
	}
	for _, side := range []struct {
		raw []byte
		to  **messages.Document
	}{{mine, &k.local}, {theirs, &k.server}} {
		if side.raw == nil {
			continue
		}
		d, err := unmarshalDocument(k.table, side.raw)
		if err != nil {
			return k, true, fmt.Errorf("%w; discard conflict %d", err, id)
		}
		d.ID = k.doc
		*side.to = &d
	}
	return k, true, nil
}

// conflict adds what the schema knows.
func (k *keptConflict) conflict(ctx context.Context, q queryer, p *plan) (Conflict, error) {
	c := Conflict{
		ID: k.id, Table: k.table, DocumentID: k.doc, Winner: k.winner, Reason: k.reason, DetectedOn: fromMilli(k.detected),
		Local: version(k.local, p), Server: version(k.server, p), Differing: differing(p, k.local, k.server),
	}
	for _, v := range []*RowVersion{c.Local, c.Server} {
		if err := v.findParents(ctx, q, p); err != nil {
			return c, err
		}
	}
	if k.restored.Valid {
		on := fromMilli(k.restored.Int64)
		c.RestoredOn = &on
	}
	if p == nil {
		return c, nil
	}
	var err error
	if c.Row, err = p.rowLabel(ctx, q, k.doc); err == nil && c.Row == "" {
		if k.local != nil {
			c.Row = p.label(k.local.Fields)
		} else if p.surrogate == "" {
			c.Row = p.label(k.server.Fields)
		}
	}
	return c, err
}

func fromMilli(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

func version(d *messages.Document, p *plan) *RowVersion {
	if d == nil {
		return nil
	}
	v := &RowVersion{UpdatedOn: fromMilli(d.UpdatedOn), UpdatedBy: d.UpdatedBy, Deleted: d.Deleted, Values: Values{}}
	for name, x := range d.Fields {
		if p == nil || p.has(name) {
			v.Values[name] = x
		}
	}
	return v
}

func (v *RowVersion) findParents(ctx context.Context, q queryer, p *plan) error {
	if v == nil {
		return nil
	}
	v.Parents = map[string]Parent{}
	if p == nil {
		return nil
	}
	for i := range p.refs {
		r := &p.refs[i]
		id, ok := v.Values[r.field].(string)
		if parent := p.all[r.parent.Name]; ok && parent != nil {
			label, err := parent.rowLabel(ctx, q, id)
			if err != nil {
				return err
			}
			v.Parents[r.field] = Parent{r.parent.Name, id, label}
		}
	}
	return nil
}

// has reports whether a document's field is a column here.
func (p *plan) has(field string) bool {
	return slices.ContainsFunc(p.cols, func(c plannedColumn) bool { return c.Name == field })
}

// differing are the columns in which two versions differ; a local number is the
// same row's whatever it is.
func differing(p *plan, a, b *messages.Document) []string {
	names := []string{}
	live := func(d *messages.Document) map[string]any {
		if d == nil || d.Deleted {
			return nil
		}
		return d.Fields
	}
	x, y := live(a), live(b)
	add := func(name string) {
		v, inX := x[name]
		w, inY := y[name]
		if x == nil && inY || y == nil && inX || inX && inY && !equal(toSQL(v), toSQL(w)) {
			names = append(names, name)
		}
	}
	if p == nil {
		all := map[string]any{}
		maps.Copy(all, x)
		maps.Copy(all, y)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			add(name)
		}
		return names
	}
	for i := range p.cols {
		if !p.cols[i].surrogate {
			add(p.cols[i].Name)
		}
	}
	return names
}

// rowLabel is the primary key of a row that is here, as a person would write it; ""
// when it is not here or has no key.
func (p *plan) rowLabel(ctx context.Context, q queryer, id string) (string, error) {
	if len(p.t.PrimaryKey) == 0 {
		return "", nil
	}
	names := make([]string, len(p.t.PrimaryKey))
	dest := make([]any, len(names))
	values := make([]any, len(names))
	for i, c := range p.t.PrimaryKey {
		names[i], dest[i] = "+"+quote(c), &values[i]
	}
	ok, err := found(q.QueryRowContext(ctx, "SELECT "+strings.Join(names, ", ")+" FROM "+p.name+" WHERE clientId = ?", id).Scan(dest...))
	if err != nil || !ok {
		return "", explain(err)
	}
	key := map[string]any{}
	for i, c := range p.t.PrimaryKey {
		key[p.column(c)] = values[i]
	}
	return p.label(key), nil
}

// label is the primary key among some values.
func (p *plan) label(values map[string]any) string {
	parts := make([]string, len(p.t.PrimaryKey))
	for i, c := range p.t.PrimaryKey {
		v, ok := values[p.column(c)]
		if !ok {
			return ""
		}
		parts[i] = p.column(c) + " = " + sqlText(v)
	}
	return strings.Join(parts, ", ")
}

// sqlText writes a value as SQL does, for people.
func sqlText(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case string:
		return literal(v)
	case []byte:
		return fmt.Sprintf("x'%x'", v)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	default:
		return fmt.Sprint(v)
	}
}

// DiscardConflicts forgets conflicts and says how many; Limit does not count.
func (l *Local) DiscardConflicts(ctx context.Context, f ConflictFilter) (n int64, err error) {
	where, args := f.where()
	err = l.write(ctx, func(tx *tx) error {
		n, err = tx.run(`DELETE FROM tidemark_conflicts WHERE `+where, args...)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("discard conflicts: %w", err)
	}
	return n, nil
}
