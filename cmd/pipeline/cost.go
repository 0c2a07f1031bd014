package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

const monthDays = 30

// bill is what status prints with --json about money.
type bill struct {
	Today      float64           `json:"dollarsToday"`
	Last30Days float64           `json:"dollarsLast30Days"`
	PricesOf   string            `json:"pricesOf"`
	Billed     messages.Billed   `json:"billedToday"`
	Store      messages.StoreUse `json:"storeToday"`
}

// billOf adds up what the last days cost.
func billOf(ctx context.Context, db *database, s settings) (bill, error) {
	b := bill{PricesOf: s.prices.AsOf}
	days, err := tidemark.ReadCosts(ctx, db.DB, monthDays)
	if err != nil {
		return b, db.failed(err)
	}
	today := time.Now().UTC()
	for _, d := range days {
		dollars := s.prices.Dollars(d.Billed, d.Store)
		if d.Day > today.AddDate(0, 0, -monthDays).Format(time.DateOnly) {
			b.Last30Days += dollars
		}
		if d.Day == today.Format(time.DateOnly) {
			b.Today, b.Billed, b.Store = dollars, d.Billed, d.Store
		}
	}
	return b, nil
}

// costLines says in a few lines what syncing costs, and how a budget stands.
func costLines(ctx context.Context, db *database, s settings) ([]string, error) {
	now, err := billOf(ctx, db, s)
	if err != nil {
		return nil, err
	}
	text := "today nothing yet"
	if u := used(now.Billed, now.Store); u != "nothing" {
		text = "today " + u + ", about " + dollars(now.Today)
	}
	lines := []string{text, fmt.Sprintf("last %d days about %s (prices of %s)", monthDays, dollars(now.Last30Days), now.PricesOf)}
	if s.budget == 0 {
		return lines, nil
	}
	b, err := tidemark.ReadBudget(ctx, db.DB, s.budget, s.every)
	if err != nil {
		return nil, db.failed(err)
	}
	text = fmt.Sprintf("budget of %s a day, %s used", count(b.ReadsPerDay, "read", "reads"), thousands(b.Used))
	if b.Slowed {
		text += fmt.Sprintf(": run syncs every %s, not every %s, until midnight UTC", brief(b.Every), brief(s.every))
	}
	return append(lines, text), nil
}

// tellBills prints the lines of status that are about money.
func (a *app) tellBills(ctx context.Context, db *database, s settings) error {
	lines, err := costLines(ctx, db, s)
	for i, l := range lines {
		name := ""
		if i == 0 {
			name = "cost"
		}
		a.wrap(15, fmt.Sprintf("  %-12s ", name), l)
	}
	return err
}

// brief is a duration without what is nought: 1h, not 1h0m0s.
func brief(d time.Duration) string {
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// used is what was billed, without what is nought.
func used(b messages.Billed, u messages.StoreUse) string {
	var parts []string
	for _, p := range []struct {
		n         int64
		one, many string
	}{
		{b.Reads, "read", "reads"},
		{b.Writes, "write", "writes"},
		{b.Deletes, "delete", "deletes"},
		{u.Puts, "PUT", "PUTs"},
		{u.Gets, "GET", "GETs"},
	} {
		if p.n > 0 {
			parts = append(parts, count(p.n, p.one, p.many))
		}
	}
	if n := u.BytesUp + u.BytesDown; n > 0 {
		parts = append(parts, size(n))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// dollars has two digits that count: a cycle costs millionths.
func dollars(d float64) string {
	switch {
	case d < 1e-9:
		return "$0"
	case d < 0.1:
		digits := 2
		for x := d; x < 0.1; x *= 10 {
			digits++
		}
		return strings.TrimRight(fmt.Sprintf("$%.*f", min(digits, 9), d), "0")
	default:
		return fmt.Sprintf("$%.2f", d)
	}
}

// setPrices reads the owner's prices, in dollars; those it does not name stay.
func (s *settings) setPrices(value *yaml.Node, name string) error {
	wrong := errors.New(`"prices" takes a list of reads, writes, deletes (per 100,000), puts, gets (per 1,000), egress (per GB) and storage (per GB and month), each with dollars`)
	if value.Kind != yaml.MappingNode {
		return wrong
	}
	p := &s.prices
	known := map[string]*float64{
		"reads": &p.Reads, "writes": &p.Writes, "deletes": &p.Deletes,
		"puts": &p.Puts, "gets": &p.Gets, "egress": &p.Egress, "storage": &p.Storage,
	}
	for i := 0; i < len(value.Content); i += 2 {
		to := known[value.Content[i].Value]
		d, err := strconv.ParseFloat(value.Content[i+1].Value, 64)
		if to == nil || err != nil || !(d >= 0) || math.IsInf(d, 0) {
			return wrong
		}
		*to = d
	}
	p.AsOf, p.Source = "your settings", "list prices, changed in "+plain(name)
	return nil
}

// budgetTeller says when a budget begins and ends to slow run down.
func budgetTeller(ctx context.Context, w *work, say func(format string, args ...any)) func(tidemark.Report, error) {
	slowed := false
	return func(tidemark.Report, error) {
		s := w.settings
		if s.budget == 0 {
			return
		}
		b, err := tidemark.ReadBudget(ctx, w.db.DB, s.budget, s.every)
		if err != nil || b.Slowed == slowed {
			return // a database that cannot be read ends the next cycle
		}
		if slowed = b.Slowed; slowed {
			say("the budget of %s a day allows a cycle every %s from now on (%s used)", count(b.ReadsPerDay, "read", "reads"), brief(b.Every), thousands(b.Used))
			return
		}
		say("the budget allows a cycle every %s again", brief(s.every))
	}
}
