package persistence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// What can be in the way of a version that is to come back.
var (
	// ErrInTheWay: another row has its unique key, or rows refer to the one that it
	// would delete.
	ErrInTheWay = errors.New("other rows are in the way")
	// ErrParentMissing: it refers to a row that is not here.
	ErrParentMissing = errors.New("a row that it refers to is not here")
	// ErrDoesNotFit: the schema, or a trigger of the application's, refuses it.
	ErrDoesNotFit = errors.New("it does not fit")
	// ErrWhichSide: both versions went into the winner.
	ErrWhichSide = errors.New("both versions went into the row: choose the side")
)

// RestoredConflict says what a restore did.
type RestoredConflict struct {
	Table      string `json:"table"`
	DocumentID string `json:"documentId"`
	Row        string `json:"row"`
	// Did is "updated", "inserted" or "deleted", or "nothing" when the row was like
	// that already.
	Did string `json:"did"`
	// Kept is the conflict that has what was there before, 0 when nothing was done:
	// restoring that takes this restore back.
	Kept int64 `json:"kept"`
}

// RestoreConflict makes one side of a conflict, by default the one that lost, an
// ordinary edit that this device makes now: the application's triggers see it, and
// the next sync uploads it. What was there before is kept as a conflict in its turn.
// Doing it twice does nothing more.
func (l *Local) RestoreConflict(ctx context.Context, id int64, side Side) (RestoredConflict, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return RestoredConflict{}, err
	}
	var out RestoredConflict
	err = l.write(ctx, func(tx *tx) error {
		k, ok, err := readConflict(ctx, tx.conn, id)
		if err == nil && !ok {
			err = errNoConflict
		}
		if err != nil {
			return err
		}
		i := slices.IndexFunc(plans, func(p *plan) bool { return p.t.Name == k.table })
		if i < 0 {
			return fmt.Errorf("table %q is not synced any more: %w", k.table, ErrNotAttached)
		}
		u := &unconflict{k: k}
		if u.applier, err = newApplier(tx, plans[i], &messages.Counts{}); err != nil {
			return err
		}
		if u.d, err = u.chosen(ctx, side); err != nil {
			return err
		}
		out, err = u.run()
		return err
	})
	if err != nil {
		return RestoredConflict{}, fmt.Errorf("restore conflict %d: %w", id, err)
	}
	return out, nil
}

// unconflict is one restore.
type unconflict struct {
	*applier
	k keptConflict
	d *messages.Document // what is to come back
}

func (u *unconflict) chosen(ctx context.Context, side Side) (*messages.Document, error) {
	if side == "" {
		c, err := u.k.conflict(ctx, u.tx.conn, u.p)
		if err != nil {
			return nil, err
		}
		if side = c.Lost(); side == "" {
			return nil, ErrWhichSide
		}
	}
	var d *messages.Document
	switch side {
	case LocalSide:
		d = u.k.local
	case ServerSide:
		d = u.k.server
	default:
		return nil, fmt.Errorf("there is no side %q: %w", side, ErrWhichSide)
	}
	if d == nil { // the row was deleted, or not there
		d = &messages.Document{Table: u.k.table, ID: u.k.doc, Deleted: true, UpdatedOn: time.Now().UnixMilli(), UpdatedBy: u.me}
	}
	return d, nil
}

func (u *unconflict) run() (RestoredConflict, error) {
	out := RestoredConflict{Table: u.k.table, DocumentID: u.k.doc, Did: "nothing"}
	if err := u.look([]messages.Document{*u.d}); err != nil {
		return out, err
	}
	row, err := u.p.rowByID(u.tx, u.k.doc)
	if err == nil {
		out.Row, err = u.p.rowLabel(u.tx.ctx, u.tx.conn, u.k.doc)
	}
	if err != nil {
		return out, err
	}
	switch {
	case u.d.Deleted && row == nil:
	case u.d.Deleted:
		out.Did, err = "deleted", u.remove()
	case row == nil:
		out.Did, err = "inserted", u.bringBack()
	default:
		var changed bool
		if changed, err = u.change(row); changed {
			out.Did = "updated"
		}
	}
	if err != nil {
		return out, err
	}
	out.DocumentID = u.d.ID
	if !u.d.Deleted {
		if out.Row, err = u.p.rowLabel(u.tx.ctx, u.tx.conn, u.d.ID); err != nil {
			return out, err
		}
	}
	// A row that came back under another identity is found by that from now on.
	if err := u.tx.exec(`UPDATE tidemark_conflicts SET restoredOn = ?, documentId = ? WHERE id = ?`, time.Now().UnixMilli(), u.d.ID, u.k.id); err != nil {
		return out, err
	}
	if out.Did == "nothing" {
		return out, nil
	}
	if err := u.keepConflict(row, u.d, winnerRestored, fmt.Sprintf(restoredReason, u.k.id)); err != nil {
		return out, err
	}
	return out, u.tx.row(`SELECT max(id) FROM tidemark_conflicts`).Scan(&out.Kept)
}

// content maps the version to the columns here, or says why it cannot be.
func (u *unconflict) content() ([]int, []any, error) {
	cols, vals, out, err := u.values(u.d)
	switch {
	case err != nil:
		return nil, nil, err
	case out == waiting:
		return nil, nil, u.parentMissing()
	case out != applied:
		return nil, nil, fmt.Errorf("%w: %s", ErrDoesNotFit, u.reason)
	}
	return cols, vals, nil
}

// parentMissing names the parent, and how to get it back where that is known.
func (u *unconflict) parentMissing() error {
	for i := range u.p.refs {
		r := &u.p.refs[i]
		if id, ok := u.d.Fields[r.field].(string); !ok || id != u.missing {
			continue
		}
		columns := strings.Join(r.fk.Columns, ", ")
		var last int64
		if err := u.tx.row(`SELECT coalesce(max(id), 0) FROM tidemark_conflicts WHERE tableName = ? AND documentId = ?`, r.parent.Name, u.missing).Scan(&last); err != nil {
			return err
		}
		if last != 0 {
			return fmt.Errorf("%w: column %s refers to document %s of table %q: restore that first, it is in conflict %d", ErrParentMissing, columns, u.missing, r.parent.Name, last)
		}
		return fmt.Errorf("%w: column %s refers to document %s of table %q, which was deleted or has not arrived", ErrParentMissing, columns, u.missing, r.parent.Name)
	}
	return fmt.Errorf("%w: %s", ErrParentMissing, u.reason)
}

// awake runs a statement as the application would: all triggers see an edit. After
// an error the transaction must end: it may be gone already, and nothing but a
// transaction's end may put applying back then.
func (t *tx) awake(query string, args ...any) (int64, error) {
	if err := t.exec(`UPDATE tidemark_state SET applying = 0`); err != nil {
		return 0, err
	}
	n, err := t.run(query, args...)
	if err != nil {
		return 0, err
	}
	return n, t.exec(`UPDATE tidemark_state SET applying = 1`)
}

func (u *unconflict) edit(query, tentative string, args []any) error {
	n, err := u.tx.awake(query, args...)
	switch {
	case collision(err) && tentative != "":
		return u.clash(err, tentative, args)
	case rowsFault(err):
		return fmt.Errorf("%w: %w", ErrDoesNotFit, err)
	case err == nil && n == 0:
		return fmt.Errorf("%w: a trigger of the application ignored it", ErrDoesNotFit)
	}
	return err
}

// clash names the rows that have the unique key. tentative is the statement as one
// that changes nothing where it meets one.
func (u *unconflict) clash(cause error, tentative string, args []any) error {
	ids, err := u.holders(tentative, args, u.d.ID)
	if err != nil {
		return errors.Join(cause, err)
	}
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		label, err := u.p.rowLabel(u.tx.ctx, u.tx.conn, id)
		if err != nil {
			return errors.Join(cause, err)
		}
		if label == "" {
			label = "document " + id
		}
		names = append(names, label)
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: %w", ErrInTheWay, cause)
	}
	return fmt.Errorf("%w: the row %s of table %q has the same unique key (%w): change or delete it first", ErrInTheWay, strings.Join(names, " and the row "), u.k.table, cause)
}

// change sets the columns that differ.
func (u *unconflict) change(row *localRow) (bool, error) {
	cols, vals, err := u.content()
	if err != nil {
		return false, err
	}
	var set []string
	var args []any
	for i, c := range cols {
		if pc := &u.p.cols[c]; !pc.surrogate && !equal(row.values[c], vals[i]) {
			set, args = append(set, pc.quoted+" = ?"), append(args, vals[i])
		}
	}
	if len(set) == 0 {
		return false, nil
	}
	before, err := u.naturalKeys(u.d.ID)
	if err != nil {
		return false, err
	}
	rest := u.p.name + " SET " + strings.Join(set, ", ") + " WHERE clientId = ?"
	if err := u.edit("UPDATE"+u.p.or+" "+rest, "UPDATE OR IGNORE "+rest, append(args, u.d.ID)); err != nil {
		return false, err
	}
	return true, u.follow(u.d.ID, before)
}

// remove deletes the row, unless others refer to it.
func (u *unconflict) remove() error {
	refs, err := (&settler{tx: u.tx}).referrers(u.p, u.d.ID)
	if err != nil {
		return err
	}
	if len(refs) > 0 {
		return fmt.Errorf("%w: %d rows, of table %q and perhaps others, refer to the row that it would delete: delete them first", ErrInTheWay, len(refs), refs[0].table)
	}
	return u.edit("DELETE FROM "+u.p.name+" WHERE clientId = ?", "", []any{u.d.ID})
}

// bringBack inserts the row. It is the document that it was, on top of its
// tombstone, so that its children find it; but one that was merged into another row
// never comes back under its old identity: whoever referred to it was led away.
func (u *unconflict) bringBack() error {
	cols, vals, err := u.content()
	if err != nil {
		return err
	}
	names, marks, args := []string{"createdOn"}, "?", []any{u.d.CreatedOn}
	renumbered := false
	for i, c := range cols {
		if u.p.cols[c].surrogate {
			if n, ok := vals[i].(int64); !ok || u.taken[n] {
				renumbered = ok
				continue // SQLite gives another
			}
		}
		names, marks, args = append(names, u.p.cols[c].quoted), marks+", ?", append(args, vals[i])
	}
	rest := "INTO " + u.p.name + " (" + strings.Join(names, ", ") + ") VALUES (" + marks + ")"
	if err := u.edit("INSERT"+u.p.or+" "+rest, "INSERT OR IGNORE "+rest, args); err != nil {
		return err
	}
	born, err := u.born(cols, vals)
	if err != nil {
		return err
	}
	var tomb struct {
		on              int64
		server, version any
		survivor        string
	}
	buried, err := found(u.tx.row(`SELECT updatedOn, serverId, serverVersion, survivor FROM tidemark_tombstones WHERE tableName = ? AND clientId = ?`, u.k.table, u.d.ID).
		Scan(&tomb.on, &tomb.server, &tomb.version, &tomb.survivor))
	if err != nil {
		return err
	}
	if tomb.survivor != "" {
		u.d.ID = born
		return nil
	}
	if err := u.tx.exec(`UPDATE `+u.p.name+` SET clientId = ?, serverId = ?, serverVersion = ?, updatedOn = max(updatedOn, ?) WHERE clientId = ?`,
		u.d.ID, tomb.server, tomb.version, max(tomb.on, u.d.UpdatedOn)+1, born); err != nil {
		return err
	}
	if renumbered {
		if err := u.renumber(u.d.ID); err != nil {
			return err
		}
	}
	if buried {
		return u.dropTombstone(u.d.ID)
	}
	return nil
}

// born is the clientId of the row that was just inserted.
func (u *unconflict) born(cols []int, vals []any) (id string, err error) {
	if !u.p.t.WithoutRowID {
		err = u.tx.row(`SELECT clientId FROM ` + u.p.name + ` WHERE ` + u.p.t.name(u.p.t.key()[0]) + ` = last_insert_rowid()`).Scan(&id)
		return id, err
	}
	var where []string
	var args []any
	for i, c := range cols {
		if u.p.cols[c].PK > 0 {
			where, args = append(where, u.p.cols[c].quoted+" = ?"), append(args, vals[i])
		}
	}
	err = u.tx.row(`SELECT clientId FROM `+u.p.name+` WHERE `+strings.Join(where, " AND "), args...).Scan(&id)
	return id, err
}
