package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

func (a *app) trace() *cobra.Command {
	var asJSON bool
	var cycle string
	last := 5
	cmd := a.takes(&cobra.Command{
		Use:   "trace --db FILE [--cycle ID] [--last N] [--json]",
		Short: "what the last cycles did, how long it took and what it cost",
		Long: `trace draws the last cycles from the step ledger in the database: stage, table,
attempt, rows, bytes, time and error, and what was billed, by cycle and by day.
It asks no server and needs no collector; with OTEL_EXPORTER_OTLP_ENDPOINT set,
sync and run also send OpenTelemetry spans there, and a cycle names its trace.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if last < 1 {
				return misuse("--last takes at least 1")
			}
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("db")
			}
			if err != nil {
				return err
			}
			db, err := a.openDatabase(ctx, s.db)
			if err != nil {
				return err
			}
			defer db.Close()
			if err := db.attached(ctx); err != nil {
				return err
			}
			var traces []tidemark.CycleTrace
			if cycle == "" {
				traces, err = tidemark.ReadTraces(ctx, db.DB, last)
			} else {
				traces = make([]tidemark.CycleTrace, 1)
				traces[0], err = tidemark.ReadTrace(ctx, db.DB, cycle)
			}
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			days, err := tidemark.ReadCosts(ctx, db.DB, monthDays)
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			if asJSON {
				return a.out.json(tracesJSON(traces, days, s.prices))
			}
			a.tellTraces(traces, s.prices)
			if cycle == "" {
				a.tellDays(days, s.prices)
			}
			return nil
		},
	}, "db")
	cmd.Flags().StringVar(&cycle, "cycle", "", "only the cycle whose `ID` begins so")
	cmd.Flags().IntVar(&last, "last", last, "how many cycles, `N`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object on standard output")
	return cmd
}

// traceReport is what trace --json prints.
type traceReport struct {
	Cycles []tracedCycle   `json:"cycles"`
	Days   []pricedDay     `json:"days"`
	Prices tidemark.Prices `json:"prices"`
}

type tracedCycle struct {
	tidemark.CycleTrace
	Dollars float64 `json:"dollars"`
}

type pricedDay struct {
	tidemark.DayCost
	Dollars float64 `json:"dollars"`
}

func tracesJSON(traces []tidemark.CycleTrace, days []tidemark.DayCost, p tidemark.Prices) traceReport {
	r := traceReport{Cycles: []tracedCycle{}, Days: []pricedDay{}, Prices: p}
	for _, t := range traces {
		r.Cycles = append(r.Cycles, tracedCycle{t, p.Dollars(t.Billed, t.Store)})
	}
	for _, d := range days {
		r.Days = append(r.Days, pricedDay{d, p.Dollars(d.Billed, d.Store)})
	}
	return r
}

const (
	stageWidth = 13
	tableWidth = 14
	barWidth   = 20
)

// tellTraces draws the cycles, the oldest first, as they happened.
func (a *app) tellTraces(traces []tidemark.CycleTrace, p tidemark.Prices) {
	if len(traces) == 0 {
		a.out.printf("There is no cycle in the step ledger yet.\n")
	}
	for i := range traces {
		a.tellTrace(traces[len(traces)-1-i], p)
	}
}

func (a *app) tellTrace(t tidemark.CycleTrace, p tidemark.Prices) {
	ended := ""
	if !t.Ended {
		ended = ", did not end"
	}
	a.out.printf("%s\n", plain(t.Cycle))
	a.wrap(2, "  ", fmt.Sprintf("%s, %s%s; %s, about %s", t.StartedOn.Local().Format(time.DateTime), milliseconds(t.Ms), ended, used(t.Billed, t.Store), dollars(p.Dollars(t.Billed, t.Store))))
	if t.TraceID != "" {
		a.out.printf("  trace %s\n", plain(t.TraceID))
	}
	row := "  %-*s %-*s %7s %9s %8s"
	a.out.printf(row+"\n", stageWidth, "stage", tableWidth, "table", "rows", "bytes", "time")
	round := 0
	for _, s := range t.Steps {
		if s.Round != round {
			round = s.Round
			a.out.printf("  round %d\n", round+1)
		}
		stage := s.Stage
		if s.Attempt > 1 {
			stage = fmt.Sprintf("%s (%d)", s.Stage, s.Attempt)
		}
		a.out.printf(row+"  %s\n", stageWidth, fit(stage, stageWidth), tableWidth, fit(s.Table, tableWidth), some(s.Rows, thousands), some(s.Bytes, size), milliseconds(s.Ms), bar(s.AtMs, s.Ms, t.Ms))
		if s.Error != "" {
			a.wrap(4, "    ", fit(failure(s.Stage, s.Error), 300))
		}
	}
	a.out.printf("\n")
}

// bar stands in the line of a step where it was in its cycle.
func bar(at, took, whole float64) string {
	if whole <= 0 {
		return "▪"
	}
	from := min(int(at/whole*barWidth), barWidth-1)
	to := min(max(int((at+took)/whole*barWidth+0.5), from+1), barWidth)
	return strings.Repeat(" ", max(from, 0)) + strings.Repeat("▪", max(to-from, 1))
}

func some(n int64, text func(int64) string) string {
	if n == 0 {
		return ""
	}
	return text(n)
}

func milliseconds(ms float64) string {
	if ms < 1 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return duration(time.Duration(ms * float64(time.Millisecond)))
}

func (a *app) tellDays(days []tidemark.DayCost, p tidemark.Prices) {
	if len(days) == 0 {
		return
	}
	row := "  %-10s %7s %10s %10s %8s %6s %6s %11s\n"
	a.out.printf(row, "day (UTC)", "cycles", "reads", "writes", "deletes", "PUTs", "GETs", "about")
	for _, d := range days[:min(len(days), 7)] {
		a.out.printf(row, plain(d.Day), thousands(d.Cycles), thousands(d.Billed.Reads), thousands(d.Billed.Writes), thousands(d.Billed.Deletes),
			thousands(d.Store.Puts), thousands(d.Store.Gets), dollars(p.Dollars(d.Billed, d.Store)))
	}
	a.wrap(2, "  ", fmt.Sprintf("Prices of %s: %s; `prices` in tidemark.yaml changes them.", plain(p.AsOf), plain(p.Source)))
}
