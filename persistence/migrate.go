package persistence

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// renamed takes along what is known of deleted rows of a table that had another name.
func (a *attacher) renamed(t *Table) error {
	for was := range a.stored {
		if a.schema.Table(was) != nil || !slices.ContainsFunc(a.objects[fold(t.Name)], func(o masterObject) bool { return o.ours && strings.HasPrefix(o.name, objectName(was, "")) }) {
			continue
		}
		if o, ok := a.options[was]; ok && a.options[t.Name] == (TableOptions{}) {
			a.options[t.Name] = o
		}
		for _, q := range []string{
			`UPDATE OR IGNORE tidemark_tombstones SET tableName = ?, serverId = NULL, serverVersion = NULL WHERE tableName = ?`,
			`UPDATE OR IGNORE tidemark_renumbered SET tableName = ? WHERE tableName = ?`,
		} {
			if _, err := a.exec(q, t.Name, was); err != nil {
				return err
			}
		}
	}
	return nil
}

// mark gives every row without one an identity and makes rows dirty: all of them,
// or those that hold something in the columns that the table gained.
func (a *attacher) mark(t *Table, all, excluded bool, gained []string) error {
	table := "UPDATE " + quote(t.Name)
	var statements []string
	if all { // stamps stay: an edit made elsewhere since then still wins
		statements = append(statements, table+" SET isDirty = 1 WHERE isDirty IS NOT 1")
	}
	if len(gained) > 0 {
		var filled []string
		for _, c := range t.Columns {
			if slices.Contains(gained, c.Name) {
				filled = append(filled, notDefault(c))
			}
		}
		switch {
		case excluded: // nobody saw when: ours beat the version that they were added to, and no later edit
			statements = append(statements, table+" SET isDirty = 1, (updatedOn, updatedBy) = (SELECT coalesce("+quote(t.Name)+".updatedOn, 0) + 1, installationId FROM tidemark_state) WHERE "+strings.Join(filled, " OR "))
		case all:
			statements = append(statements, table+" SET isDirty = 1, (updatedOn, updatedBy) = (SELECT max("+now+
				", coalesce("+quote(t.Name)+".updatedOn, 0) + 1), installationId FROM tidemark_state) WHERE "+strings.Join(filled, " OR "))
		default: // no edit, but a column that was renamed: what was edited elsewhere since then still wins, see fill
			statements = append(statements, table+" SET isDirty = 1, updatedOn = coalesce(updatedOn, 0) + 1 WHERE isDirty = 0 AND ("+strings.Join(filled, " OR ")+")")
		}
	}
	strays, err := a.exists("SELECT 1 FROM " + quote(t.Name) + " WHERE clientId IS NULL")
	if err != nil {
		return err
	}
	if !strays && len(statements) == 0 {
		return nil
	}
	return a.suspended(t, func() error {
		if _, err := a.exec(table + " SET isDirty = 1 WHERE clientId IS NULL AND isDirty IS NOT 1"); err != nil {
			return err
		}
		n, err := sweep(a.ctx, a.q, t)
		a.out.Rows += n
		for _, s := range statements {
			if err != nil {
				break
			}
			n, err = a.exec(s)
			a.out.Rows += n
		}
		return err
	})
}

// fill sets columns that this table has newly learnt, on a row whose version we
// already had: the document may know more of it than we could take then.
func (a *applier) fill(d *messages.Document, r *rowRef) (outcome, error) {
	part := *d
	part.Fields = map[string]any{}
	for c := range a.gained {
		if v, ok := d.Fields[c]; ok && (v != nil || !a.p.notNull(c)) {
			part.Fields[c] = v
		}
	}
	if len(part.Fields) == 0 {
		return skipped, nil
	}
	cols, vals, out, err := a.values(&part)
	if err != nil || out != applied {
		return out, err
	}
	row, err := a.p.rowByID(a.tx, d.ID)
	if err != nil || row == nil {
		return 0, err
	}
	// Attach has marked it, because the column came with something in it (it was renamed).
	marked := r.dirty && row.updatedOn == d.UpdatedOn+1 && row.updatedBy == d.UpdatedBy && d.UpdatedBy != a.me
	var set []string
	var args []any
	differs := false
	for i, c := range cols {
		pc := &a.p.cols[c]
		if pc.surrogate || equal(row.values[c], vals[i]) {
			continue
		}
		if r.dirty && row.values[c] != nil && !pc.isDefault(row.values[c]) {
			differs = differs || !pc.isDefault(vals[i])
			if !marked {
				continue // the application has filled it here: that edit goes up
			}
		}
		set, args = append(set, pc.quoted+" = ?"), append(args, vals[i])
		if r.dirty && a.p.options.Policy.keepsBase() { // where something is known of what it was
			if err := a.tx.exec(`INSERT INTO tidemark_bases (tableName, clientId, columnName, value) SELECT ?, ?, ?, ?
				WHERE EXISTS (SELECT 1 FROM tidemark_bases WHERE tableName = ? AND clientId = ?)
				ON CONFLICT (tableName, clientId, columnName) DO UPDATE SET value = excluded.value`, a.p.t.Name, d.ID, pc.Name, vals[i], a.p.t.Name, d.ID); err != nil {
				return 0, err
			}
		}
	}
	if differs && r.version == d.UpdateTime { // else the conflict is to be decided yet
		winner := map[bool]string{true: "server", false: "local"}[marked]
		if err := a.keepConflict(row, d, winner, "the column came to this device with another value"); err != nil {
			return 0, err
		}
	}
	if len(set) > 0 {
		out, err := a.put(d.ID, "UPDATE"+a.p.or+" "+a.p.name+" SET "+strings.Join(set, ", ")+" WHERE clientId = ?", append(args, d.ID))
		if err != nil || out != applied {
			return out, err
		}
	}
	if marked && r.version == d.UpdateTime {
		if row, err = a.p.rowByID(a.tx, d.ID); err != nil || row == nil {
			return 0, err
		}
		if a.p.same(row, d) && !a.p.filled(d, row) { // nobody has to be told
			return a.update(d, 0)
		}
	}
	if len(set) == 0 {
		return skipped, nil
	}
	return applied, nil
}

func (p *plan) notNull(column string) bool {
	return slices.ContainsFunc(p.cols, func(c plannedColumn) bool { return c.Name == column && c.NotNull })
}

// isDefault reports whether a value is what ALTER TABLE ADD COLUMN put into every
// row that was there: the column's constant default.
func (c *plannedColumn) isDefault(v any) bool {
	if c.initial == nil || v == nil {
		return c.initial == v
	}
	return fmt.Sprint(v) == fmt.Sprint(c.initial)
}
