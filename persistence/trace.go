package persistence

import (
	"context"
	"fmt"
)

// maxLinks bounds how many traces one upload says that it goes on with.
const maxLinks = 32

// ReplayedTraces are the spans in which failed what a stage is asked to try again, in
// W3C form.
func (l *Local) ReplayedTraces(ctx context.Context, stage string) ([]string, error) {
	var out []string
	err := eachRow(ctx, l.db.DB, `SELECT DISTINCT traceparent FROM tidemark_dead_letters
		WHERE handler = ? AND updatedOn = 0 AND state = ? AND traceparent <> '' LIMIT ?`, func(scan func(...any) error) error {
		var s string
		err := scan(&s)
		out = append(out, s)
		return err
	}, stage, stateDead, maxLinks)
	if err != nil {
		return nil, fmt.Errorf("read the traces of replayed rows: %w", explain(err))
	}
	return out, nil
}

// Cycles lists the last cycles in the step ledger, the newest first.
func (l *Local) Cycles(ctx context.Context, limit int) ([]string, error) {
	var out []string
	err := eachRow(ctx, l.db.DB, `SELECT cycle FROM tidemark_ledger GROUP BY cycle ORDER BY max(id) DESC LIMIT ?`, func(scan func(...any) error) error {
		var s string
		err := scan(&s)
		out = append(out, s)
		return err
	}, limit)
	if err != nil {
		return nil, fmt.Errorf("read the step ledger: %w", explain(err))
	}
	return out, nil
}
