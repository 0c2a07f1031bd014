package persistence

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/messages"
)

// endOfTable sorts after every document id: a position there is past the last one.
const endOfTable = "\U0010FFFF"

// Standing reads where this installation stands.
func (l *Local) Standing(ctx context.Context) (messages.Standing, error) {
	var s messages.Standing
	l.forget() // the owner may have chosen other policies
	schema, err := l.Schema(ctx)
	if err != nil {
		return s, err
	}
	for _, t := range schema.Tables {
		s.Tables = append(s.Tables, t.Name)
	}
	plans, err := l.allPlans(ctx)
	if err != nil {
		return s, err
	}
	err = l.write(ctx, func(tx *tx) error { // one transaction: the parts belong together
		if err := tx.sweepAll(plans); err != nil {
			return err
		}
		if err := tx.row(`SELECT installationId, seq, recordVersion FROM tidemark_state`).Scan(&s.InstallationID, &s.Seq, &s.RecordVersion); err != nil {
			return err
		}
		if err := tx.row(`SELECT coalesce(min(downloadedTill), 0) FROM tidemark_DownloadedTracker`).Scan(&s.CheckedTill); err != nil {
			return err
		}
		whole := map[string]bool{}
		if err := tx.each(`SELECT tableName FROM tidemark_DownloadedTracker WHERE downloadedTill IS NULL`, nil, func(scan func(...any) error) error {
			var t string
			err := scan(&t)
			whole[t] = true
			return err
		}); err != nil {
			return err
		}
		for _, t := range s.Tables {
			if whole[t] {
				s.Whole = append(s.Whole, t)
			}
		}
		if err := tx.each(`SELECT token FROM tidemark_tokens`, nil, func(scan func(...any) error) error {
			var t string
			err := scan(&t)
			s.Tokens = append(s.Tokens, t)
			return err
		}); err != nil {
			return err
		}
		s.Seen, err = tx.seen()
		return err
	})
	if err != nil {
		return s, fmt.Errorf("read where the last sync ended: %w", err)
	}
	return s, nil
}

func (t *tx) seen() (messages.Vector, error) {
	v := messages.Vector{}
	err := t.each(`SELECT device, seq FROM tidemark_seen`, nil, func(scan func(...any) error) error {
		var d string
		var n int64
		err := scan(&d, &n)
		v[d] = n
		return err
	})
	return v, err
}

func (t *tx) installationID() (id string, err error) {
	err = t.row(`SELECT installationId FROM tidemark_state`).Scan(&id)
	return id, err
}

// Checked records the answer of a check at readTime (µs): targets are the devices
// of which there is more than we have seen, whole the tables to read whole, unknown
// those that are due a whole read and that no device has ever touched. clock is when
// the question was asked and answered. With nothing to download the tables are
// complete up to readTime at once.
func (l *Local) Checked(ctx context.Context, readTime int64, clock messages.ClockReading, targets []messages.Target, whole, unknown []string, step messages.Step) error {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return err
	}
	err = l.write(ctx, func(tx *tx) error {
		if err := tx.setClock(plans, readTime/1000, clock); err != nil {
			return err
		}
		for _, t := range unknown {
			if err := tx.exec(`UPDATE tidemark_DownloadedTracker SET downloadedTill = ?, scannedTo = '', gained = '[]', rebuilt = 0 WHERE tableName = ?`, readTime, t); err != nil {
				return err
			}
		}
		if len(targets) == 0 && len(whole) == 0 {
			if err := tx.exec(`DELETE FROM tidemark_targets`); err != nil {
				return err
			}
			if err := tx.exec(`UPDATE tidemark_DownloadedTracker SET downloadedTill = max(downloadedTill, ?)`, readTime); err != nil {
				return err
			}
			if err := tx.exec(`UPDATE tidemark_state SET checkedAt = 0, firstAt = 0, cutBroken = 0`); err != nil {
				return err
			}
			return tx.step(step)
		}
		var firstAt int64
		if err := tx.row(`SELECT firstAt FROM tidemark_state`).Scan(&firstAt); err != nil {
			return err
		}
		// A whole read that was cut off and goes on at a later read time has not
		// seen what changed behind its back since: the numbers that count are those
		// of its first check.
		resumed := firstAt != 0 && firstAt != readTime && len(whole) > 0
		if !resumed && firstAt != readTime {
			if err := tx.exec(`DELETE FROM tidemark_targets`); err != nil {
				return err
			}
			if err := tx.exec(`UPDATE tidemark_DownloadedTracker SET scannedTo = ''`); err != nil {
				return err
			}
			firstAt = 0
			if len(whole) > 0 {
				firstAt = readTime
			}
		}
		for _, t := range targets {
			tables, err := json.Marshal(t.Tables)
			if err != nil {
				return err
			}
			goal := t.Seq
			if resumed {
				goal = 0
			}
			if err := tx.exec(`INSERT INTO tidemark_targets (device, seq, tables) VALUES (?, ?, ?)
				ON CONFLICT (device) DO UPDATE SET tables = excluded.tables`, t.Device, goal, string(tables)); err != nil {
				return err
			}
		}
		if err := tx.exec(`UPDATE tidemark_state SET checkedAt = ?, firstAt = ?, cutBroken = max(?, cutBroken * ?)`,
			readTime, firstAt, resumed, resumed); err != nil {
			return err
		}
		return tx.step(step)
	})
	if err != nil {
		return fmt.Errorf("record what the other devices uploaded: %w", err)
	}
	return nil
}

// Sources lists the reads that the download of a table consists of.
func (l *Local) Sources(ctx context.Context, table string, full bool) ([]messages.Source, error) {
	var out []messages.Source
	err := l.write(ctx, func(tx *tx) error {
		var till *int64
		var scanned string
		if ok, err := found(tx.row(`SELECT downloadedTill, scannedTo FROM tidemark_DownloadedTracker WHERE tableName = ?`, table).Scan(&till, &scanned)); err != nil || !ok {
			return err
		}
		if till == nil || full {
			if scanned != endOfTable {
				out = append(out, messages.Source{After: messages.Position{ID: scanned}})
			}
			return nil
		}
		seen, err := tx.seen()
		if err != nil {
			return err
		}
		type position struct {
			seq int64
			id  string
		}
		positions := map[string]position{}
		if err := tx.each(`SELECT device, seq, documentId FROM tidemark_positions WHERE tableName = ?`, []any{table}, func(scan func(...any) error) error {
			var d string
			var p position
			err := scan(&d, &p.seq, &p.id)
			positions[d] = p
			return err
		}); err != nil {
			return err
		}
		return tx.each(`SELECT device, tables FROM tidemark_targets ORDER BY device`, nil, func(scan func(...any) error) error {
			var d, raw string
			if err := scan(&d, &raw); err != nil {
				return err
			}
			tables := map[string]int64{}
			if err := json.Unmarshal([]byte(raw), &tables); err != nil {
				return fmt.Errorf("the targets of device %s are damaged: %w", d, err)
			}
			at := position{seq: seen[d]}
			if p := positions[d]; p.seq > at.seq {
				at = p
			}
			if n := tables[table]; n > at.seq || n == at.seq && at.id != "" && at.id != endOfTable && n > seen[d] {
				out = append(out, messages.Source{Device: d, After: messages.Position{Stamp: messages.Stamp{Device: d, Seq: at.seq}, ID: at.id}})
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("find what to download of table %q: %w", table, err)
	}
	return out, nil
}

// moveTo saves how far a source of a table has been applied.
func (t *tx) moveTo(table string, s messages.Source) error {
	if s.Device == "" {
		return t.exec(`UPDATE tidemark_DownloadedTracker SET scannedTo = ? WHERE tableName = ?`, s.After.ID, table)
	}
	return t.exec(`INSERT INTO tidemark_positions (device, tableName, seq, documentId) VALUES (?, ?, ?, ?)
		ON CONFLICT (device, tableName) DO UPDATE SET seq = excluded.seq, documentId = excluded.documentId`,
		s.Device, table, s.After.Stamp.Seq, s.After.ID)
}

// TableDone records that every source of a table was read to its end.
func (l *Local) TableDone(ctx context.Context, table string, sources []messages.Source, step messages.Step) error {
	err := l.write(ctx, func(tx *tx) error {
		for _, s := range sources {
			if s.Device == "" {
				s.After.ID = endOfTable
			} else {
				var raw string
				if err := tx.row(`SELECT tables FROM tidemark_targets WHERE device = ?`, s.Device).Scan(&raw); err != nil {
					return err
				}
				tables := map[string]int64{}
				if err := json.Unmarshal([]byte(raw), &tables); err != nil {
					return err
				}
				s.After = messages.Position{Stamp: messages.Stamp{Device: s.Device, Seq: tables[table]}, ID: endOfTable}
			}
			if err := tx.moveTo(table, s); err != nil {
				return err
			}
		}
		return tx.step(step)
	})
	if err != nil {
		return fmt.Errorf("record that table %q is downloaded: %w", table, err)
	}
	return nil
}

// TablesDone is the set of tables whose download this round has finished.
func (l *Local) TablesDone(ctx context.Context, cycle string, round int) (map[string]bool, error) {
	done := map[string]bool{}
	rows, err := l.db.DB.QueryContext(ctx, `SELECT DISTINCT tableName FROM tidemark_ledger WHERE cycle = ? AND round = ? AND stage = ? AND error = ''`,
		cycle, round, messages.StageDownload)
	if err != nil {
		return nil, fmt.Errorf("read the step ledger: %w", explain(err))
	}
	defer rows.Close()
	for rows.Next() {
		var t string
		if err := rows.Scan(&t); err != nil {
			return nil, fmt.Errorf("read the step ledger: %w", err)
		}
		done[t] = true
	}
	return done, rows.Err()
}

// StageDone reports whether this round has finished a stage.
func (l *Local) StageDone(ctx context.Context, cycle string, round int, stage string) (bool, error) {
	var n int
	err := l.db.DB.QueryRowContext(ctx, `SELECT count(*) FROM tidemark_ledger WHERE cycle = ? AND round = ? AND stage = ? AND error = ''`, cycle, round, stage).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("read the step ledger: %w", explain(err))
	}
	return n > 0, nil
}

// advance moves what was seen to the targets and downloadedTill of all tables to
// the read time: the end of a download. Only whole says so: with a broken cut the
// numbers are those of the first check.
func (t *tx) advance() error {
	var checkedAt, firstAt int64
	if err := t.row(`SELECT checkedAt, firstAt FROM tidemark_state`).Scan(&checkedAt, &firstAt); err != nil {
		return err
	}
	till := checkedAt
	if firstAt != 0 {
		till = firstAt
	}
	for _, q := range []string{
		`INSERT INTO tidemark_seen (device, seq) SELECT device, seq FROM tidemark_targets WHERE true
			ON CONFLICT (device) DO UPDATE SET seq = max(seq, excluded.seq)`,
		`DELETE FROM tidemark_targets`,
		`DELETE FROM tidemark_positions WHERE seq <= coalesce((SELECT s.seq FROM tidemark_seen s WHERE s.device = tidemark_positions.device), 0)`,
		`UPDATE tidemark_state SET checkedAt = 0, firstAt = 0, cutBroken = 0`,
	} {
		if err := t.exec(q); err != nil {
			return err
		}
	}
	return t.exec(`UPDATE tidemark_DownloadedTracker SET downloadedTill = max(coalesce(downloadedTill, 0), ?), scannedTo = '', gained = '[]', rebuilt = 0`, till)
}

// NewIdentity gives this file a new installation id: somebody else writes under
// the old one, because the file was cloned, rolled back or lost its last
// transactions. What we know of the old log becomes what we have seen of that
// device.
func (l *Local) NewIdentity(ctx context.Context) error {
	err := l.write(ctx, func(tx *tx) error {
		if err := tx.exec(`INSERT INTO tidemark_seen (device, seq) SELECT installationId, seq FROM tidemark_state WHERE true
			ON CONFLICT (device) DO UPDATE SET seq = max(seq, excluded.seq)`); err != nil {
			return err
		}
		if err := tx.exec(`DELETE FROM tidemark_tokens`); err != nil {
			return err
		}
		return tx.exec(`UPDATE tidemark_state SET installationId = ?, seq = 0, recordVersion = 0, recordTables = '{}', registeredOn = 0`, newID())
	})
	if err != nil {
		return fmt.Errorf("take a new installation id: %w", err)
	}
	return nil
}

// step writes a line of the step ledger.
func (t *tx) step(s messages.Step) error {
	if s.Stage == "" {
		return nil
	}
	counts, err := json.Marshal(s.Counts)
	if err != nil {
		return err
	}
	if s.TraceID == "" {
		s.TraceID = messages.TraceID(t.ctx)
	}
	took := s.Took
	if took == 0 {
		took = time.Since(s.Started)
	}
	if err := t.cost(s); err != nil {
		return err
	}
	return t.exec(`INSERT INTO tidemark_ledger (cycle, round, stage, tableName, attempt, startedOn, tookUs, counts, error, traceId)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		s.Cycle, s.Round, s.Stage, s.Table, max(s.Attempt, 1), s.Started.UnixMilli(), took.Microseconds(), string(counts), s.Error, s.TraceID)
}

// Stale reports whether the schema changed since Attach: by the application, or
// because the file came out of a snapshot. ErrNotAttached when there was none.
func Stale(ctx context.Context, db *bun.DB) (bool, error) {
	var attached, now, tables int64
	err := db.DB.QueryRowContext(ctx, `SELECT schemaVersion, (SELECT count(*) FROM tidemark_tables) FROM tidemark_state`).Scan(&attached, &tables)
	if err != nil && strings.Contains(err.Error(), "no such table") || err == nil && tables == 0 && attached < 0 {
		return false, fmt.Errorf("%w: attach it first", ErrNotAttached)
	}
	if err != nil {
		return false, fmt.Errorf("read the schema's version: %w", explain(err))
	}
	if err := db.DB.QueryRowContext(ctx, `PRAGMA schema_version`).Scan(&now); err != nil {
		return false, fmt.Errorf("read the schema's version: %w", explain(err))
	}
	return attached != now, nil
}
