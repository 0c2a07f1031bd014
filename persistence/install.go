package persistence

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// event says when a trigger fires, and onTracked whether it does when one of the
// tracked columns is updated.
func (o masterObject) event() (event string, onTracked bool) {
	toks := tokens(o.sql)
	for i, t := range toks {
		switch {
		case t.is("INSERT"), t.is("DELETE"):
			return strings.ToUpper(t.text), false
		case t.is("UPDATE"):
			if i+1 == len(toks) || !toks[i+1].is("OF") {
				return "UPDATE", true
			}
			for _, c := range toks[i+2:] {
				if c.is("ON") {
					break
				}
				onTracked = onTracked || isTracked(c.text)
			}
			return "UPDATE", onTracked
		}
	}
	return "", false
}

// listeners are the application's triggers that an update of the tracked columns
// fires.
func (a *attacher) listeners(t *Table) []masterObject {
	var out []masterObject
	for _, o := range a.objects[fold(t.Name)] {
		if _, fires := o.event(); !o.ours && o.kind == "trigger" && fires {
			out = append(out, o)
		}
	}
	return out
}

func (a *attacher) calledBack(t *Table) bool { return len(a.listeners(t)) > 0 }

// reacts reports whether the application has triggers on any table.
func (a *attacher) reacts() bool {
	for _, list := range a.objects {
		if slices.ContainsFunc(list, func(o masterObject) bool { return !o.ours && o.kind == "trigger" }) {
			return true
		}
	}
	return false
}

// watch says what the triggers of a table have to look after.
func (a *attacher) watch(t *Table) watch {
	return watch{calledBack: a.calledBack(t), reacts: a.reacts(), keepsBase: a.options[t.Name].Policy.keepsBase()}
}

// chooseOptions brings the owner's choices together with those of before.
func (a *attacher) chooseOptions() (err error) {
	if a.options, err = loadOptions(a.ctx, a.q); err != nil {
		return err
	}
	for name, o := range a.opts.Options {
		t := a.schema.Table(name)
		if t == nil && slices.ContainsFunc(a.excluded, func(n string) bool { return fold(n) == fold(name) }) {
			return fmt.Errorf("table %q is excluded and takes no policy: take it back (pipeline attach --include, Table.Include), or take it out of the policies", name)
		}
		if t == nil {
			return fmt.Errorf("there is no attached table %q to choose a policy for: check the name", name)
		}
		if err := o.validate(); err != nil {
			return fmt.Errorf("table %q: %w", name, err)
		}
		a.options[t.Name] = o
	}
	return nil
}

func (a *attacher) storeOptions() error {
	for _, t := range a.schema.Tables {
		raw, err := json.Marshal(a.options[t.Name])
		if err != nil {
			return err
		}
		if _, err := a.exec(`UPDATE tidemark_tables SET options = ? WHERE tableName = ? AND options <> ?`, string(raw), t.Name, string(raw)); err != nil {
			return err
		}
		if a.options[t.Name].Policy.keepsBase() {
			continue
		}
		if _, err := a.exec(`DELETE FROM tidemark_bases WHERE tableName = ?`, t.Name); err != nil {
			return err
		}
	}
	return nil
}

// suspended runs fn without the application's UPDATE triggers on the table: that
// we fill our columns is no reason to set everybody's "modified at" to today.
func (a *attacher) suspended(t *Table, fn func() error) error {
	list := a.listeners(t)
	for _, o := range list {
		if err := a.all("DROP TRIGGER " + quote(o.name)); err != nil {
			return err
		}
	}
	if err := fn(); err != nil {
		return err
	}
	for _, o := range list {
		if err := a.all(o.sql); err != nil {
			return fmt.Errorf("create the application's trigger %q again: %w", o.name, err)
		}
	}
	return nil
}

// dropObjects drops our triggers and indexes on a table that are not as they
// should be.
func (a *attacher) dropObjects(table string, keep []schemaObject) error {
	var kept []masterObject
	for i, o := range a.objects[fold(table)] {
		if !o.ours || slices.Contains(keep, o.schemaObject) && !a.precedes(table, i) {
			kept = append(kept, o)
			continue
		}
		if err := a.all("DROP " + strings.ToUpper(o.kind) + " " + quote(o.name)); err != nil {
			return err
		}
	}
	a.objects[fold(table)] = kept
	return nil
}

// precedes reports whether one of ours that ignore statements is older than a trigger of
// the application's on the table. SQLite runs the newest one first, and what runs before
// ours is not ignored: a search index would lose a row that stays.
func (a *attacher) precedes(table string, at int) bool {
	list := a.objects[fold(table)]
	return (list[at].name == objectName(table, "hi") || list[at].name == objectName(table, "hd")) && slices.ContainsFunc(list[at:], func(o masterObject) bool {
		event, _ := o.event()
		return !o.ours && o.kind == "trigger" && (event == "INSERT" || event == "DELETE")
	})
}

// install creates the indexes and triggers that are missing and tries them.
func (a *attacher) install(t *Table) error {
	var missing []schemaObject
	for _, o := range append(t.indexes(), t.triggers(a.watch(t))...) {
		if !slices.ContainsFunc(a.objects[fold(t.Name)], func(m masterObject) bool { return m.schemaObject == o }) {
			missing = append(missing, o)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	broken := a.compile(t) // by a trigger of the application's: not for us to judge
	for _, o := range missing {
		if err := a.all(o.sql); err != nil {
			return err
		}
	}
	if broken != nil {
		a.warn("table %q cannot be written at the moment, one of the application's triggers is broken: %v", t.Name, broken)
		return nil
	}
	if err := a.compile(t); err != nil {
		return fmt.Errorf("the triggers do not work on it, exclude the table: %w", err)
	}
	return a.tryUpdate(t)
}

// compile prepares a statement of each kind, and with it all the triggers.
func (a *attacher) compile(t *Table) error {
	name := quote(t.Name)
	var set []string
	for _, c := range append(slices.Clone(t.Columns), Column{Name: "clientId"}, Column{Name: "updatedOn"}) {
		set = append(set, quote(c.Name)+" = "+quote(c.Name))
	}
	for _, s := range []string{
		"INSERT INTO " + name + " DEFAULT VALUES",
		"UPDATE " + name + " SET " + strings.Join(set, ", "),
		"DELETE FROM " + name,
	} {
		if err := drain(a.ctx, a.q, "EXPLAIN "+s); err != nil {
			return err
		}
	}
	return nil
}

// tryUpdate updates a row the way our triggers will, and takes it back: an
// application's trigger may forbid it.
func (a *attacher) tryUpdate(t *Table) error {
	list := a.listeners(t)
	if len(list) == 0 {
		return nil
	}
	for _, o := range list {
		if slices.ContainsFunc(tokens(o.sql), func(t token) bool { return t.is("RAISE") }) {
			a.warn("table %q: the application's trigger %q can refuse updates; one that refuses those of the tracked columns makes every insert fail: "+
				"limit it to columns of its own (UPDATE OF …), or exclude the table", t.Name, o.name)
		} else {
			a.warn("table %q: the application's trigger %q fires once more for each edit, when the row is marked: if it counts or logs, limit it to columns of its own (UPDATE OF …)", t.Name, o.name)
		}
	}
	if err := a.all("SAVEPOINT tidemark_try"); err != nil {
		return err
	}
	_, err := a.exec("UPDATE " + quote(t.Name) + " SET isDirty = isDirty WHERE clientId = (SELECT clientId FROM " + quote(t.Name) + " LIMIT 1)")
	if err != nil {
		return fmt.Errorf("the application's triggers refuse updates of the tracked columns; limit them to columns of their own (UPDATE OF …), or exclude the table: %w", err)
	}
	return a.all("ROLLBACK TO tidemark_try", "RELEASE tidemark_try")
}

// findDangling counts references to nothing. Foreign keys are off by SQLite's
// default, so real databases have them.
func (a *attacher) findDangling() error {
	for _, t := range a.schema.Tables {
		var key []string
		for _, k := range t.key() {
			key = append(key, "quote(c."+t.name(k)+")")
		}
		for _, fk := range t.ForeignKeys {
			var match, set []string
			for i, c := range fk.Columns {
				match = append(match, "p."+quote(fk.ParentColumns[i])+" = c."+quote(c))
				set = append(set, "c."+quote(c)+" IS NOT NULL")
			}
			d := Dangling{Table: t.Name, Parent: fk.Parent, Columns: fk.Columns}
			err := a.q.QueryRowContext(a.ctx, "SELECT count(*), coalesce(min("+strings.Join(key, " || ', ' || ")+"), '') FROM "+quote(t.Name)+" AS c WHERE "+
				strings.Join(set, " AND ")+" AND NOT EXISTS (SELECT 1 FROM "+quote(fk.Parent)+" AS p WHERE "+strings.Join(match, " AND ")+")").Scan(&d.Rows, &d.First)
			if err != nil {
				return err
			}
			if d.Rows > 0 {
				a.out.Dangling = append(a.out.Dangling, d)
			}
		}
	}
	return nil
}

// sweep gives an identity to rows that came in without one, because triggers were
// off or an application's trigger wrote the row from within ours, and clears what
// statements that changed nothing left in our notes. It returns how many rows
// became dirty. The caller holds the write transaction, with applying set.
func sweep(ctx context.Context, q queryer, t *Table) (int64, error) {
	table := quote(t.Name)
	adopt := func(column string) string {
		return "CASE WHEN typeof(" + column + ") = 'integer' AND " + column + " > 0 AND " + column + " <= s.now THEN " + column + " ELSE s.now END"
	}
	n := int64(0)
	for _, s := range []string{
		"UPDATE " + table + " SET clientId = lower(hex(randomblob(16))), serverId = NULL, serverVersion = NULL, isDirty = 1, " +
			"(createdOn, updatedOn, updatedBy) = (SELECT " + adopt(table+".createdOn") + ", " + adopt(table+".updatedOn") +
			", s.id FROM (SELECT " + now + " AS now, installationId AS id FROM tidemark_state) AS s) WHERE isDirty = 1 AND clientId IS NULL", // as the index of dirty rows has it
		"UPDATE " + table + " SET (updatedOn, updatedBy) = (SELECT max(" + now + ", coalesce(" + table + ".updatedOn, 0) + 1), installationId FROM tidemark_state)" +
			" WHERE isDirty = 1 AND updatedBy = " + writing,
	} {
		res, err := q.ExecContext(ctx, s)
		if err != nil {
			return n, err
		}
		changed, err := res.RowsAffected()
		if err != nil {
			return n, err
		}
		n += changed
	}
	for _, s := range []string{
		`DELETE FROM tidemark_replaced WHERE tableName = ?`,
		`DELETE FROM tidemark_marking WHERE tableName = ?`,
		`DELETE FROM tidemark_left WHERE tableName = ? AND parentId = '?'`,
	} {
		if _, err := q.ExecContext(ctx, s, t.Name); err != nil {
			return n, err
		}
	}
	return n, nil
}
