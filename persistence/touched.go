package persistence

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// The application's own triggers fire when documents are applied: a search index
// needs them to. But a counter that they raise, or a "modified at" that they set,
// has arrived with its own document already, or will: it must not be counted here
// once more. So what they insert into tracked tables, delete or replace there, or change
// in rows that are clean, is ignored (holdInsert, holdDelete, holdUpdate). What they change
// in the very row that is being written is noted (tidemark_touched) and put back to what
// its document says. All of it comes from the device where the trigger first fired. None
// of this costs anything to speak of in a database without triggers of the application's.

// suspended runs fn without some of the application's UPDATE triggers, as Attach does.
func (t *tx) suspended(list []schemaObject, fn func() error) error {
	if len(list) == 0 {
		return fn()
	}
	var attached bool // as the schema is now
	if err := t.row(`SELECT schemaVersion = (SELECT schema_version FROM pragma_schema_version) FROM tidemark_state`).Scan(&attached); err != nil {
		return err
	}
	var current []schemaObject // the application may have replaced or dropped some since they were listed
	for _, o := range list {
		ok, err := found(t.row(`SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?`, o.name).Scan(&o.sql))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := t.exec("DROP TRIGGER " + quote(o.name)); err != nil {
			return err
		}
		current = append(current, o)
	}
	if err := fn(); err != nil {
		return err
	}
	for _, o := range current {
		if err := t.exec(o.sql); err != nil {
			return fmt.Errorf("create the application's trigger %q again: %w", o.name, err)
		}
	}
	if !attached {
		return nil
	}
	return t.exec(`UPDATE tidemark_state SET schemaVersion = (SELECT schema_version FROM pragma_schema_version)`)
}

// listeners are the application's UPDATE triggers, by table: all, and those that fire
// when our columns change.
func listeners(ctx context.Context, q queryer) (onUpdate, onTracked map[string][]schemaObject, err error) {
	onUpdate, onTracked = map[string][]schemaObject{}, map[string][]schemaObject{}
	err = eachRow(ctx, q, `SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' AND name NOT LIKE 'tidemark\_%' ESCAPE '\' ORDER BY rowid`,
		func(scan func(...any) error) error {
			var o masterObject
			if err := scan(&o.name, &o.table, &o.sql); err != nil {
				return err
			}
			event, fires := o.event()
			if event == "UPDATE" {
				onUpdate[fold(o.table)] = append(onUpdate[fold(o.table)], o.schemaObject)
			}
			if fires {
				onTracked[fold(o.table)] = append(onTracked[fold(o.table)], o.schemaObject)
			}
			return nil
		})
	return onUpdate, onTracked, explain(err)
}

// listen finds out whether the application has triggers, or had some when Attach came by:
// then ours are still there. Only within the transaction does that last. Ours are made
// where they are missing: the application's may have come since Attach.
func (t *tx) listen(plans []*plan) error {
	there := map[string]bool{}
	if err := t.each(`SELECT name FROM sqlite_master WHERE type = 'trigger'`, nil, func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		there[name] = true
		t.reacts = t.reacts || !strings.HasPrefix(name, Prefix) || strings.HasSuffix(name, "_hd")
		return err
	}); err != nil || !t.reacts {
		return err
	}
	for _, p := range plans {
		for _, o := range p.t.listeners() {
			if there[o.name] {
				continue
			}
			if err := t.exec(o.sql); err != nil {
				return err
			}
		}
	}
	return t.sweepAll(plans)
}

// sweepAll gives an identity to rows that came in without one.
func (t *tx) sweepAll(plans []*plan) error {
	for _, p := range plans {
		var callBack []schemaObject
		if len(p.onTracked) > 0 {
			var strays bool
			if err := t.row(`SELECT EXISTS (SELECT 1 FROM ` + p.name + ` WHERE isDirty = 1 AND (clientId IS NULL OR updatedBy = ` + writing + `))`).Scan(&strays); err != nil {
				return err
			}
			if strays {
				callBack = p.onTracked
			}
		}
		if err := t.suspended(callBack, func() error {
			_, err := sweep(t.ctx, t.conn, p.t)
			return explain(err)
		}); err != nil {
			return err
		}
	}
	return nil
}

// putBack restores rows that a trigger changed, from documents that are at hand.
func (a *applier) putBack(docs []messages.Document) error {
	touched := map[string]bool{}
	if err := a.tx.each(`SELECT clientId FROM tidemark_touched WHERE tableName = ?`, []any{a.p.t.Name}, func(scan func(...any) error) error {
		var id string
		err := scan(&id)
		touched[id] = true
		return err
	}); err != nil || len(touched) == 0 {
		return err
	}
	var left []*messages.Document
	for i := range docs {
		if !touched[docs[i].ID] || docs[i].Deleted {
			continue
		}
		if done, err := a.restoreRow(&docs[i]); err != nil {
			return err
		} else if !done {
			left = append(left, &docs[i])
		}
	}
	if len(left) == 0 {
		return nil
	}
	return a.tx.suspended(a.p.onUpdate, func() error {
		for _, d := range left {
			if _, err := a.restoreRow(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// restoreRow makes a clean row say what its document says, and reports whether it does.
// The statement that does so may fire the trigger again; it names only columns that
// differ, so a trigger of other columns does not. One that counts every update is never
// content: it has to be suspended.
func (a *applier) restoreRow(d *messages.Document) (done bool, err error) {
	*a.at = docKey{a.p.t.Name, d.ID}
	for try := 0; ; try++ {
		if _, skip := a.skip[d.ID]; skip {
			break
		}
		row, err := a.p.rowByID(a.tx, d.ID)
		if err != nil {
			return false, err
		}
		if row == nil || row.dirty || row.serverVersion != d.UpdateTime {
			break
		}
		cols, vals, out, err := a.values(d)
		if err != nil {
			return false, err
		}
		var set []string
		var args []any
		for i, c := range cols {
			if pc := &a.p.cols[c]; out == applied && !pc.surrogate && !equal(row.values[c], vals[i]) {
				set, args = append(set, pc.quoted+" = ?"), append(args, vals[i])
			}
		}
		if len(set) == 0 {
			break
		}
		if try == 2 {
			return false, nil
		}
		if _, err := a.tx.handle(handling("UPDATE", a.p.t, d.ID), "UPDATE"+a.p.or+" "+a.p.name+" SET "+strings.Join(set, ", ")+" WHERE clientId = ?", append(args, d.ID)...); err != nil {
			if _, err := a.refused(err); err != nil {
				return false, err
			}
			break // the row stays as the trigger left it
		}
	}
	return true, a.tx.exec(`DELETE FROM tidemark_touched WHERE tableName = ? AND clientId = ?`, a.p.t.Name, d.ID)
}

// touched restores, at the end of a download, what is still as a trigger left it;
// documents that are not at hand are asked for.
func (s *settler) touched(fetched []messages.Document) error {
	if err := s.tx.exec(`DELETE FROM tidemark_touched WHERE tableName NOT IN (SELECT tableName FROM tidemark_tables WHERE excluded = 0)`); err != nil {
		return err
	}
	for _, p := range s.plans {
		a, err := s.applier(p)
		if err != nil {
			return err
		}
		var mine []messages.Document
		for _, d := range fetched {
			if d.Table == p.t.Name {
				mine = append(mine, d)
			}
		}
		if err := a.putBack(mine); err != nil {
			return err
		}
		// Rows that are dirty, new or gone have no document to go back to.
		if err := s.tx.exec(`DELETE FROM tidemark_touched WHERE tableName = ? AND clientId NOT IN
			(SELECT t.clientId FROM `+p.name+` t WHERE t.clientId = tidemark_touched.clientId AND t.isDirty = 0 AND t.serverVersion IS NOT NULL)`, p.t.Name); err != nil {
			return err
		}
		if err := s.tx.each(`SELECT clientId FROM tidemark_touched WHERE tableName = ?`, []any{p.t.Name}, func(scan func(...any) error) error {
			var id string
			err := scan(&id)
			if !slices.Contains(s.asked[p.t.Name], id) && !slices.Contains(s.out.Lookup[p.t.Name], id) {
				s.out.Lookup[p.t.Name] = append(s.out.Lookup[p.t.Name], id)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
