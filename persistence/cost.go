package persistence

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// DayCost is what was billed on one day.
type DayCost struct {
	// Day is in UTC, as 2026-11-24.
	Day string `json:"day"`
	// Cycles that the server answered.
	Cycles int64             `json:"cycles"`
	Billed messages.Billed   `json:"billed"`
	Store  messages.StoreUse `json:"store"`
}

// costDays bounds what is kept.
const costDays = 400

// day names a day as tidemark_cost does.
func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// cost adds a step to its day, in the transaction that writes it.
func (t *tx) cost(s messages.Step) error {
	cycles := 0
	if s.Stage == messages.StageCheckDevices && s.Round == 0 && s.Error == "" {
		cycles = 1
	}
	b, u := s.Counts.Billed, s.Counts.Store
	if cycles == 0 && b == (messages.Billed{}) && u == (messages.StoreUse{}) {
		return nil
	}
	return t.exec(`INSERT INTO tidemark_cost (day, cycles, reads, writes, deletes, puts, gets, bytesUp, bytesDown)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day) DO UPDATE SET cycles = cycles + excluded.cycles,
		reads = reads + excluded.reads, writes = writes + excluded.writes, deletes = deletes + excluded.deletes,
		puts = puts + excluded.puts, gets = gets + excluded.gets, bytesUp = bytesUp + excluded.bytesUp, bytesDown = bytesDown + excluded.bytesDown`,
		day(s.Started), cycles, b.Reads, b.Writes, b.Deletes, u.Puts, u.Gets, u.BytesUp, u.BytesDown)
}

// Costs is what was billed on the last days that something was, the newest first.
func (l *Local) Costs(ctx context.Context, days int) ([]DayCost, error) {
	out := []DayCost{}
	err := eachRow(ctx, l.db.DB, `SELECT day, cycles, reads, writes, deletes, puts, gets, bytesUp, bytesDown
		FROM tidemark_cost ORDER BY day DESC LIMIT ?`, func(scan func(...any) error) error {
		var d DayCost
		err := scan(&d.Day, &d.Cycles, &d.Billed.Reads, &d.Billed.Writes, &d.Billed.Deletes, &d.Store.Puts, &d.Store.Gets, &d.Store.BytesUp, &d.Store.BytesDown)
		out = append(out, d)
		return err
	}, days)
	if err != nil {
		return nil, fmt.Errorf("read what was billed: %w", explain(err))
	}
	return out, nil
}

// TypicalReads is the median of what the last cycles were billed in reads, at least 1:
// one large download says nothing about the cycles to come.
func (l *Local) TypicalReads(ctx context.Context) (int64, error) {
	const cycles = 21
	var reads []int64
	err := eachRow(ctx, l.db.DB, `SELECT sum(coalesce(json_extract(counts, '$.billed.reads'), 0)) FROM tidemark_ledger
		WHERE id > (SELECT max(id) FROM tidemark_ledger) - 1000 GROUP BY cycle ORDER BY max(id) DESC LIMIT ?`, func(scan func(...any) error) error {
		var n int64
		err := scan(&n)
		reads = append(reads, n)
		return err
	}, cycles)
	if err != nil {
		return 0, fmt.Errorf("read what was billed: %w", explain(err))
	}
	if len(reads) == 0 {
		return 1, nil
	}
	slices.Sort(reads)
	return max(1, reads[len(reads)/2]), nil
}
