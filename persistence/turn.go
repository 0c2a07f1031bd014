package persistence

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tidemark-sync/tidemark/messages"
)

// remoteNow is the remote's clock in Unix ms, as the last check estimated it: what
// devices tell each other about time is by that one.
func (t *tx) remoteNow() (now int64, err error) {
	err = t.row(`SELECT ` + localClock + ` + clockOffset FROM tidemark_state`).Scan(&now)
	return now, err
}

// setTurn begins the times of a generation anew.
func (t *tx) setTurn(generation string, now int64) error {
	return t.exec(`INSERT INTO tidemark_turn (id, generation, knownSince) VALUES (1, ?, ?)
		ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, knownSince = excluded.knownSince, dueSince = 0, changedBytes = 0`, generation, now)
}

// addBytes counts the size of rows that were applied or uploaded.
func (t *tx) addBytes(n int64) error {
	return t.exec(`UPDATE tidemark_turn SET changedBytes = changedBytes + ?`, n)
}

// sizeOf estimates the size of those of docs that were applied.
func sizeOf(docs []messages.Document, applied int64) int64 {
	var all int64
	for i := range docs {
		all += int64(docs[i].Size())
	}
	n := int64(max(1, len(docs)))
	return all * min(n, applied) / n
}

// BackupStanding reads what decides about a backup.
func (l *Local) BackupStanding(ctx context.Context) (messages.BackupStanding, error) {
	var b messages.BackupStanding
	dirty, err := l.dirtyCount(ctx)
	if err != nil {
		return b, err
	}
	err = l.write(ctx, func(tx *tx) error {
		var backedUp, store string
		var seq, checkedAt, held int64
		if err := tx.row(`SELECT installationId, seq, checkedAt, backedUp, generation, maker, changedRows, heldRows, store FROM tidemark_state`).
			Scan(&b.Device, &seq, &checkedAt, &backedUp, &b.Generation, &b.Maker, &b.Changed, &held, &store); err != nil {
			return err
		}
		b.Dirty = max(dirty-held, 0) // what was held cannot go up as it is, and must not end all backups
		if err := json.Unmarshal([]byte(backedUp), &b.BackedUp); err != nil {
			return fmt.Errorf("the bookkeeping is damaged: %w", err)
		}
		b.Open, b.Encrypts, b.Scope = checkedAt != 0, l.enc != nil, l.scope
		b.Look = b.Generation != "" && (l.look || store != "" && l.store != "" && store != l.store)
		if b.Seen, err = tx.seen(); err != nil {
			return err
		}
		if seq > 0 {
			b.Seen.Raise(b.Device, seq)
		}
		if b.Now, err = tx.remoteNow(); err != nil {
			return err
		}
		known, err := found(tx.row(`SELECT knownSince, dueSince, changedBytes FROM tidemark_turn WHERE generation = ?`, b.Generation).
			Scan(&b.KnownSince, &b.DueSince, &b.ChangedBytes))
		if err != nil {
			return err
		}
		// The file came out of a snapshot, or the remote's clock was set back.
		if !known || b.KnownSince > b.Now || b.DueSince > b.Now {
			b.KnownSince, b.DueSince, b.ChangedBytes = b.Now, 0, 0
			return tx.setTurn(b.Generation, b.Now)
		}
		return nil
	})
	if err != nil {
		return b, fmt.Errorf("read the state of the backup: %w", err)
	}
	return b, nil
}

// AwaitTurn begins to wait for Big Brother, from now on.
func (l *Local) AwaitTurn(ctx context.Context) error {
	err := l.write(ctx, func(tx *tx) error {
		now, err := tx.remoteNow()
		if err != nil {
			return err
		}
		return tx.exec(`UPDATE tidemark_turn SET dueSince = ?`, now)
	})
	if err != nil {
		return fmt.Errorf("wait for another device's backup: %w", err)
	}
	return nil
}

// BackedUp remembers the newest snapshot that we know of, and where it is. Of one that
// we knew the counts go on.
func (l *Local) BackedUp(ctx context.Context, s messages.Snapshot) error {
	raw, err := json.Marshal(s.Seen)
	if err != nil {
		return err
	}
	err = l.write(ctx, func(tx *tx) error {
		now, err := tx.remoteNow()
		if err != nil {
			return err
		}
		var was string
		if err := tx.row(`SELECT generation FROM tidemark_state`).Scan(&was); err != nil {
			return err
		}
		if was == s.Generation {
			return tx.exec(`UPDATE tidemark_state SET store = ?`, l.store)
		}
		if err := tx.exec(`UPDATE tidemark_state SET backedUp = ?, backedUpOn = ?, generation = ?, maker = ?, snapshotSize = ?, snapshotEncrypted = ?, changedRows = 0, store = ?`,
			string(raw), s.MadeOn, s.Generation, s.Device, s.Size, s.Encrypted, l.store); err != nil {
			return err
		}
		return tx.setTurn(s.Generation, now)
	})
	if err != nil {
		return fmt.Errorf("remember the snapshot: %w", err)
	}
	l.keepList(s.Generation)
	return nil
}

// countRows counts the rows of every table that takes part, in the database that is
// attached as schema.
func countRows(ctx context.Context, q queryer, schema string, s *messages.Snapshot) error {
	var tables []string
	err := eachRow(ctx, q, `SELECT tableName FROM `+schema+`.tidemark_tables WHERE excluded = 0
		AND tableName IN (SELECT name FROM `+schema+`.sqlite_master WHERE type = 'table')`, func(scan func(...any) error) error {
		var t string
		err := scan(&t)
		tables = append(tables, t)
		return err
	})
	if err != nil {
		return err
	}
	s.Rows = make(map[string]int64, len(tables))
	for _, t := range tables {
		var n int64
		if err := q.QueryRowContext(ctx, `SELECT count(*) FROM `+schema+`.`+quote(t)).Scan(&n); err != nil {
			return err
		}
		s.Rows[t] = n
	}
	return nil
}
