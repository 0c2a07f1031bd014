package persistence

import (
	"slices"
	"strings"
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
func (a *attacher) mark(t *Table, all bool, gained []string) error {
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
		if all {
			statements = append(statements, table+" SET isDirty = 1, (updatedOn, updatedBy) = (SELECT max("+now+
				", coalesce("+quote(t.Name)+".updatedOn, 0) + 1), installationId FROM tidemark_state) WHERE "+strings.Join(filled, " OR "))
		} else { // no edit, but a column that was renamed: what was edited elsewhere since then still wins, see fill
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
