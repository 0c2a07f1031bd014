package persistence

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// registerEvery: our record tells others what we have seen at least this often,
// while the pipeline runs.
const registerEvery = 24 * time.Hour

// RegisterDue reports whether our record has to be written on its own.
func (l *Local) RegisterDue(ctx context.Context) (bool, error) {
	var on, version int64
	if err := l.db.DB.QueryRowContext(ctx, `SELECT registeredOn, recordVersion FROM tidemark_state`).Scan(&on, &version); err != nil {
		return false, fmt.Errorf("read the registration: %w", explain(err))
	}
	age := time.Since(time.UnixMilli(on))
	return version == 0 || age >= registerEvery || age < -registerEvery, nil
}

// Step writes a line of the step ledger by itself.
func (l *Local) Step(ctx context.Context, s messages.Step) error {
	if err := l.write(ctx, func(tx *tx) error { return tx.step(s) }); err != nil {
		return fmt.Errorf("write the step ledger: %w", err)
	}
	return nil
}

// Held records how many rows the last upload had to leave behind.
func (l *Local) Held(ctx context.Context, rows int) error {
	if err := l.write(ctx, func(tx *tx) error {
		return tx.exec(`UPDATE tidemark_state SET heldRows = ? WHERE heldRows <> ?`, rows, rows)
	}); err != nil {
		return fmt.Errorf("record what stays behind: %w", err)
	}
	return nil
}

// ledgerRows bounds the ledger; the oldest lines go.
const ledgerRows = 20_000

// Steps reads the lines of one cycle in their order.
func (l *Local) Steps(ctx context.Context, cycle string) ([]messages.Step, error) {
	rows, err := l.db.DB.QueryContext(ctx, `SELECT round, stage, tableName, attempt, startedOn, tookUs, counts, error, traceId
		FROM tidemark_ledger WHERE cycle = ? ORDER BY id`, cycle)
	if err != nil {
		return nil, fmt.Errorf("read the step ledger: %w", explain(err))
	}
	defer rows.Close()
	var out []messages.Step
	for rows.Next() {
		s := messages.Step{Cycle: cycle}
		var started, took int64
		var counts string
		if err := rows.Scan(&s.Round, &s.Stage, &s.Table, &s.Attempt, &started, &took, &counts, &s.Error, &s.TraceID); err != nil {
			return nil, fmt.Errorf("read the step ledger: %w", err)
		}
		if err := json.Unmarshal([]byte(counts), &s.Counts); err != nil {
			return nil, fmt.Errorf("the step ledger is damaged: %w", err)
		}
		s.Started, s.Took = time.UnixMilli(started), time.Duration(took)*time.Microsecond
		out = append(out, s)
	}
	return out, rows.Err()
}

// TrimLedger drops the oldest lines of the step ledger.
func (l *Local) TrimLedger(ctx context.Context) error {
	_, err := l.db.DB.ExecContext(ctx, `DELETE FROM tidemark_ledger WHERE id < (SELECT max(id) FROM tidemark_ledger) - ?`, ledgerRows)
	if err == nil {
		_, err = l.db.DB.ExecContext(ctx, `DELETE FROM tidemark_cost WHERE day < ?`, day(time.Now().AddDate(0, 0, -costDays)))
	}
	if err != nil {
		return fmt.Errorf("trim the step ledger: %w", explain(err))
	}
	return nil
}

// LastCycle is the newest cycle that came to its end, and when (Unix ms); "" when
// there was none.
func (l *Local) LastCycle(ctx context.Context) (cycle string, on int64, err error) {
	_, err = found(l.db.DB.QueryRowContext(ctx, `SELECT cycle, startedOn + tookUs / 1000 FROM tidemark_ledger WHERE stage = ? AND error = '' ORDER BY id DESC LIMIT 1`,
		messages.StageBackUp).Scan(&cycle, &on))
	if err != nil {
		return "", 0, fmt.Errorf("read the step ledger: %w", explain(err))
	}
	return cycle, on, nil
}

// Parents are the tables that a table refers to and that can be downloaded before
// it: not itself, and not those in a circle with it.
func (l *Local) Parents(ctx context.Context, table string) ([]string, error) {
	s, err := l.Schema(ctx)
	if err != nil {
		return nil, err
	}
	t := s.Table(table)
	if t == nil {
		return nil, nil
	}
	circle := map[string]bool{}
	for _, c := range s.Components {
		for _, m := range c {
			if m == t {
				for _, m := range c {
					circle[m.Name] = true
				}
			}
		}
	}
	var out []string
	for _, fk := range t.ForeignKeys {
		if p := s.Table(fk.Parent); p != nil && !circle[p.Name] {
			out = append(out, p.Name)
		}
	}
	return out, nil
}

// dirtyCount counts rows and tombstones that have to go up.
func (l *Local) dirtyCount(ctx context.Context) (dirty int64, err error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range plans {
		var n int64
		if err := l.db.DB.QueryRowContext(ctx, `SELECT count(*) FROM `+p.name+` WHERE isDirty = 1`).Scan(&n); err != nil {
			return 0, fmt.Errorf("count dirty rows of table %q: %w", p.t.Name, explain(err))
		}
		dirty += n
	}
	var n int64
	if err := l.db.DB.QueryRowContext(ctx, `SELECT count(*) FROM tidemark_tombstones WHERE isDirty = 1 AND tableName IN (SELECT tableName FROM tidemark_tables WHERE excluded = 0)`).Scan(&n); err != nil {
		return 0, fmt.Errorf("count tombstones: %w", explain(err))
	}
	return dirty + n, nil
}

// Health reads everything that status shows.
func (l *Local) Health(ctx context.Context) (messages.Health, error) {
	var h messages.Health
	s, err := l.Schema(ctx)
	if err != nil {
		return h, err
	}
	h.Tables = len(s.Tables)
	if h.Dirty, err = l.dirtyCount(ctx); err != nil {
		return h, err
	}
	var checkedAt int64
	var maker string
	err = l.db.DB.QueryRowContext(ctx, `SELECT installationId, clockOffset, checkedAt, generation, backedUpOn, maker,
		(SELECT coalesce(min(coalesce(downloadedTill, 0)), 0) FROM tidemark_DownloadedTracker),
		(SELECT count(*) FROM tidemark_inbox WHERE kind = 'waiting' AND tableName IN (SELECT tableName FROM tidemark_tables WHERE excluded = 0) AND tableName IN (SELECT name FROM sqlite_master WHERE type = 'table')),
		(SELECT count(*) FROM tidemark_dead_letters WHERE state = 'dead'),
		(SELECT count(*) FROM tidemark_conflicts) FROM tidemark_state`).
		Scan(&h.InstallationID, &h.ClockOffsetMs, &checkedAt, &h.Generation, &h.BackedUpOn, &maker, &h.CheckedTill, &h.Waiting, &h.Dead, &h.Conflicts)
	if err != nil {
		return h, fmt.Errorf("read the state: %w", explain(err))
	}
	h.Open, h.Maker = checkedAt != 0, maker
	var encrypted sql.NullBool
	for query, to := range map[string]any{`SELECT snapshotEncrypted FROM tidemark_state`: &encrypted, `SELECT forgottenOn FROM tidemark_state`: &h.ForgottenOn} {
		err = l.db.DB.QueryRowContext(ctx, query).Scan(to)
		if err != nil && !strings.Contains(err.Error(), "no such column") { // the file is an older version's until it is opened for a sync
			return h, fmt.Errorf("read the state: %w", explain(err))
		}
	}
	if encrypted.Valid {
		h.Encrypted = &encrypted.Bool
	}
	return h, nil
}

// Device returns this installation's id.
func (l *Local) Device(ctx context.Context) (string, error) {
	var id string
	if err := l.db.DB.QueryRowContext(ctx, `SELECT installationId FROM tidemark_state`).Scan(&id); err != nil {
		return "", fmt.Errorf("read the installation id: %w", explain(err))
	}
	return id, nil
}
