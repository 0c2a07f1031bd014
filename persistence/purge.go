package persistence

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// PurgeDue reports whether it is time to look for tombstones that everybody has
// seen: at most once in every, where there are any. Where snapshots are made, their
// maker does it; elsewhere the devices take turns by looking the less often the more
// they are. It counts as having looked.
func (l *Local) PurgeDue(ctx context.Context, every time.Duration, snapshots bool) (bool, error) {
	var due bool
	err := l.write(ctx, func(tx *tx) error {
		var on, version, checkedAt int64
		var me, maker string
		var devices int
		if err := tx.row(`SELECT purgedOn, recordVersion, checkedAt, installationId, maker, (SELECT count(*) FROM tidemark_seen) FROM tidemark_state`).
			Scan(&on, &version, &checkedAt, &me, &maker, &devices); err != nil {
			return err
		}
		wait := every
		if !snapshots {
			wait *= time.Duration(1 + devices)
		} else if maker != me {
			return nil
		}
		age := time.Since(time.UnixMilli(on))
		if version == 0 || checkedAt != 0 || age < wait && age > -wait {
			return nil
		}
		var some bool
		if err := tx.row(`SELECT EXISTS (SELECT 1 FROM tidemark_tombstones WHERE isDirty = 0 AND serverId IS NOT NULL)`).Scan(&some); err != nil || !some {
			return err
		}
		due = true
		return tx.exec(`UPDATE tidemark_state SET purgedOn = ?`, time.Now().UnixMilli())
	})
	if err != nil {
		return false, fmt.Errorf("see whether to purge tombstones: %w", err)
	}
	return due, nil
}

// Buried lists, for each device that uploaded tombstones which may still be on the
// server, the tables they are in.
func (l *Local) Buried(ctx context.Context) (map[string][]string, error) {
	out := map[string][]string{}
	err := eachRow(ctx, l.db.DB, `SELECT DISTINCT updatedBy, tableName FROM tidemark_tombstones WHERE isDirty = 0 AND serverId IS NOT NULL
		AND tableName IN (SELECT tableName FROM tidemark_tables WHERE excluded = 0) ORDER BY updatedBy, tableName`, func(scan func(...any) error) error {
		var device, table string
		err := scan(&device, &table)
		out[device] = append(out[device], table)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the tombstones: %w", explain(err))
	}
	return out, nil
}

// PreparePurge makes a commit that removes tombstones from the server and publishes
// the fence: up to which number of each device they may be gone.
func (l *Local) PreparePurge(ctx context.Context, fence messages.Vector, writes []messages.Write) (messages.Commit, error) {
	return l.prepare(ctx, fence, writes)
}

// raiseFence returns what our record says of purged tombstones.
func (t *tx) raiseFence(by messages.Vector) (messages.Vector, error) {
	var raw string
	if err := t.row(`SELECT fence FROM tidemark_state`).Scan(&raw); err != nil {
		return nil, err
	}
	fence := messages.Vector{}
	if err := json.Unmarshal([]byte(raw), &fence); err != nil {
		return nil, fmt.Errorf("the bookkeeping is damaged: %w", err)
	}
	if len(by) == 0 {
		return fence, nil
	}
	for d, n := range by {
		fence.Raise(d, n)
	}
	b, err := json.Marshal(fence)
	if err != nil {
		return nil, err
	}
	return fence, t.exec(`UPDATE tidemark_state SET fence = ?`, string(b))
}

// Fenced prepares a database that was away for so long that tombstones it has not
// seen may be gone: every table is read whole, and rows that the server does not
// have any more go, as if their tombstone had come; rows that were edited here go up
// again.
func (l *Local) Fenced(ctx context.Context) error {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return err
	}
	err = l.write(ctx, func(tx *tx) error {
		for _, q := range []string{
			`DELETE FROM tidemark_targets`, `DELETE FROM tidemark_positions`, `DELETE FROM tidemark_inbox`, `DELETE FROM tidemark_absent`,
			`UPDATE tidemark_DownloadedTracker SET downloadedTill = NULL, scannedTo = '', completeTill = coalesce(downloadedTill, completeTill)`,
			`UPDATE tidemark_state SET checkedAt = 0, firstAt = 0, cutBroken = 0`,
		} {
			if err := tx.exec(q); err != nil {
				return err
			}
		}
		for _, p := range plans {
			if err := tx.exec(`INSERT INTO tidemark_absent (tableName, clientId) SELECT ?, clientId FROM `+p.name+` WHERE serverVersion IS NOT NULL AND clientId IS NOT NULL`, p.t.Name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare to read everything again: %w", err)
	}
	return nil
}

// vanished decides rows that a whole read behind the fence did not find on the
// server: a clean one gets the tombstone that was purged, one that was edited here
// becomes a new document.
func (s *settler) vanished() error {
	for _, p := range s.plans {
		a, err := s.applier(p)
		if err != nil {
			return err
		}
		var ids []string
		if err := s.tx.each(`SELECT clientId FROM tidemark_absent WHERE tableName = ?`, []any{p.t.Name}, func(scan func(...any) error) error {
			var id string
			err := scan(&id)
			ids = append(ids, id)
			return err
		}); err != nil {
			return err
		}
		for _, id := range ids {
			row, err := p.rowByID(s.tx, id)
			if err != nil {
				return err
			}
			if row == nil {
				continue
			}
			if row.dirty {
				if err := s.tx.exec(`UPDATE `+p.name+` SET serverId = NULL, serverVersion = NULL WHERE clientId = ?`, id); err != nil {
					return err
				}
				continue
			}
			d := p.document(row, row.updatedBy)
			d.Deleted, d.UpdateTime = true, row.serverVersion+1
			if err := a.file(&d, pending); err != nil {
				return err
			}
		}
	}
	return s.tx.exec(`DELETE FROM tidemark_absent`)
}
