package persistence

import (
	"context"
	"fmt"

	"github.com/tidemark-sync/tidemark/messages"
)

// LastFailure is the newest failed step since a cycle came to its end; false when there
// was none.
func (l *Local) LastFailure(ctx context.Context) (s messages.Step, ok bool, err error) {
	var on int64
	ok, err = found(l.db.DB.QueryRowContext(ctx, `SELECT cycle, stage, tableName, startedOn, error FROM tidemark_ledger WHERE error <> '' AND id > `+lastEnd+` ORDER BY id DESC LIMIT 1`).
		Scan(&s.Cycle, &s.Stage, &s.Table, &on, &s.Error))
	if err != nil {
		return s, false, fmt.Errorf("read the step ledger: %w", explain(err))
	}
	s.Started = fromMilli(on)
	return s, ok, nil
}

// lastEnd is the line of the ledger that ended the last whole cycle.
const lastEnd = `coalesce((SELECT max(id) FROM tidemark_ledger WHERE stage = '` + messages.StageBackUp + `' AND error = ''), 0)`

// BehindSince is since when something is here only, was set aside, or no cycle came to
// its end, in Unix ms; 0 when nothing is.
func (l *Local) BehindSince(ctx context.Context) (since int64, err error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return 0, err
	}
	queries := []string{
		`SELECT coalesce(min(updatedOn), 0) FROM tidemark_tombstones WHERE isDirty = 1 AND tableName IN (SELECT tableName FROM tidemark_tables WHERE excluded = 0)`,
		`SELECT coalesce(min(firstOn), 0) FROM tidemark_dead_letters WHERE state = 'dead'`,
		`SELECT coalesce(min(startedOn), 0) FROM tidemark_ledger WHERE error <> '' AND id > ` + lastEnd,
	}
	for _, p := range plans {
		queries = append(queries, `SELECT coalesce(min(updatedOn), 0) FROM `+p.name+` WHERE isDirty = 1`)
	}
	for _, q := range queries {
		var on int64
		if err := l.db.DB.QueryRowContext(ctx, q).Scan(&on); err != nil {
			return 0, fmt.Errorf("read since when it is behind: %w", explain(err))
		}
		if on > 0 && (since == 0 || on < since) {
			since = on
		}
	}
	return since, nil
}
