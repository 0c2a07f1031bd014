package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

func (a *app) run() *cobra.Command {
	var metrics metricsFlags
	cmd := a.takes(&cobra.Command{
		Use:   "run --db FILE --remote URL --store URL [--every 30s] [--budget READS]\n    [--metrics 127.0.0.1:9464]",
		Short: "stay in step until it is told to stop",
		Long: `run syncs every 30 seconds, and a second after something was written to the
database, whatever program did it. It prints a line when something moved, and
waits out any outage. SIGINT (Ctrl-C) or SIGTERM stop it: the cycle under way
may take ten seconds to end, and the exit code is 0. A second signal ends it at
once. SIGHUP reads the settings anew; when they are wrong the old ones stay.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			served, err := a.serveMetrics(ctx, metrics)
			if err != nil {
				return err
			}
			defer served.close()
			w, err := a.open(cmd)
			if err != nil {
				return err
			}
			d := &diary{a: a, ctx: ctx}
			for {
				served.watch(a, w)
				if d.begin(w); a.out.failed() != nil {
					w.close() // the terminal is gone
					return nil
				}
				next, err := a.runUntil(cmd, w, d, reload)
				if next == nil {
					err = d.ended(w, err)
					w.close()
					return err
				}
				served.watch(a, next)
				w.close()
				w = next
			}
		},
	}, "db", "remote", "store", "key-file", "every", "budget")
	cmd.Flags().StringVar(&metrics.address, "metrics", "", "`ADDRESS` that serves metrics for Prometheus, 127.0.0.1:9464")
	cmd.Flags().BoolVar(&metrics.open, "metrics-open", false, "let --metrics listen where other machines can read it")
	return cmd
}

// errReload is the cause of a context that ends for new settings.
var errReload = errors.New("new settings")

// runUntil runs until the end, or until there are new settings that work: then it
// returns what they opened.
func (a *app) runUntil(cmd *cobra.Command, w *work, d *diary, reload <-chan os.Signal) (next *work, err error) {
	ctx, stop := context.WithCancelCause(cmd.Context())
	defer stop(nil)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-reload:
			case <-done:
				return
			}
			opened, err := a.open(cmd)
			if err == nil {
				next = opened
				stop(errReload)
				return
			}
			a.complain(10, now(), "the new settings do not work, the old ones stay: "+err.Error())
		}
	})
	err = w.pipeline.Run(ctx, d.cycle, budgetTeller(ctx, w, d.say), companyTeller(ctx, w, d.say))
	close(done)
	wg.Wait()
	a.progress.end()
	if next != nil && (err != nil || cmd.Context().Err() != nil) {
		next.close() // it ended by itself
		next = nil
	}
	return next, err
}

// diary is what run prints.
type diary struct {
	a       *app
	ctx     context.Context //nolint:containedctx // it lives inside one command
	cycles  int64
	reads   int64
	writes  int64
	failing string
	stuck   messages.TableCounts // waiting or set aside in the last cycle
	begun   bool
}

// begin is the first line, and that after new settings.
func (d *diary) begin(w *work) {
	text := fmt.Sprintf("%s keeps in step with %s, every %v.", plain(w.settings.db.text), plain(w.settings.remote.text), brief(w.settings.every))
	if d.begun {
		d.say("new settings: %s", text)
		return
	}
	d.begun = true
	d.a.out.printf("%s\n", message(0, "", text+" Ctrl-C stops it.", screen(d.a.out.w)))
}

// ended says how it ended.
func (d *diary) ended(w *work, err error) error {
	switch {
	case err != nil && d.failing == plain(err.Error()):
		return toldError{err}
	case err != nil:
		return w.db.failed(err)
	}
	return d.close(w)
}

func (d *diary) say(format string, args ...any) {
	d.a.out.printf("%s\n", message(10, now(), fmt.Sprintf(format, args...), screen(d.a.out.w)))
}

// now begins a line of the diary.
func now() string { return time.Now().Format(time.TimeOnly) + "  " }

// again says when run tries again by itself, as DefaultRetryPolicy has it; nothing of
// what ends it.
func again(err error) []string {
	is := func(classes ...error) bool {
		return slices.ContainsFunc(classes, func(c error) bool { return errors.Is(err, c) })
	}
	switch {
	case is(tidemark.ErrUnauthorized, tidemark.ErrNotFound, tidemark.ErrNotAttached, tidemark.ErrNotDatabase, tidemark.ErrOtherScope):
		return nil
	case is(tidemark.ErrUnavailable, tidemark.ErrLocked):
		return []string{"It tries again by itself: soon at first, then every minute or so (a snapshot: in the next cycle)."}
	case is(tidemark.ErrRejected, tidemark.ErrDiskFull, tidemark.ErrReadOnly, tidemark.ErrMassDelete, tidemark.ErrNoResolver):
		return []string{"It tries again by itself, every five minutes or so."}
	}
	return []string{"It tries again by itself, every half an hour at least."}
}

// cycle is told of every cycle that ended, or failed.
func (d *diary) cycle(r tidemark.Report, err error) {
	d.a.progress.end()
	d.reads += r.Billed.Reads
	d.writes += r.Billed.Writes
	if err != nil {
		if d.ctx.Err() != nil && errors.Is(err, context.Cause(d.ctx)) {
			return // the stop that was asked for
		}
		if text := plain(err.Error()); text != d.failing { // an outage is told once
			d.failing = text
			d.a.complain(10, now(), "failed: "+text)
			for _, h := range append(hints(err), again(err)...) {
				d.a.complain(0, "", h)
			}
		}
		return
	}
	d.cycles++
	first, recovered := d.cycles == 1, d.failing != ""
	d.failing = ""
	t := r.Total()
	same := t == d.stuck || t == (messages.TableCounts{}) // what cannot move is told once
	d.stuck = messages.TableCounts{Waiting: t.Waiting, Dead: t.Dead}
	quiet := same && r.Snapshot == nil && r.InStep
	switch {
	case quiet && recovered:
		d.say("working again, nothing to move (%s)", billed(r))
	case quiet && first:
		d.say("in step, nothing to move (%s)", billed(r))
	case quiet:
	default:
		var parts []string
		for _, p := range []struct {
			n    int64
			what string
		}{
			{t.Downloaded, "down"}, {t.Uploaded, "up"}, {t.Conflicts, "in conflict"}, {t.Waiting, "waiting"}, {t.Dead, "set aside"},
		} {
			if p.n > 0 {
				parts = append(parts, thousands(p.n)+" "+p.what)
			}
		}
		if r.Snapshot != nil {
			parts = append(parts, "a snapshot of "+size(r.Store.BytesUp))
		}
		if !r.InStep {
			parts = append(parts, "not in step yet")
		}
		d.say("%s (%s)", strings.Join(parts, ", "), billed(r))
	}
}

// companyTeller says once that another program keeps the same file in step: each asks the
// server for itself. A sync by hand is none.
func companyTeller(ctx context.Context, w *work, say func(format string, args ...any)) func(tidemark.Report, error) {
	const (
		last  = 3    // cycles that are looked at
		known = 1000 // of ours: those that failed may not be in the ledger
	)
	began := time.Now()
	var ours []string
	met := 0 // cycles of ours in a row between which there was another's
	return func(r tidemark.Report, _ error) {
		ours = append(ours, r.Cycle)[max(0, len(ours)+1-known):]
		if met == last {
			return
		}
		traces, err := tidemark.ReadTraces(ctx, w.db.DB, last)
		if err != nil {
			return // a database that cannot be read ends the next cycle
		}
		if !slices.ContainsFunc(traces, func(t tidemark.CycleTrace) bool { return t.StartedOn.After(began) && !slices.Contains(ours, t.Cycle) }) {
			met = 0
			return
		}
		if met++; met == last {
			say("another program syncs %s as well: one is enough, and every cycle is billed", plain(w.db.path))
		}
	}
}

// close prints the last line.
func (d *diary) close(w *work) error {
	st, err := w.pipeline.Status(context.WithoutCancel(d.ctx))
	if err != nil {
		return w.db.failed(err)
	}
	left := "nothing is left to upload"
	if st.Dirty > 0 {
		left = count(st.Dirty, "row is", "rows are") + " left to upload, next time"
	}
	d.say("stopped after %s (%s, %s); %s", count(d.cycles, "cycle", "cycles"), count(d.reads, "read", "reads"), count(d.writes, "write", "writes"), left)
	return nil
}
