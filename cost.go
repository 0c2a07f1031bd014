package tidemark

import (
	"context"
	"fmt"
	"time"

	"github.com/uptrace/bun"
	"go.uber.org/zap"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
)

// Prices are in US dollars.
type Prices struct {
	// Reads, Writes and Deletes of documents, per 100,000.
	Reads   float64 `json:"reads"`
	Writes  float64 `json:"writes"`
	Deletes float64 `json:"deletes"`
	// Puts (and listings) and Gets of the snapshot store, per 1,000.
	Puts float64 `json:"puts"`
	Gets float64 `json:"gets"`
	// Egress from the store, per GB of 10⁹ bytes.
	Egress float64 `json:"egress"`
	// Storage of snapshots, per GB and month.
	Storage float64 `json:"storage"`
	// AsOf is when the prices were read, Source where.
	AsOf   string `json:"asOf"`
	Source string `json:"source"`
}

// DefaultPrices are list prices without free quotas and discounts. What Firestore
// takes for storage and for traffic is not in them.
func DefaultPrices() Prices {
	return Prices{
		Reads: 0.06, Writes: 0.18, Deletes: 0.02,
		Puts: 0.005, Gets: 0.0004, Egress: 0.09, Storage: 0.023,
		AsOf: "2026-11", Source: "list prices of Firestore (US multi-region) and S3 Standard (us-east-1)",
	}
}

// Dollars estimates what use costs, storage left out.
func (p Prices) Dollars(b messages.Billed, s messages.StoreUse) float64 {
	return (float64(b.Reads)*p.Reads+float64(b.Writes)*p.Writes+float64(b.Deletes)*p.Deletes)/100_000 +
		(float64(s.Puts)*p.Puts+float64(s.Gets)*p.Gets)/1000 + float64(s.BytesDown)/1e9*p.Egress
}

// PerMonth estimates what it costs to keep so many bytes of snapshots for a month.
func (p Prices) PerMonth(bytes int64) float64 { return float64(bytes) / 1e9 * p.Storage }

// DayCost is what the cycles of one day were billed.
type DayCost = persistence.DayCost

// ReadCosts reads what the cycles of an attached database were billed on the last days
// (UTC) on which there were any, the newest first; 400 of them are kept. It uses no
// network.
func ReadCosts(ctx context.Context, db *bun.DB, days int) ([]DayCost, error) {
	return persistence.View(db).Costs(ctx, days)
}

// slowest is how far a budget slows Run down: what was edited always goes up.
const slowest = time.Hour

// WithBudget slows Run down so that its cycles are billed no more than about so many
// reads a day (UTC): the nearer the budget is to its end, the longer it waits between
// two cycles, but never longer than an hour. Data that other devices uploaded is read
// whatever it costs, and Sync is never slowed down.
func WithBudget(readsPerDay int64) Option {
	return func(s *settings) error {
		if readsPerDay < 1 {
			return fmt.Errorf("%w: WithBudget takes at least one read a day", ErrInvalidOption)
		}
		s.budget = readsPerDay
		return nil
	}
}

// BudgetStatus is how a budget stands.
type BudgetStatus struct {
	ReadsPerDay int64 `json:"readsPerDay"`
	// Used are today's reads so far, Typical those of a usual cycle.
	Used    int64 `json:"used"`
	Typical int64 `json:"typical"`
	// Every is the time between two cycles that the budget allows, in nanoseconds;
	// Slowed says that it is longer than what was asked for.
	Every  time.Duration `json:"every"`
	Slowed bool          `json:"slowed"`
}

// ReadBudget reads how a budget of an attached database stands when Run is to sync at
// the given interval. It uses no network.
func ReadBudget(ctx context.Context, db *bun.DB, readsPerDay int64, every time.Duration) (BudgetStatus, error) {
	return budgetOf(ctx, persistence.View(db), readsPerDay, every)
}

func budgetOf(ctx context.Context, local *persistence.Local, readsPerDay int64, every time.Duration) (BudgetStatus, error) {
	b := BudgetStatus{ReadsPerDay: readsPerDay, Every: every}
	now := time.Now().UTC()
	days, err := local.Costs(ctx, 1)
	if err != nil {
		return b, err
	}
	if len(days) > 0 && days[0].Day == now.Format(time.DateOnly) {
		b.Used = days[0].Billed.Reads
	}
	if b.Typical, err = local.TypicalReads(ctx); err != nil {
		return b, err
	}
	midnight := now.Truncate(24 * time.Hour).Add(24 * time.Hour)
	b.Every = b.pace(every, midnight.Sub(now))
	b.Slowed = b.Every > every
	return b, nil
}

// pace spreads what is left of the budget over what is left of the day.
func (b BudgetStatus) pace(every, left time.Duration) time.Duration {
	cycles := float64(b.ReadsPerDay-b.Used) / float64(b.Typical)
	if cycles < 1 {
		return max(every, slowest)
	}
	return max(every, min(slowest, time.Duration(float64(left)/cycles)))
}

// afford waits until the budget allows another cycle, or SyncSoon is called; began is
// when the last one did.
func (p *Pipeline) afford(ctx context.Context, began time.Time) {
	if p.set.budget == 0 {
		return
	}
	b, err := budgetOf(ctx, p.local, p.set.budget, p.set.interval)
	wait := b.Every - time.Since(began)
	if err != nil || !b.Slowed || wait <= 0 {
		return // with a database that cannot be read, the cycle says so
	}
	p.set.log.Info("the budget slows syncing down", zap.Int64("readsPerDay", b.ReadsPerDay), zap.Int64("used", b.Used), zap.Duration("every", b.Every))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.soon: // somebody knows better
	case <-ctx.Done():
	}
}
