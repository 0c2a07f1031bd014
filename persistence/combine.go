package persistence

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Contest is one conflict as a Resolver sees it. The values are those of this
// database: a foreign key is the local key, not a document id. A column that the
// other side's version does not know has the local value there.
type Contest struct {
	Table, DocumentID string
	// Base is the version that both sides started from, nil when it was not kept: the
	// row was edited again while its upload was on its way, or restored from a
	// snapshot.
	Base map[string]any
	// Local is the row as it is here, Server the document.
	Local, Server map[string]any
	// LocalUpdatedOn and ServerUpdatedOn are when they were edited last, by the
	// server's clock.
	LocalUpdatedOn, ServerUpdatedOn time.Time
}

// Resolver decides a conflict by the application's own rule: it returns the values
// that the row is to have; columns that it does not name get the server's. It runs
// inside a transaction on the database, so it must not use the database itself, and
// it has to answer the same to the same question. After an error or a panic the later
// edit wins.
type Resolver func(Contest) (map[string]any, error)

// SetResolvers gives the engine the application's resolvers, by table.
func (l *Local) SetResolvers(r map[string]Resolver) {
	l.mu.Lock()
	l.resolvers, l.schema = r, nil
	l.mu.Unlock()
}

// ErrNoResolver says that a table's policy is ByApplication and nobody gave a Resolver.
var ErrNoResolver = errors.New("a table's conflicts are decided by the application")

// CheckResolvers fails with ErrNoResolver when a table is without the Resolver that
// its policy asks for.
func (l *Local) CheckResolvers(ctx context.Context) error {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return err
	}
	for _, p := range plans {
		if p.options.Policy == ByApplication && p.resolver == nil {
			return fmt.Errorf("table %q: %w: sync it from the application, or give New a resolver (WithResolver)", p.t.Name, ErrNoResolver)
		}
	}
	return nil
}

func (a *applier) dropBase(id string) error {
	if !a.p.options.Policy.keepsBase() {
		return nil
	}
	return a.tx.exec(`DELETE FROM tidemark_bases WHERE tableName = ? AND clientId = ?`, a.p.t.Name, id)
}

// base is what the row was when we last agreed with the server, by column; nil when
// that is not known.
func (a *applier) base(id string) (map[string]any, error) {
	var base map[string]any
	err := a.tx.each(`SELECT columnName, +value FROM tidemark_bases WHERE tableName = ? AND clientId = ?`, []any{a.p.t.Name, id}, func(scan func(...any) error) error {
		var c string
		var v any
		err := scan(&c, &v)
		if base == nil {
			base = map[string]any{}
		}
		base[c] = v
		return err
	})
	return base, err
}

// combine settles a conflict column by column, or as the application says. What does
// not work out that way is decided for the row as a whole.
func (a *applier) combine(row *localRow, d *messages.Document) (outcome, error) {
	cols, vals, out, err := a.values(d)
	if err != nil {
		return 0, err
	}
	if out == waiting && !a.final { // its parent may be on its way
		return waiting, nil
	}
	m, err := a.merged(row, d, cols, vals, out)
	if err != nil {
		return 0, err
	}
	if m.doc == nil {
		return a.oneWins(row, d, m.reason)
	}
	winner := "merged"
	switch {
	case m.theirs:
		winner = "server"
		out, err = a.overwrite(row, d)
	case slices.EqualFunc(m.result, row.values, equal):
		winner = "local"
		err = a.stayOnTop(d) // the base stays for what the document lacks
	default:
		out, err = a.update(m.doc, max(row.updatedOn, d.UpdatedOn)+1)
	}
	if err != nil {
		return 0, err
	}
	if out == collides && !a.final { // the other row may be about to change
		return collides, nil
	}
	if out != applied { // each side is a row that fits here, but not what became of both
		return a.oneWins(row, d, "changed on both sides, and merged by field it does not fit ("+a.reason+"); ")
	}
	if winner != "server" {
		if err := a.goOnFrom(d); err != nil {
			return 0, err
		}
	}
	if m.lost == "" {
		return applied, nil
	}
	return applied, a.keepConflict(row, d, winner, m.reason)
}

// merger is what becomes of both sides of a conflict.
type merger struct {
	doc          *messages.Document // nil: one side has to win as a whole, and reason says why
	result       []any
	theirs       bool // it is the document as it came
	lost, reason string
}

// merged decides column by column, or as the application says. cols and vals are the
// document's.
func (a *applier) merged(row *localRow, d *messages.Document, cols []int, vals []any, out outcome) (m merger, err error) {
	base, err := a.base(d.ID)
	if err != nil {
		return m, err
	}
	if out != applied || slices.ContainsFunc(row.parents, func(o parentOf) bool { return o.dangling }) {
		return merger{reason: "changed on both sides; "}, nil
	}
	theirs := slices.Clone(row.values)
	for i, c := range cols {
		if !a.p.cols[c].surrogate {
			theirs[c] = vals[i]
		}
	}
	if a.p.options.Policy == ByApplication {
		var undecided error
		if m.result, undecided = a.ask(row, d, base, theirs); undecided != nil {
			return merger{reason: "changed on both sides, and the application could not decide (" + undecided.Error() + "); "}, nil //nolint:nilerr // the reason says it
		}
		m.lost, m.reason = "all", "changed on both sides; the application decided"
	} else {
		if base == nil {
			return merger{reason: "changed on both sides, and what it was before is not known; "}, nil
		}
		var names []string
		m.result, names = a.p.threeWay(row.values, theirs, base, later(row.updatedOn, a.me, d.UpdatedOn, d.UpdatedBy))
		m.lost = strings.Join(names, ", ")
		m.reason = "changed on both sides and merged by field; both changed " + m.lost + ", where the later edit wins"
	}
	if m.doc, err = a.asDocument(row, d, theirs, m.result); err == nil && m.doc == nil {
		m.reason = "changed on both sides, and a value of the application's refers to a row that is not here; "
	}
	m.theirs = slices.EqualFunc(m.result, theirs, equal)
	return m, err
}

// goOnFrom makes a version the one that the row's edits start from.
func (a *applier) goOnFrom(d *messages.Document) error {
	if !a.p.options.Policy.keepsBase() {
		return nil
	}
	cols, vals, out, err := a.values(d)
	if err != nil || out != applied {
		return err
	}
	for i, c := range cols {
		if a.p.cols[c].surrogate {
			continue
		}
		if err := a.tx.exec(`INSERT INTO tidemark_bases (tableName, clientId, columnName, value) VALUES (?, ?, ?, ?)
			ON CONFLICT (tableName, clientId, columnName) DO UPDATE SET value = excluded.value`, a.p.t.Name, d.ID, a.p.cols[c].Name, vals[i]); err != nil {
			return err
		}
	}
	return nil
}

// threeWay merges two versions against the one they started from. Columns of one
// foreign key belong together. lost are the columns that both sides changed, and
// differently: mine says whose edit is later.
func (p *plan) threeWay(local, server []any, base map[string]any, mine bool) (result []any, lost []string) {
	group := make([]int, len(p.cols)) // columns of one foreign key have the same number
	for i := range group {
		group[i] = i
	}
	for _, r := range p.refs {
		for _, c := range r.cols[1:] {
			from, to := group[c], group[r.cols[0]]
			for i := range group {
				if group[i] == from {
					group[i] = to
				}
			}
		}
	}
	changed := func(g int, side []any) bool {
		for i := range p.cols {
			if v, known := base[p.cols[i].Name]; group[i] == g && (!known && !equal(local[i], server[i]) || known && !equal(side[i], v)) {
				return true
			}
		}
		return false
	}
	result = slices.Clone(server)
	for i := range p.cols {
		here, there := changed(group[i], local), changed(group[i], server)
		if here && there && !equal(local[i], server[i]) {
			lost = append(lost, p.cols[i].Name)
		}
		if here && (!there || mine) {
			result[i] = local[i]
		}
	}
	return result, lost
}

// ask asks the application.
func (a *applier) ask(row *localRow, d *messages.Document, base map[string]any, theirs []any) (result []any, err error) {
	if a.p.resolver == nil {
		return nil, ErrNoResolver
	}
	c := Contest{
		Table: a.p.t.Name, DocumentID: d.ID, Base: base, Local: map[string]any{}, Server: map[string]any{},
		LocalUpdatedOn: time.UnixMilli(row.updatedOn), ServerUpdatedOn: time.UnixMilli(d.UpdatedOn),
	}
	for i := range a.p.cols {
		c.Local[a.p.cols[i].Name], c.Server[a.p.cols[i].Name] = row.values[i], theirs[i]
	}
	answer, err := func() (_ map[string]any, err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("its function panicked: %v", r)
			}
		}()
		return a.p.resolver(c)
	}()
	if err != nil {
		return nil, err
	}
	result = slices.Clone(theirs)
	for name, v := range answer {
		i := slices.IndexFunc(a.p.cols, func(c plannedColumn) bool { return fold(c.Name) == fold(name) })
		if i < 0 {
			return nil, fmt.Errorf("its function named the column %q, which the table does not have", name)
		}
		if v, err = driver.DefaultParameterConverter.ConvertValue(v); err != nil {
			return nil, fmt.Errorf("its function's value of column %q: %w", name, err)
		}
		if _, is := v.(time.Time); is {
			return nil, fmt.Errorf("its function's value of column %q is a time: store it as the table does", name)
		}
		if v = toSQL(v); !a.p.cols[i].surrogate {
			result[i] = v
		}
	}
	return result, nil
}

// asDocument is the document with the resulting values where they differ from
// theirs; nil when a foreign key in them refers to nothing.
func (a *applier) asDocument(row *localRow, d *messages.Document, theirs, result []any) (*messages.Document, error) {
	md := *d
	md.Fields = maps.Clone(d.Fields)
	mine := a.p.document(row, a.me).Fields
	for i := range a.p.cols {
		if !equal(result[i], theirs[i]) {
			md.Fields[a.p.cols[i].Name] = result[i]
		}
	}
	for i := range a.p.refs {
		r := &a.p.refs[i]
		isMine, isTheirs, null := true, true, false
		where, args := make([]string, len(r.cols)), make([]any, len(r.cols))
		for k, c := range r.cols {
			isMine, isTheirs = isMine && equal(result[c], row.values[c]), isTheirs && equal(result[c], theirs[c])
			null = null || result[c] == nil
			where[k], args[k] = quote(r.fk.ParentColumns[k])+" = ?", result[c]
		}
		switch {
		case isTheirs:
		case isMine:
			md.Fields[r.field] = mine[r.field]
		case null:
			md.Fields[r.field] = nil
		default:
			var id string
			ok, err := found(a.tx.row(`SELECT clientId FROM `+quote(r.parent.Name)+` WHERE `+strings.Join(where, " AND "), args...).Scan(&id))
			if err != nil || !ok {
				return nil, err
			}
			md.Fields[r.field] = id
		}
	}
	return &md, nil
}
