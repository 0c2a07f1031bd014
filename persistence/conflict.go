package persistence

import (
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// later is the order that decides conflicts, the same on every device: the greater
// (updatedOn, updatedBy) wins.
func later(on int64, by string, otherOn int64, otherBy string) bool {
	return on > otherOn || on == otherOn && by > otherBy
}

// localWins decides between a change here and one on the server; reason says by what.
func (o TableOptions) localWins(on int64, by string, otherOn int64, otherBy string) (bool, string) {
	switch o.Policy {
	case ServerWins:
		return false, "the table's policy is " + string(ServerWins)
	case ClientWins:
		return true, "the table's policy is " + string(ClientWins)
	default:
		return later(on, by, otherOn, otherBy), "the later edit wins"
	}
}

// conflict settles a newer document against a row that was changed here.
func (a *applier) conflict(d *messages.Document) (outcome, error) {
	if a.gained != nil && !d.Deleted { // what the table could not hold until now is no edit of ours
		if out, err := a.fill(d, a.rows[d.ID]); err != nil || out != applied && out != skipped {
			return out, err
		}
	}
	row, err := a.p.rowByID(a.tx, d.ID)
	if err != nil || row == nil {
		return 0, err
	}
	if a.p.options.Policy.keepsBase() && !a.p.same(row, d) {
		return a.combine(row, d)
	}
	return a.oneWins(row, d, "changed on both sides; ")
}

// oneWins lets one side of a conflict win as a whole.
func (a *applier) oneWins(row *localRow, d *messages.Document, reason string) (outcome, error) {
	same := a.p.same(row, d)
	localWins, why := a.p.options.localWins(row.updatedOn, a.me, d.UpdatedOn, d.UpdatedBy)
	if same && a.p.options.Policy != ServerWins && a.p.options.Policy != ClientWins {
		localWins = row.updatedOn > d.UpdatedOn // nothing differs: only the later time has to go up
	}
	reason += why
	if !localWins {
		out, err := a.overwrite(row, d)
		if err != nil || out != applied || same {
			return out, err
		}
		return applied, a.keepConflict(row, d, "server", reason)
	}
	if same {
		if err := a.stayOnTop(d); err != nil {
			return 0, err
		}
		return applied, a.goOnFrom(d)
	}
	if err := a.putOnTop(d); err != nil {
		return 0, err
	}
	return applied, a.keepConflict(row, d, "local", reason)
}

// overwrite lets a document win over a row that was changed here. Of a column that it
// does not have, because an older device wrote it, nobody else has anything either:
// what is there goes up.
func (a *applier) overwrite(row *localRow, d *messages.Document) (outcome, error) {
	if !a.p.lacks(d, row) {
		return a.update(d, 0)
	}
	out, err := a.update(d, max(row.updatedOn, d.UpdatedOn)+1)
	if err != nil || out != applied {
		return out, err
	}
	return applied, a.goOnFrom(d)
}

// lacks reports whether the row has something in a column that the document does not
// have, and that a new row would not have there by itself.
func (p *plan) lacks(d *messages.Document, row *localRow) bool {
	for i := range p.cols {
		c := &p.cols[i]
		if _, ok := d.Fields[c.Name]; !ok && !c.surrogate && (row.values[i] != nil || c.Default.Valid) {
			return true
		}
	}
	return false
}

// putOnTop lets the row go up on top of the version it beat as a whole.
func (a *applier) putOnTop(d *messages.Document) error {
	if err := a.stayOnTop(d); err != nil {
		return err
	}
	return a.dropBase(d.ID)
}

// stayOnTop lets the row go up on top of a version, with a time above both.
func (a *applier) stayOnTop(d *messages.Document) error {
	a.know(d.ID, &rowRef{dirty: true, version: d.UpdateTime})
	if err := a.leave(d); err != nil {
		return err
	}
	return a.tx.exec(`UPDATE `+a.p.name+` SET serverId = clientId, serverVersion = ?, updatedBy = ?,
		updatedOn = CASE WHEN updatedOn > ? THEN updatedOn ELSE ? END, isDirty = 1 WHERE clientId = ?`,
		d.UpdateTime, a.me, d.UpdatedOn, d.UpdatedOn+1, d.ID)
}

// leave remembers the parents that a version on the server refers to and that nobody
// here does, until ours is up.
func (a *applier) leave(d *messages.Document) error {
	for i := range a.p.refs {
		r := &a.p.refs[i]
		parent, ok := d.Fields[r.field].(string)
		if !ok || parent == "" {
			continue
		}
		if err := a.tx.exec(`INSERT INTO tidemark_left (tableName, clientId, parentTable, parentKey, parentId) VALUES (?, ?, ?, '', ?) ON CONFLICT DO NOTHING`,
			a.p.t.Name, d.ID, r.parent.Name, parent); err != nil {
			return err
		}
	}
	return nil
}

// overrule puts our edit on top of a document that does not fit here; the document
// is kept as a conflict.
func (a *applier) overrule(d *messages.Document) error {
	row, err := a.p.rowByID(a.tx, d.ID)
	if err != nil {
		return err
	}
	if row == nil { // deleted here
		if err := a.leave(d); err != nil {
			return err
		}
		if err := a.tx.exec(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ?, isDirty = 1, updatedBy = ?,
			updatedOn = CASE WHEN updatedOn > ? THEN updatedOn ELSE ? END WHERE tableName = ? AND clientId = ?`,
			d.UpdateTime, a.me, d.UpdatedOn, d.UpdatedOn+1, a.p.t.Name, d.ID); err != nil {
			return err
		}
	} else if !row.dirty {
		return nil
	} else if err := a.putOnTop(d); err != nil {
		return err
	}
	if err := a.tx.clearLetter(messages.StageDownload, a.p.t.Name, d.ID); err != nil {
		return err
	}
	return a.keepConflict(row, d, "local", "the version on the server does not fit here: "+a.reason)
}

// outlives is the row that a merged one lives on in, "" when that was deleted.
func (a *applier) outlives(id string) (string, error) {
	last, err := a.tx.survivor(a.p.t.Name, id)
	if err != nil || last == "" {
		return last, err
	}
	var deleted bool
	err = a.tx.row(`SELECT EXISTS (SELECT 1 FROM tidemark_tombstones WHERE tableName = ? AND clientId = ? AND survivor = '')`, a.p.t.Name, last).Scan(&deleted)
	if err != nil || !deleted {
		return last, err
	}
	return "", nil
}

// againstTombstone settles a document of a row that was deleted here. done is
// false when the document should go on as a new row.
func (a *applier) againstTombstone(d *messages.Document) (out outcome, done bool, err error) {
	var on, version int64
	var dirty bool
	var survivor string
	ok, err := found(a.tx.row(`SELECT updatedOn, isDirty, coalesce(serverVersion, 0), survivor FROM tidemark_tombstones WHERE tableName = ? AND clientId = ?`,
		a.p.t.Name, d.ID).Scan(&on, &dirty, &version, &survivor))
	if err != nil || !ok {
		return 0, false, err
	}
	if version >= d.UpdateTime {
		return skipped, true, nil
	}
	if d.Deleted && dirty && survivor == "" && d.Survivor == "" && on > d.UpdatedOn {
		// Deleted on both sides: the later time goes up, for edits that it beats.
		return applied, true, a.tx.exec(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ? WHERE tableName = ? AND clientId = ?`,
			d.UpdateTime, a.p.t.Name, d.ID)
	}
	if d.Deleted {
		return applied, true, a.tombstone(d)
	}
	if survivor != "" {
		if survivor, err = a.outlives(d.ID); err != nil {
			return 0, true, err
		}
	}
	if survivor != "" { // merged into another row: it never comes back
		if err := a.leave(d); err != nil {
			return 0, true, err
		}
		if err := a.tx.exec(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ?, isDirty = 1, updatedBy = ?,
			updatedOn = CASE WHEN updatedOn > ? THEN updatedOn ELSE ? END WHERE tableName = ? AND clientId = ?`,
			d.UpdateTime, a.me, d.UpdatedOn, d.UpdatedOn+1, a.p.t.Name, d.ID); err != nil {
			return 0, true, err
		}
		return applied, true, a.keepConflict(nil, d, "local", "changed after it was merged into document "+survivor)
	}
	localWins, why := a.p.options.localWins(on, a.me, d.UpdatedOn, d.UpdatedBy)
	late := !dirty && d.UpdatedOn < on
	if late {
		// Whoever writes on top of a tombstone stamps it later than that. So it was purged,
		// and this is a create or an edit from before the delete.
		why = "the delete is later"
	}
	if dirty && localWins || late {
		if err := a.leave(d); err != nil {
			return 0, true, err
		}
		if err := a.tx.exec(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ?, isDirty = 1, updatedBy = ?,
			updatedOn = CASE WHEN updatedOn > ? THEN updatedOn ELSE ? END WHERE tableName = ? AND clientId = ?`,
			d.UpdateTime, a.me, d.UpdatedOn, d.UpdatedOn+1, a.p.t.Name, d.ID); err != nil {
			return 0, true, err
		}
		return applied, true, a.keepConflict(nil, d, "local", "deleted here and changed there; "+why)
	}
	if out, err = a.insert(d); err != nil || out != applied {
		return out, true, err
	}
	if err := a.dropTombstone(d.ID); err != nil {
		return 0, true, err
	}
	if dirty {
		return applied, true, a.keepConflict(nil, d, "server", "deleted here and changed there; "+why)
	}
	return applied, true, nil
}

func (a *applier) dropTombstone(id string) error {
	if err := a.tx.forgetLeft(a.p, id); err != nil {
		return err
	}
	return a.tx.exec(`DELETE FROM tidemark_tombstones WHERE tableName = ? AND clientId = ?`, a.p.t.Name, id)
}

// keepConflict keeps both versions, who won and why. row is nil when the local
// side was a delete.
func (a *applier) keepConflict(row *localRow, d *messages.Document, winner, reason string) error {
	a.counts.Table(a.p.t.Name, messages.TableCounts{Conflicts: 1})
	var mine []byte
	if row != nil {
		md := a.p.document(row, row.updatedBy)
		var err error
		if mine, err = marshalDocument(&md); err != nil {
			return err
		}
	}
	theirs, err := marshalDocument(d)
	if err != nil {
		return err
	}
	return a.tx.exec(`INSERT INTO tidemark_conflicts (tableName, documentId, winner, reason, localVersion, serverVersion, detectedOn) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		a.p.t.Name, d.ID, winner, reason, mine, theirs, time.Now().UnixMilli())
}
