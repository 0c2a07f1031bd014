package persistence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// plan is how rows of one table become documents and back.
type plan struct {
	t    *Table
	name string // quoted
	cols []plannedColumn
	refs []ref
	// natural are the foreign keys of other tables that refer to columns of this
	// one that are data: when those change, the children follow.
	natural []childRef
	// children are all foreign keys that refer to this table.
	children  []childRef
	outside   []childRef // those of tables that are not synced
	surrogate string     // the INTEGER PRIMARY KEY when it is nothing but a local number
	selectSQL string
	options   TableOptions
	resolver  Resolver // for the policy ByApplication
	// The application's UPDATE triggers on this table: all, and those that fire when our
	// columns change.
	onUpdate, onTracked []schemaObject
	declared
	all map[string]*plan
}

type plannedColumn struct {
	Column
	quoted    string
	ref       int // index into refs of the single-column foreign key, or -1
	surrogate bool
	initial   any // what its DEFAULT clause is; nil also where nobody can tell
}

// ref is a foreign key: in a document it is the parent's document id. A key of one
// column travels under the column's name, one of several columns in a field of its
// own beside them.
type ref struct {
	fk     ForeignKey
	field  string
	parent *Table
	cols   []int  // of the child, indexes into plan.cols
	keySQL string // parent's key by document id
	// keysSQL is that for a JSON list of ids, with the id in front.
	keysSQL string
}

// cacheKey names a parent's key in the caches of a transaction.
func (r *ref) cacheKey(id string) string { return r.keySQL + "\x00" + id }

type childRef struct {
	child *Table
	fk    ForeignKey
}

// Schema returns the attached tables, read again when the schema changed.
func (l *Local) Schema(ctx context.Context) (*Schema, error) {
	var v int64
	if err := l.db.DB.QueryRowContext(ctx, "PRAGMA schema_version").Scan(&v); err != nil {
		return nil, fmt.Errorf("read the schema: %w", explain(err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.schema != nil && l.version == v {
		return l.schema, nil
	}
	s, err := LoadSchema(ctx, l.db.DB)
	if err != nil {
		return nil, err
	}
	plans := map[string]*plan{}
	for _, t := range s.Tables {
		p, err := newPlan(s, t)
		if err != nil {
			return nil, err
		}
		for i := range p.cols {
			if c := &p.cols[i]; c.Default.Valid && l.db.DB.QueryRowContext(ctx, "SELECT +("+defaultSQL(c.Column)+")").Scan(&c.initial) != nil {
				c.initial = nil
			}
		}
		plans[t.Name] = p
	}
	onUpdate, onTracked, err := listeners(ctx, l.db.DB)
	if err != nil {
		return nil, fmt.Errorf("read the schema: %w", err)
	}
	says, err := declarations(ctx, l.db.DB)
	if err != nil {
		return nil, fmt.Errorf("read the schema: %w", explain(err))
	}
	for _, p := range plans {
		p.all, p.declared = plans, says[fold(p.t.Name)]
		p.onUpdate, p.onTracked = onUpdate[fold(p.t.Name)], onTracked[fold(p.t.Name)]
	}
	options, err := loadOptions(ctx, l.db.DB)
	if err != nil {
		return nil, err
	}
	for name, o := range options {
		if p := plans[name]; p != nil {
			p.options = o
		}
	}
	for name, r := range l.resolvers {
		if t := s.Table(name); t != nil {
			plans[t.Name].resolver = r
		}
	}
	l.schema, l.plans, l.version = s, plans, v
	return s, nil
}

// forget makes the next Schema read again; options may change without the schema.
func (l *Local) forget() {
	l.mu.Lock()
	l.schema = nil
	l.mu.Unlock()
}

func (l *Local) planOf(ctx context.Context, table string) (*plan, error) {
	if _, err := l.Schema(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.plans[table]
	if p == nil {
		return nil, fmt.Errorf("table %q is not attached: %w", table, ErrNotAttached)
	}
	return p, nil
}

func (l *Local) allPlans(ctx context.Context) ([]*plan, error) {
	s, err := l.Schema(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*plan, 0, len(s.Tables))
	for _, t := range s.Tables {
		if p := l.plans[t.Name]; p != nil {
			out = append(out, p)
		}
	}
	return out, nil
}

func newPlan(s *Schema, t *Table) (*plan, error) {
	p := &plan{t: t, name: quote(t.Name)}
	at := map[string]int{}
	for i, c := range t.Columns {
		p.cols = append(p.cols, plannedColumn{Column: c, quoted: quote(c.Name), ref: -1})
		at[strings.ToLower(c.Name)] = i
	}
	for _, fk := range t.ForeignKeys {
		parent := s.Table(fk.Parent)
		if parent == nil {
			continue
		}
		r := ref{fk: fk, parent: parent, field: "ref:" + strings.Join(fk.Columns, ",")}
		for _, c := range fk.Columns {
			i, ok := at[strings.ToLower(c)]
			if !ok {
				return nil, fmt.Errorf("table %q: foreign key column %q is not a data column: exclude the table", t.Name, c)
			}
			r.cols = append(r.cols, i)
		}
		keys := make([]string, len(fk.ParentColumns))
		for i, c := range fk.ParentColumns {
			keys[i] = "+" + quote(c)
		}
		r.keySQL = "SELECT " + strings.Join(keys, ", ") + " FROM " + quote(parent.Name) + " WHERE clientId = ?"
		for i, c := range fk.ParentColumns {
			keys[i] = "+p." + quote(c)
		}
		r.keysSQL = "SELECT p.clientId, " + strings.Join(keys, ", ") + " FROM json_each(?) AS j CROSS JOIN " + quote(parent.Name) + " AS p ON p.clientId = j.value"
		if len(r.cols) == 1 && p.cols[r.cols[0]].ref < 0 {
			p.cols[r.cols[0]].ref = len(p.refs)
			r.field = fk.Columns[0]
		}
		p.refs = append(p.refs, r)
	}
	if i, ok := at[strings.ToLower(t.RowIDAlias)]; ok && t.RowIDAlias != "" && p.cols[i].ref < 0 {
		inKey := false
		for _, r := range p.refs {
			for _, c := range r.cols {
				inKey = inKey || c == i
			}
		}
		if !inKey {
			p.cols[i].surrogate = true
			p.surrogate = t.RowIDAlias
		}
	}
	for _, c := range s.Tables {
		for _, fk := range c.ForeignKeys {
			if !strings.EqualFold(fk.Parent, t.Name) {
				continue
			}
			p.children = append(p.children, childRef{c, fk})
			if len(fk.ParentColumns) != 1 || !strings.EqualFold(fk.ParentColumns[0], p.surrogate) {
				p.natural = append(p.natural, childRef{c, fk})
			}
		}
	}
	for _, c := range s.outside {
		if strings.EqualFold(c.fk.Parent, t.Name) {
			p.outside = append(p.outside, c)
		}
	}
	var b strings.Builder
	b.WriteString("SELECT t.clientId, t.serverId, t.createdOn, t.updatedOn, t.updatedBy, t.isDirty, t.serverVersion")
	for _, c := range p.cols {
		b.WriteString(", +t." + c.quoted) // the plus hides the declared type, by which drivers turn values into times and booleans
	}
	for _, r := range p.refs {
		match := make([]string, len(r.cols))
		for i, c := range r.cols {
			match[i] = "p." + quote(r.fk.ParentColumns[i]) + " = t." + p.cols[c].quoted
		}
		b.WriteString(", (SELECT CASE WHEN p.serverId IS NULL THEN '-' ELSE '+' END || p.clientId FROM " +
			quote(r.parent.Name) + " p WHERE " + strings.Join(match, " AND ") + ")")
	}
	b.WriteString(" FROM " + p.name + " t")
	p.selectSQL = b.String()
	return p, nil
}

// localRow is one row with what it refers to.
type localRow struct {
	clientID, serverID   string
	createdOn, updatedOn int64
	updatedBy            string
	dirty                bool
	serverVersion        int64
	values               []any
	parents              []parentOf // one a ref
}

// parentOf is the row that a foreign key refers to: null when the key is, dangling
// when there is no such row.
type parentOf struct {
	id       string
	known    bool // the server has acknowledged it
	null     bool
	dangling bool
}

func (p *plan) scanRow(scan func(...any) error) (*localRow, error) {
	r := &localRow{values: make([]any, len(p.cols)), parents: make([]parentOf, len(p.refs))}
	var clientID, serverID, by sql.NullString
	var created, updated, version sql.NullInt64
	dest := make([]any, 0, 7+len(p.cols)+len(p.refs))
	dest = append(dest, &clientID, &serverID, &created, &updated, &by, &r.dirty, &version)
	for i := range r.values {
		dest = append(dest, &r.values[i])
	}
	found := make([]sql.NullString, len(p.refs))
	for i := range found {
		dest = append(dest, &found[i])
	}
	if err := scan(dest...); err != nil {
		return nil, err
	}
	whole(r.values)
	r.clientID, r.serverID, r.updatedBy = clientID.String, serverID.String, by.String
	r.createdOn, r.updatedOn, r.serverVersion = created.Int64, updated.Int64, version.Int64
	for i, f := range p.refs {
		o := &r.parents[i]
		for _, c := range f.cols {
			o.null = o.null || r.values[c] == nil
		}
		if o.null {
			continue
		}
		if !found[i].Valid {
			o.dangling = true
			continue
		}
		o.known, o.id = found[i].String[0] == '+', found[i].String[1:]
	}
	return r, nil
}

// rowByID reads one row by its clientId; nil when there is none.
func (p *plan) rowByID(t *tx, id string) (*localRow, error) {
	r, err := p.scanRow(t.row(p.selectSQL+" WHERE t.clientId = ?", id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // no row is no error
	}
	return r, err
}

// document is the row as it goes up.
func (p *plan) document(r *localRow, me string) messages.Document {
	d := messages.Document{
		Table: p.t.Name, ID: r.clientID, CreatedOn: r.createdOn, UpdatedOn: r.updatedOn, UpdatedBy: me,
		UpdateTime: r.serverVersion, Fields: make(map[string]any, len(p.cols)+1),
	}
	for i, c := range p.cols {
		d.Fields[c.Name] = r.values[i]
	}
	for i, f := range p.refs {
		if o := r.parents[i]; o.null {
			if len(f.cols) > 1 {
				d.Fields[f.field] = nil
			}
		} else if !o.dangling {
			d.Fields[f.field] = o.id
		}
	}
	return d
}
