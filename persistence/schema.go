package persistence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Affinity is how SQLite converts the values of a column.
type Affinity uint8

// The affinities. Blob converts nothing; the ANY of a STRICT table is one.
const (
	AffinityBlob Affinity = iota
	AffinityText
	AffinityInteger
	AffinityReal
	AffinityNumeric
)

// Table is one table of the application.
type Table struct {
	Name string
	// Columns are the data columns in declared order: neither tracked nor
	// generated ones.
	Columns []Column
	// PrimaryKey has the column names in key order; nil when there is none.
	PrimaryKey []string
	// RowIDAlias is the INTEGER PRIMARY KEY column, a local surrogate; "" if none.
	RowIDAlias   string
	WithoutRowID bool
	Strict       bool
	// ForeignKeys are those that refer to a key of another (or the same) table of
	// the Schema; others are plain data, see Schema.Warnings.
	ForeignKeys []ForeignKey
	// Uniques are the unique keys beside the primary key.
	Uniques []Unique

	tracked map[string]Column // the tracked columns that are there, by folded name
	every   []string          // the names of all columns, generated ones too
	primary []keyTerm         // the primary key's columns; nil when it is the rowid
	keys    [][]string        // columns of this table that foreign keys refer to
}

// Column is one data column.
type Column struct {
	Name     string
	Type     string // as declared
	Affinity Affinity
	NotNull  bool
	// Default is the SQL text of the DEFAULT clause.
	Default sql.NullString
	// PK is the column's place in the primary key, from 1; 0 when it is no part.
	PK int
}

// ForeignKey refers to the primary key or a unique key of Parent.
type ForeignKey struct {
	ID                 int
	Columns            []string
	Parent             string
	ParentColumns      []string // never empty
	OnUpdate, OnDelete string
}

// Unique is a UNIQUE constraint or index.
type Unique struct {
	Index string
	// Columns are in the index's order; "" stands for an expression.
	Columns []string
	// Partial: only rows that its WHERE clause selects are unique.
	Partial bool

	terms []keyTerm
	where string
}

// keyTerm is a column (or expression) of a key and the collation it is compared by.
type keyTerm struct {
	column, expr, collation string
}

// Schema is the application's tables.
type Schema struct {
	outside []childRef // foreign keys of tables that are not synced
	// Tables are sorted: parents before children, members of a cycle adjacent.
	Tables []*Table
	// Components are the cycles (most have one member), parents first.
	Components [][]*Table
	// Warnings name what could not be taken as declared.
	Warnings []string

	byName map[string]*Table
}

// Table returns a table by its name, whose ASCII letters have no case; nil when
// there is none.
func (s *Schema) Table(name string) *Table { return s.byName[fold(name)] }

// Reflect reads all tables of the application: no views, no virtual tables nor
// what those store their data in, and nothing of SQLite's or ours.
func Reflect(ctx context.Context, q queryer) (*Schema, error) {
	s, err := reflectTables(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("read the schema: %w", explain(err))
	}
	s.arrange()
	return s, nil
}

// LoadSchema reads the attached tables that are not excluded. Foreign keys onto
// other tables are plain data in it. It fails with ErrNotAttached when the
// application rebuilt a table since Attach.
func LoadSchema(ctx context.Context, q queryer) (*Schema, error) {
	s, err := reflectTables(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("read the schema: %w", explain(err))
	}
	attached := map[string]bool{}
	err = eachRow(ctx, q, `SELECT tableName FROM tidemark_tables WHERE excluded = 0`, func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		attached[fold(name)] = true
		return err
	})
	if err != nil && strings.Contains(err.Error(), "no such table") {
		return nil, fmt.Errorf("read the schema: %w", ErrNotAttached)
	}
	if err != nil {
		return nil, fmt.Errorf("read the schema: %w", explain(err))
	}
	s.keep(func(t *Table) bool { return attached[fold(t.Name)] })
	for _, t := range s.Tables {
		if len(t.tracked) < len(trackedColumns) {
			return nil, fmt.Errorf("table %q was rebuilt by the application, attach again: %w", t.Name, ErrNotAttached)
		}
	}
	s.arrange()
	return s, nil
}

// applicationTables selects ordinary tables; 'shadow' and 'virtual' are types of
// their own.
const applicationTables = `pragma_table_list l WHERE l.schema = 'main' AND l.type = 'table'
	AND l.name NOT LIKE 'sqlite\_%' ESCAPE '\' AND l.name NOT LIKE 'tidemark\_%' ESCAPE '\'`

// shadowSuffixes are what the virtual tables of SQLite's own modules append to
// their name: a connection that lacks the module does not know them as shadows.
var shadowSuffixes = []string{"content", "data", "idx", "docsize", "config", "stat", "segments", "segdir", "node", "parent", "rowid"}

func reflectTables(ctx context.Context, q queryer) (*Schema, error) {
	s := &Schema{byName: map[string]*Table{}}
	shadows := map[string]bool{}
	err := eachRow(ctx, q, `SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'virtual'`, func(scan func(...any) error) error {
		var name string
		if err := scan(&name); err != nil {
			return err
		}
		for _, suffix := range shadowSuffixes {
			shadows[fold(name+"_"+suffix)] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachRow(ctx, q, `SELECT l.name, l.wr, l.strict FROM `+applicationTables+` ORDER BY l.name`, func(scan func(...any) error) error {
		t := &Table{tracked: map[string]Column{}}
		if err := scan(&t.Name, &t.WithoutRowID, &t.Strict); err != nil {
			return err
		}
		if !shadows[fold(t.Name)] {
			s.Tables = append(s.Tables, t)
			s.byName[fold(t.Name)] = t
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, read := range []func(context.Context, queryer) error{s.readColumns, s.readUniques, s.readForeignKeys} {
		if err := read(ctx, q); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Schema) readColumns(ctx context.Context, q queryer) error {
	err := eachRow(ctx, q, `SELECT l.name, x.name, x.type, x."notnull", x.dflt_value, x.pk, x.hidden
		FROM (SELECT l.name FROM `+applicationTables+`) l JOIN pragma_table_xinfo(l.name, 'main') x ORDER BY l.name, x.cid`,
		func(scan func(...any) error) error {
			var table string
			var c Column
			var hidden int
			if err := scan(&table, &c.Name, &c.Type, &c.NotNull, &c.Default, &c.PK, &hidden); err != nil {
				return err
			}
			t := s.Table(table)
			if t == nil {
				return nil
			}
			t.every = append(t.every, c.Name)
			c.Affinity = affinityOf(c.Type, t.Strict)
			switch {
			case isTracked(c.Name):
				t.tracked[fold(c.Name)] = c
			case hidden == 0:
				t.Columns = append(t.Columns, c)
			}
			if c.PK > 0 {
				for len(t.PrimaryKey) < c.PK {
					t.PrimaryKey = append(t.PrimaryKey, "")
				}
				t.PrimaryKey[c.PK-1] = c.Name
			}
			return nil
		})
	if err != nil {
		return err
	}
	for _, t := range s.Tables {
		if len(t.PrimaryKey) == 1 && !t.WithoutRowID {
			for _, c := range t.Columns {
				if c.PK == 1 && strings.EqualFold(c.Type, "INTEGER") {
					t.RowIDAlias = c.Name // unless it has an index of its own, see readUniques
				}
			}
		}
	}
	return nil
}

func (s *Schema) readUniques(ctx context.Context, q queryer) error {
	return eachRow(ctx, q, `SELECT l.name, i.name, i.origin, i.partial, x.seqno, x.cid, coalesce(x.name, ''), coalesce(x.coll, ''), coalesce(m.sql, '')
		FROM (SELECT l.name FROM `+applicationTables+`) l JOIN pragma_index_list(l.name, 'main') i JOIN pragma_index_xinfo(i.name, 'main') x
		LEFT JOIN sqlite_master m ON m.type = 'index' AND m.name = i.name
		WHERE i."unique" = 1 AND x."key" = 1 ORDER BY l.name, i.name, x.seqno`,
		func(scan func(...any) error) error {
			var table, index, origin, text string
			var u Unique
			var term keyTerm
			var seq, cid int
			if err := scan(&table, &index, &origin, &u.Partial, &seq, &cid, &term.column, &term.collation, &text); err != nil {
				return err
			}
			t := s.Table(table)
			if t == nil {
				return nil
			}
			if origin == "pk" {
				t.RowIDAlias = "" // INTEGER PRIMARY KEY DESC is no alias, for historical reasons
				t.primary = append(t.primary, term)
				return nil
			}
			if seq == 0 {
				u.Index = index
				t.Uniques = append(t.Uniques, u)
			}
			last := &t.Uniques[len(t.Uniques)-1]
			if text != "" {
				terms, where := indexParts(text)
				last.where = where
				if cid == -2 && seq < len(terms) {
					term.expr = terms[seq]
				}
			}
			if cid == -1 { // an index on the rowid itself
				term.column = t.key()[0]
			}
			last.Columns = append(last.Columns, term.column)
			last.terms = append(last.terms, term)
			return nil
		})
}

func (s *Schema) readForeignKeys(ctx context.Context, q queryer) error {
	err := eachRow(ctx, q, `SELECT l.name, f.id, f.seq, f."table", f."from", coalesce(f."to", ''), f.on_update, f.on_delete
		FROM (SELECT l.name FROM `+applicationTables+`) l JOIN pragma_foreign_key_list(l.name, 'main') f ORDER BY l.name, f.id, f.seq`,
		func(scan func(...any) error) error {
			var table, from, to string
			var fk ForeignKey
			var seq int
			if err := scan(&table, &fk.ID, &seq, &fk.Parent, &from, &to, &fk.OnUpdate, &fk.OnDelete); err != nil {
				return err
			}
			t := s.Table(table)
			if t == nil {
				return nil
			}
			if seq == 0 {
				t.ForeignKeys = append(t.ForeignKeys, fk)
			}
			last := &t.ForeignKeys[len(t.ForeignKeys)-1]
			last.Columns = append(last.Columns, from)
			if to != "" {
				last.ParentColumns = append(last.ParentColumns, to)
			}
			return nil
		})
	if err != nil {
		return err
	}
	for _, t := range s.Tables {
		valid := t.ForeignKeys[:0]
		for _, fk := range t.ForeignKeys {
			if why := s.resolve(t, &fk); why != "" {
				s.Warnings = append(s.Warnings, fmt.Sprintf("table %q: the foreign key (%s) refers to %q, %s: it is synced as plain data",
					t.Name, strings.Join(fk.Columns, ", "), fk.Parent, why))
				continue
			}
			valid = append(valid, fk)
		}
		t.ForeignKeys = slices.Clip(valid)
	}
	s.noteKeys()
	return nil
}

// resolve completes a foreign key and gives its names the spelling of their
// declaration, or says why it is none.
func (s *Schema) resolve(t *Table, fk *ForeignKey) string {
	p := s.Table(fk.Parent)
	if p == nil {
		return "which is no table here"
	}
	fk.Parent = p.Name
	if len(fk.ParentColumns) == 0 {
		fk.ParentColumns = slices.Clone(p.PrimaryKey)
	}
	if len(fk.ParentColumns) != len(fk.Columns) {
		return "whose key has a different number of columns"
	}
	for i, c := range fk.Columns {
		j := slices.IndexFunc(t.Columns, func(d Column) bool { return fold(d.Name) == fold(c) })
		if j < 0 {
			return "and its column " + quote(c) + " is no data column"
		}
		fk.Columns[i] = t.Columns[j].Name
	}
	for i, c := range fk.ParentColumns {
		j := slices.IndexFunc(p.every, func(d string) bool { return fold(d) == fold(c) })
		if j < 0 {
			return "which has no column " + quote(c)
		}
		fk.ParentColumns[i] = p.every[j]
	}
	same := func(key []string) bool {
		if len(key) != len(fk.ParentColumns) {
			return false
		}
		for _, c := range fk.ParentColumns {
			if !slices.ContainsFunc(key, func(k string) bool { return fold(k) == fold(c) }) {
				return false
			}
		}
		return true
	}
	if same(p.PrimaryKey) || slices.ContainsFunc(p.Uniques, func(u Unique) bool { return !u.Partial && same(u.Columns) }) {
		return ""
	}
	return "whose columns " + strings.Join(fk.ParentColumns, ", ") + " are no key"
}

// keep drops the other tables and the foreign keys onto them.
func (s *Schema) keep(want func(*Table) bool) {
	s.Tables = slices.DeleteFunc(s.Tables, func(t *Table) bool {
		if want(t) {
			return false
		}
		delete(s.byName, fold(t.Name))
		for _, fk := range t.ForeignKeys {
			s.outside = append(s.outside, childRef{t, fk})
		}
		return true
	})
	for _, t := range s.Tables {
		t.ForeignKeys = slices.DeleteFunc(t.ForeignKeys, func(fk ForeignKey) bool {
			if s.Table(fk.Parent) != nil {
				return false
			}
			s.Warnings = append(s.Warnings, fmt.Sprintf("table %q: the foreign key (%s) refers to %q, which is not synced: it is synced as plain data",
				t.Name, strings.Join(fk.Columns, ", "), fk.Parent))
			return true
		})
	}
	s.noteKeys()
}

// noteKeys tells every table by which of its keys others refer to it.
func (s *Schema) noteKeys() {
	for _, t := range s.Tables {
		t.keys = nil
	}
	for _, t := range s.Tables {
		for _, fk := range t.ForeignKeys {
			p := s.Table(fk.Parent)
			if !slices.ContainsFunc(p.keys, func(k []string) bool { return slices.Equal(k, fk.ParentColumns) }) {
				p.keys = append(p.keys, fk.ParentColumns)
			}
		}
	}
}

// arrange sorts the tables by their foreign keys: Tarjan's strongly connected
// components, which come out parents first. Ties are broken by name.
func (s *Schema) arrange() {
	s.Components = nil
	index, low := map[*Table]int{}, map[*Table]int{}
	onStack := map[*Table]bool{}
	var stack []*Table
	var visit func(*Table)
	visit = func(t *Table) {
		index[t] = len(index) + 1
		low[t] = index[t]
		stack, onStack[t] = append(stack, t), true
		for _, fk := range t.ForeignKeys {
			p := s.Table(fk.Parent)
			if index[p] == 0 {
				visit(p)
				low[t] = min(low[t], low[p])
			} else if onStack[p] {
				low[t] = min(low[t], index[p])
			}
		}
		if low[t] != index[t] {
			return
		}
		i := slices.Index(stack, t)
		members := slices.Clone(stack[i:])
		stack = stack[:i]
		for _, m := range members {
			onStack[m] = false
		}
		slices.SortFunc(members, func(a, b *Table) int { return strings.Compare(a.Name, b.Name) })
		s.Components = append(s.Components, members)
	}
	slices.SortFunc(s.Tables, func(a, b *Table) int { return strings.Compare(a.Name, b.Name) })
	for _, t := range s.Tables {
		if index[t] == 0 {
			visit(t)
		}
	}
	s.Tables = slices.Concat(s.Components...)
}

// key are the names by which a row is addressed locally: the rowid, or the primary
// key of a table without one. It is [""] for a table whose columns hide all three
// names of the rowid.
func (t *Table) key() []string {
	switch {
	case t.WithoutRowID:
		return t.PrimaryKey
	case t.RowIDAlias != "":
		return []string{t.RowIDAlias}
	}
	for _, name := range []string{"rowid", "_rowid_", "oid"} {
		if !slices.ContainsFunc(t.every, func(c string) bool { return fold(c) == name }) {
			return []string{name}
		}
	}
	return []string{""}
}

// affinityOf applies SQLite's rules to a declared type.
func affinityOf(declared string, strict bool) Affinity {
	d := strings.ToUpper(declared)
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(d, p) })
	}
	switch {
	case has("INT"):
		return AffinityInteger
	case has("CHAR", "CLOB", "TEXT"):
		return AffinityText
	case has("BLOB") || d == "" || strict && d == "ANY":
		return AffinityBlob
	case has("REAL", "FLOA", "DOUBT"):
		return AffinityReal
	}
	return AffinityNumeric
}

// eachRow calls fn for every row of a query; scan reads the current one.
func eachRow(ctx context.Context, q queryer, query string, fn func(scan func(...any) error) error, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := fn(rows.Scan); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}
