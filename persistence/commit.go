package persistence

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// journalEntry is one write as the journal remembers it.
type journalEntry struct {
	Table     string `json:"t"`
	ID        string `json:"i"`
	UpdatedOn int64  `json:"u"`
	Deleted   bool   `json:"d,omitempty"`
	Purged    bool   `json:"p,omitempty"`
	Bytes     int64  `json:"b,omitempty"`
}

// Prepare makes the commit for some writes, with the next sequence number and a
// new token, and saves the token with a journal of what the commit holds. Without
// writes it renews the record only: the number stays. Children whose parent is
// neither on the server nor in the commit are left out.
func (l *Local) Prepare(ctx context.Context, writes []messages.Write) (messages.Commit, error) {
	return l.prepare(ctx, nil, writes)
}

// prepare also raises the fence that our record publishes.
func (l *Local) prepare(ctx context.Context, fence messages.Vector, writes []messages.Write) (messages.Commit, error) {
	var c messages.Commit
	err := l.write(ctx, func(tx *tx) error {
		c = messages.Commit{Device: messages.Device{Name: l.info.Name, Platform: l.info.Platform, Version: l.info.Version, Token: newID(), Tables: map[string]int64{}}}
		var tables string
		if err := tx.row(`SELECT installationId, seq, recordVersion, recordTables FROM tidemark_state`).Scan(&c.Device.ID, &c.Device.Seq, &c.Expect, &tables); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(tables), &c.Device.Tables); err != nil {
			return fmt.Errorf("the bookkeeping is damaged: %w", err)
		}
		var err error
		if c.Device.Seen, err = tx.seen(); err != nil {
			return err
		}
		if c.Device.Fence, err = tx.raiseFence(fence); err != nil {
			return err
		}
		if len(writes) > 0 {
			c.Device.Seq++
			c.Announce = true
		}
		journal := make([]journalEntry, len(writes))
		c.Writes = slices.Clone(writes)
		for i := range c.Writes {
			d := &c.Writes[i].Document
			if c.Writes[i].Purge { // nothing that anybody would have to download
				journal[i] = journalEntry{Table: d.Table, ID: d.ID, Purged: true}
				continue
			}
			d.Stamp = messages.Stamp{Device: c.Device.ID, Seq: c.Device.Seq}
			d.UpdatedBy = c.Device.ID
			c.Device.Tables[d.Table] = c.Device.Seq
			journal[i] = journalEntry{Table: d.Table, ID: d.ID, UpdatedOn: d.UpdatedOn, Deleted: d.Deleted, Bytes: int64(d.Size())}
		}
		raw, err := json.Marshal(journal)
		if err != nil {
			return err
		}
		return tx.exec(`INSERT INTO tidemark_tokens (token, seq, sentOn, journal) VALUES (?, ?, ?, ?)`, c.Device.Token, c.Device.Seq, time.Now().UnixMilli(), raw)
	})
	if err != nil {
		return c, fmt.Errorf("prepare a commit: %w", err)
	}
	return c, nil
}

// Acknowledge records that the commit with this token took effect at updateTime
// (µs): its rows are clean unless they were edited meanwhile, and no other token
// can have landed. It returns the rows acknowledged, per table; messages.ErrNotFound
// when the token is not ours.
func (l *Local) Acknowledge(ctx context.Context, token string, updateTime int64) (messages.Counts, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return messages.Counts{}, err
	}
	byTable := map[string]*plan{}
	for _, p := range plans {
		byTable[p.t.Name] = p
	}
	var counts messages.Counts
	err = l.write(ctx, func(tx *tx) error {
		counts = messages.Counts{}
		var seq int64
		var raw []byte
		ok, err := found(tx.row(`SELECT seq, journal FROM tidemark_tokens WHERE token = ?`, token).Scan(&seq, &raw))
		if err != nil {
			return err
		}
		if !ok {
			return messages.ErrNotFound
		}
		var journal []journalEntry
		if err := json.Unmarshal(raw, &journal); err != nil {
			return fmt.Errorf("the journal of a commit is damaged: %w", err)
		}
		me, err := tx.installationID()
		if err != nil {
			return err
		}
		var recordTables string
		if err := tx.row(`SELECT recordTables FROM tidemark_state`).Scan(&recordTables); err != nil {
			return err
		}
		tables := map[string]int64{}
		if err := json.Unmarshal([]byte(recordTables), &tables); err != nil {
			return fmt.Errorf("the bookkeeping is damaged: %w", err)
		}
		var letters int
		if err := tx.row(`SELECT EXISTS (SELECT 1 FROM tidemark_dead_letters WHERE handler = 'upload')`).Scan(&letters); err != nil {
			return err
		}
		uploaded := 0
		var bytes int64
		var callBack []schemaObject // nothing of a row's data changes here
		asked := map[string]bool{}
		for _, e := range journal {
			if p := byTable[e.Table]; p != nil && !asked[e.Table] {
				asked[e.Table], callBack = true, append(callBack, p.onTracked...)
			}
		}
		err = tx.suspended(callBack, func() error {
			for _, e := range journal {
				if e.Purged {
					if err := tx.exec(`UPDATE tidemark_tombstones SET serverId = NULL WHERE tableName = ? AND clientId = ? AND isDirty = 0`, e.Table, e.ID); err != nil {
						return err
					}
					continue
				}
				uploaded++
				tables[e.Table] = seq
				bytes += e.Bytes
				counts.Table(e.Table, messages.TableCounts{Uploaded: 1})
				p := byTable[e.Table]
				if p == nil {
					continue // the table was dropped or excluded meanwhile
				}
				if err := tx.acknowledge(p, e, me, updateTime); err != nil {
					return err
				}
				if letters > 0 {
					if err := tx.clearLetter(messages.StageUpload, e.Table, e.ID); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		rawTables, err := json.Marshal(tables)
		if err != nil {
			return err
		}
		if err := tx.exec(`UPDATE tidemark_state SET seq = ?, recordVersion = ?, recordTables = ?, registeredOn = ?, changedRows = changedRows + ?`,
			seq, updateTime, string(rawTables), time.Now().UnixMilli(), uploaded); err != nil {
			return err
		}
		if err := tx.addBytes(bytes); err != nil {
			return err
		}
		return tx.exec(`DELETE FROM tidemark_tokens`)
	})
	if err != nil {
		return counts, fmt.Errorf("record an acknowledged commit: %w", err)
	}
	return counts, nil
}

func (t *tx) acknowledge(p *plan, e journalEntry, me string, updateTime int64) error {
	if !e.Deleted {
		// An edit made while the commit was on its way keeps the row dirty.
		n, err := t.run(`UPDATE `+p.name+` SET serverId = clientId, serverVersion = ?, isDirty = CASE WHEN updatedOn = ? THEN 0 ELSE 1 END,
			updatedBy = ? WHERE clientId = ?`, updateTime, e.UpdatedOn, me, e.ID)
		if err != nil {
			return err
		}
		if n > 0 {
			// Of an edit made meanwhile the base is gone, too: what was sent is not kept.
			if p.options.Policy.keepsBase() {
				if err := t.exec(`DELETE FROM tidemark_bases WHERE tableName = ? AND clientId = ?`, e.Table, e.ID); err != nil {
					return err
				}
			}
			if len(p.refs) > 0 { // an edit made meanwhile may have left the parent that was sent
				if dirty, err := t.dirty(p, e.ID); err != nil || dirty {
					return err
				}
			}
			return t.forgetLeft(p, e.ID)
		}
		// Deleted meanwhile: its tombstone goes on top of this version.
		return t.exec(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ? WHERE tableName = ? AND clientId = ?`, updateTime, e.Table, e.ID)
	}
	if err := t.forgetLeft(p, e.ID); err != nil {
		return err
	}
	n, err := t.run(`UPDATE tidemark_tombstones SET serverId = clientId, serverVersion = ?, isDirty = CASE WHEN updatedOn = ? THEN 0 ELSE 1 END,
		localKey = '', updatedBy = ? WHERE tableName = ? AND clientId = ?`, updateTime, e.UpdatedOn, me, e.Table, e.ID)
	if err != nil || n > 0 {
		return err
	}
	// The row came back meanwhile: it goes on top of the tombstone.
	return t.exec(`UPDATE `+p.name+` SET serverId = clientId, serverVersion = ?, isDirty = 1 WHERE clientId = ?`, updateTime, e.ID)
}

// SetAside puts a row that the server refuses to take into the dead letters.
func (l *Local) SetAside(ctx context.Context, w messages.Write, class, reason string) error {
	err := l.write(ctx, func(tx *tx) error {
		raw, err := marshalDocument(&w.Document)
		if err != nil {
			return err
		}
		return tx.letter(messages.StageUpload, w.Document.Table, w.Document.ID, class, reason, raw, w.Document.UpdatedOn)
	})
	if err != nil {
		return fmt.Errorf("set a refused row aside: %w", err)
	}
	return nil
}

// Closed drops from some writes those whose parent is neither acknowledged nor
// among them, and tombstones of what a row still refers to on the server, and holds
// them in the cursor: what is left of a commit that was split.
func (l *Local) Closed(ctx context.Context, cur *messages.Cursor, writes []messages.Write) ([]messages.Write, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return nil, err
	}
	byTable := map[string]*plan{}
	for _, p := range plans {
		byTable[p.t.Name] = p
	}
	out := slices.Clone(writes)
	err = l.write(ctx, func(tx *tx) error {
		for {
			in := map[messages.DocumentKey]bool{}
			for _, w := range out {
				in[messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}] = true
			}
			before := len(out)
			var failed error
			out = slices.DeleteFunc(out, func(w messages.Write) bool {
				p := byTable[w.Document.Table]
				if p == nil || failed != nil {
					return false
				}
				if w.Document.Deleted {
					var waits bool
					if waits, failed = tx.survivorWaits(p, w.Document.Survivor, in); failed == nil && !waits {
						waits, failed = tx.referredTo(messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}, byTable, cur, in, map[messages.DocumentKey]bool{})
					}
					if waits {
						cur.Hold(w.Document.Table, w.Document.ID)
						cur.Counts.Table(w.Document.Table, messages.TableCounts{Waiting: 1})
					}
					return waits
				}
				for i := range p.refs {
					id, ok := w.Document.Fields[p.refs[i].field].(string)
					if !ok || in[messages.DocumentKey{Table: p.refs[i].parent.Name, ID: id}] {
						continue
					}
					var n int
					if failed = tx.row(`SELECT count(*) FROM `+quote(p.refs[i].parent.Name)+` WHERE clientId = ? AND serverId IS NOT NULL`, id).Scan(&n); failed != nil {
						return false
					}
					if n == 0 {
						cur.Hold(w.Document.Table, w.Document.ID)
						cur.Counts.Table(w.Document.Table, messages.TableCounts{Waiting: 1})
						return true
					}
				}
				return false
			})
			if failed != nil || len(out) == before {
				return failed
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("split a commit: %w", err)
	}
	return out, nil
}

// survivorWaits reports whether the row that another one was merged into is neither on the
// server nor among the writes: nobody else has it.
func (t *tx) survivorWaits(p *plan, survivor string, in map[messages.DocumentKey]bool) (waits bool, err error) {
	if survivor == "" || in[messages.DocumentKey{Table: p.t.Name, ID: survivor}] {
		return false, nil
	}
	err = t.row(`SELECT EXISTS (SELECT 1 FROM `+p.name+` WHERE clientId = ? AND serverId IS NULL)`, survivor).Scan(&waits)
	return waits, err
}

// referredTo reports whether something that the server has not taken, and that is not
// among the writes, still refers there to the row with this tombstone, or to a deleted one
// below it. Deleted rows that refer to each other need not share a commit, but one that
// waits stays there.
func (t *tx) referredTo(k messages.DocumentKey, byTable map[string]*plan, cur *messages.Cursor, in, asked map[messages.DocumentKey]bool) (bool, error) {
	asked[k] = true
	left, err := t.leavers(k)
	if err != nil {
		return false, err
	}
	for _, c := range left {
		p := byTable[c.Table]
		if p == nil || in[c] || asked[c] {
			continue
		}
		if cur.Held[c] {
			return true, nil
		}
		var on int64
		buried, err := found(t.row(`SELECT updatedOn FROM tidemark_tombstones WHERE tableName = ? AND clientId = ? AND isDirty = 1`, c.Table, c.ID).Scan(&on))
		if err != nil {
			return false, err
		}
		if !buried {
			if dirty, err := t.dirty(p, c.ID); err != nil || dirty {
				return true, err
			}
			continue // it is up already
		}
		if refused, _, err := t.refusedBefore(c.Table, c.ID, on); err != nil || refused {
			return true, err
		}
		if waits, err := t.referredTo(c, byTable, cur, in, asked); err != nil || waits {
			return true, err
		}
	}
	return false, nil
}

// leavers are the rows that referred to a row when we last agreed with the server, and
// have not gone up since.
func (t *tx) leavers(k messages.DocumentKey) (left []messages.DocumentKey, err error) {
	err = t.each(`SELECT tableName, clientId FROM tidemark_left WHERE parentTable = ? AND parentId = ?`, []any{k.Table, k.ID}, func(scan func(...any) error) error {
		var c messages.DocumentKey
		err := scan(&c.Table, &c.ID)
		left = append(left, c)
		return err
	})
	return left, err
}

// forgetLeft: the server knows a row's parents as they are here, or the row is gone.
func (t *tx) forgetLeft(p *plan, id string) error {
	if len(p.refs) == 0 {
		return nil
	}
	return t.exec(`DELETE FROM tidemark_left WHERE tableName = ? AND clientId = ?`, p.t.Name, id)
}

func (t *tx) dirty(p *plan, id string) (dirty bool, err error) {
	err = t.row(`SELECT EXISTS (SELECT 1 FROM `+p.name+` WHERE isDirty = 1 AND clientId = ?)`, id).Scan(&dirty)
	return dirty, err
}

// Moved settles a commit whose precondition did not hold against the documents as
// they are now: newer versions that the next download will bring are left to it,
// others are resolved here; a document that is gone will be created again.
func (l *Local) Moved(ctx context.Context, c messages.Commit, now []messages.Document) (messages.Moved, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return messages.Moved{}, err
	}
	byTable := map[string]*plan{}
	for _, p := range plans {
		byTable[p.t.Name] = p
	}
	current := map[messages.DocumentKey]*messages.Document{}
	for i := range now {
		current[messages.DocumentKey{Table: now[i].Table, ID: now[i].ID}] = &now[i]
	}
	var out messages.Moved
	err = l.write(ctx, func(tx *tx) error {
		out = messages.Moved{Leave: map[messages.DocumentKey]bool{}}
		seen, err := tx.seen()
		if err != nil {
			return err
		}
		appliers := map[string]*applier{}
		moving := false
		defer func() { out.Stuck = len(out.Leave) > 0 && !moving }()
		for i := range c.Writes {
			w := &c.Writes[i]
			k := messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}
			d, p := current[k], byTable[w.Document.Table]
			version := int64(0)
			if d != nil {
				version = d.UpdateTime
			}
			if p == nil || version == w.Expect {
				continue
			}
			out.Leave[k] = true
			if d == nil { // purged: we knew its tombstone, so it starts anew
				moving = true
				if w.Document.Deleted {
					err = tx.exec(`UPDATE tidemark_tombstones SET isDirty = 0 WHERE tableName = ? AND clientId = ?`, k.Table, k.ID)
				} else {
					err = tx.suspended(p.onTracked, func() error {
						return tx.exec(`UPDATE `+p.name+` SET serverId = NULL, serverVersion = NULL WHERE clientId = ?`, k.ID)
					})
				}
				if err != nil {
					return err
				}
				continue
			}
			if d.Stamp.Device != "" && d.Stamp.Device != c.Device.ID && d.Stamp.Seq > seen[d.Stamp.Device] {
				moving = true
				continue // the next download brings it, in a consistent cut
			}
			a := appliers[k.Table]
			if a == nil {
				if a, err = newApplier(tx, p, &out.Counts); err != nil {
					return err
				}
				a.final = true // no download brings what it might wait for
				appliers[k.Table] = a
			}
			if err := a.look([]messages.Document{*d}); err != nil {
				return err
			}
			res, err := a.one(d)
			if err != nil {
				return err
			}
			if err := a.file(d, res); err != nil {
				return err
			}
			switch res {
			case dead: // what cannot be here cannot win here: our edit goes on top of it
				if err := a.overrule(d); err != nil {
					return err
				}
				moving = true
			case waiting, collides: // nothing to be done before its parent comes
			default:
				moving = true
			}
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("settle documents that moved: %w", err)
	}
	return out, nil
}
