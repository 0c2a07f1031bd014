package persistence

import (
	"context"
	"fmt"

	"github.com/tidemark-sync/tidemark/messages"
)

// Gauges reads how the database stands.
func (l *Local) Gauges(ctx context.Context) (messages.Gauges, error) {
	var g messages.Gauges
	h, err := l.Health(ctx)
	if err != nil {
		return g, err
	}
	g = messages.Gauges{
		Dirty: h.Dirty, Waiting: h.Waiting, Dead: h.Dead, Conflicts: h.Conflicts,
		SnapshotOn: h.BackedUpOn, ClockOffsetMs: h.ClockOffsetMs,
	}
	if err := l.db.DB.QueryRowContext(ctx, `SELECT snapshotSize FROM tidemark_state`).Scan(&g.SnapshotBytes); err != nil {
		return g, fmt.Errorf("read the state: %w", explain(err))
	}
	if _, g.LastCycleOn, err = l.LastCycle(ctx); err != nil || g.Dirty == 0 {
		return g, err
	}
	oldest, err := l.oldestDirty(ctx)
	if err != nil || oldest == 0 {
		return g, err
	}
	now, err := l.Clock(ctx)
	g.OldestDirtyMs = max(0, now-oldest)
	return g, err
}

// oldestOf is how many rows of a table oldestDirty looks at: a scrape must not cost
// seconds while half a million rows are on their way. They are the next to go up.
const oldestOf = 10_000

// oldestDirty is the smallest updatedOn of what is to be uploaded and was not set
// aside; 0 when there is nothing.
func (l *Local) oldestDirty(ctx context.Context) (int64, error) {
	plans, err := l.allPlans(ctx)
	if err != nil {
		return 0, err
	}
	var oldest int64
	for _, p := range plans {
		aside := `NOT EXISTS (SELECT 1 FROM tidemark_dead_letters d WHERE d.handler = ?1 AND d.tableName = ?2 AND d.documentId <> '' AND d.documentId = t.clientId)`
		for _, q := range []string{
			`SELECT coalesce(min(t.updatedOn), 0) FROM (SELECT updatedOn, clientId FROM ` + p.name + ` WHERE isDirty = 1 LIMIT ?3) t WHERE ` + aside,
			`SELECT coalesce(min(t.updatedOn), 0) FROM (SELECT updatedOn, clientId FROM tidemark_tombstones WHERE tableName = ?2 AND isDirty = 1 LIMIT ?3) t WHERE ` + aside,
		} {
			var on int64
			if err := l.db.DB.QueryRowContext(ctx, q, messages.StageUpload, p.t.Name, oldestOf).Scan(&on); err != nil {
				return 0, fmt.Errorf("find the oldest edit in table %q: %w", p.t.Name, explain(err))
			}
			if on > 0 && (oldest == 0 || on < oldest) {
				oldest = on
			}
		}
	}
	return oldest, nil
}
