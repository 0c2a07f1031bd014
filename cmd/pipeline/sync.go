package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

func (a *app) sync() *cobra.Command {
	var asJSON, full, allowDeletes bool
	cmd := a.takes(&cobra.Command{
		Use:   "sync --db FILE --remote URL --store URL [--json] [--full]",
		Short: "one cycle: download, upload, register, back up",
		Long: `sync runs one cycle and tells what it moved and what it cost. It downloads what
other devices uploaded, uploads the rows that are dirty here, and backs up when
this device is Big Brother. Rows that can never be synced are set aside, with
the reason, and stop nobody. After an error the next sync goes on from there.

A download that would delete more than half of a table, and more than 100 rows,
stops and asks; --allow-deletes lets it, once. The error says how to bring the
rows back instead.

Exit code 0: the cycle came to its end. 1: it did not.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			w, err := a.open(cmd)
			if err != nil {
				return err
			}
			defer w.close()
			sync := w.pipeline.Sync
			if full {
				sync = w.pipeline.SyncFull
			}
			if allowDeletes {
				if err := w.pipeline.AllowDeletes(ctx); err != nil {
					return w.db.failed(cause(ctx, err))
				}
			}
			started := time.Now()
			a.progress.begin("beginning", nil)
			report, err := sync(ctx)
			took := time.Since(started)
			a.progress.end()
			if asJSON && report.Cycle != "" {
				err = errors.Join(err, a.out.json(report))
			}
			if err != nil {
				if !asJSON && len(report.Tables) > 0 {
					a.tellMoved(report, took)
				}
				return w.db.failed(cause(ctx, err))
			}
			if asJSON {
				return nil
			}
			return a.tellSynced(ctx, w, report, took)
		},
	}, "db", "remote", "store", "key-file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one Report object on standard output")
	cmd.Flags().BoolVar(&allowDeletes, "allow-deletes", false, "let this download delete as much as it wants")
	cmd.Flags().BoolVar(&full, "full", false, "compare every document, at one billed read each")
	return cmd
}

// work is an open pipeline and what has to be closed after it.
type work struct {
	settings settings
	pipeline *tidemark.Pipeline
	db       *database
	closers  []io.Closer
}

func (w *work) close() {
	for _, c := range slices.Backward(w.closers) {
		_ = c.Close() // every cycle has ended: there is nothing left to lose
	}
}

// open makes a pipeline of the settings. Nothing is asked of a server before the
// database is known to be one that was attached.
func (a *app) open(cmd *cobra.Command) (_ *work, err error) {
	ctx := cmd.Context()
	w := &work{}
	if w.settings, err = a.settings(cmd); err != nil {
		return nil, err
	}
	s := w.settings
	if err := s.need("db", "remote", "store"); err != nil {
		return nil, err
	}
	remoteURL, err := parseRemote(s.remote)
	if err != nil {
		return nil, err
	}
	storeURL, err := parseStore(s.store)
	if err != nil {
		return nil, err
	}
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.db, err = a.openDatabase(ctx, s.db); err != nil {
		return nil, err
	}
	w.closers = append(w.closers, w.db)
	if err := w.db.attached(ctx); err != nil {
		return nil, err
	}
	chosen, err := w.db.choices(ctx)
	if err != nil {
		return nil, err
	}
	if text := chosen.unheeded(s); text != "" {
		a.complain(2, "warning: ", text)
	}
	remote, c, err := openRemote(ctx, remoteURL)
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, c)
	if c, ok := remote.(interface{ Caution() string }); ok && c.Caution() != "" {
		a.complain(2, "warning: ", c.Caution())
	}
	store, c, err := openStore(ctx, storeURL)
	if err != nil {
		return nil, err
	}
	w.closers = append(w.closers, c)
	host, _ := os.Hostname() // a device without a name is one all the same
	opts := append(slices.Clone(a.options), tidemark.WithDevice(host, version()), tidemark.WithInterval(s.every))
	if s.budget > 0 {
		opts = append(opts, tidemark.WithBudget(s.budget))
	}
	if storeURL.query.Has("conditions") {
		opts = append(opts, tidemark.WithUnconditionalStore())
	}
	if key != nil {
		opts = append(opts, tidemark.WithEncryption(key))
	}
	if log := a.logger(); log != nil {
		opts = append(opts, tidemark.WithLogger(log))
	}
	if a.progress != nil {
		opts = append(opts, tidemark.WithObserver(a.progress.watch()))
	}
	tracer, c, err := a.tracer(ctx)
	if err != nil {
		return nil, err
	}
	if tracer != nil {
		w.closers = append(w.closers, c)
		opts = append(opts, tidemark.WithTracer(tracer))
	}
	if w.pipeline, err = tidemark.New(ctx, w.db.DB, remote, store, opts...); err != nil {
		return nil, w.db.failed(err)
	}
	return w, nil
}

// cause is the signal when one ended the work, and the error otherwise.
func cause(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted
	}
	return err
}

// tellSynced prints what a cycle did, in 80 columns.
func (a *app) tellSynced(ctx context.Context, w *work, r tidemark.Report, took time.Duration) error {
	st, err := w.pipeline.Status(ctx)
	if err != nil {
		return w.db.failed(err)
	}
	a.tellMoved(r, took)
	return a.tellStanding(ctx, w.db, st, r.InStep)
}

func (a *app) tellMoved(r tidemark.Report, took time.Duration) {
	if len(r.Tables) == 0 {
		a.out.printf("Nothing to move.\n")
	} else {
		a.tellTables(r)
	}
	a.out.printf("\n  billed    %s\n", billed(r))
	if r.Store.Puts+r.Store.Gets > 0 {
		a.out.printf("  store     %s\n", stored(r))
	}
	if r.Snapshot != nil {
		a.out.printf("  snapshot  %s, made by this device, %s\n", plain(*r.Snapshot), encrypted(r.Encrypted))
	}
	for _, w := range r.Warnings {
		a.wrap(12, "  warning   ", w)
	}
	a.out.printf("  time      %s\n\n", duration(took))
}

func encrypted(yes bool) string {
	if yes {
		return "encrypted"
	}
	return "not encrypted"
}

// width of the column for the tables' names.
const nameWidth = 26

func (a *app) tellTables(r tidemark.Report) {
	row := "  %-*s %8s %8s %8s %9s %7s %6s\n"
	a.out.printf(row, nameWidth, "table", "down", "applied", "up", "conflicts", "waiting", "aside")
	names := sortedKeys(r.Tables)
	line := func(name string, c messages.TableCounts) {
		a.out.printf(row, nameWidth, name, thousands(c.Downloaded), thousands(c.Applied), thousands(c.Uploaded),
			thousands(c.Conflicts), thousands(c.Waiting), thousands(c.Dead))
	}
	for _, n := range names {
		line(fit(n, nameWidth), r.Tables[n])
	}
	if len(names) > 1 {
		line("all", r.Total())
	}
}

func billed(r tidemark.Report) string {
	return fmt.Sprintf("%s, %s, %s", count(r.Billed.Reads, "read", "reads"), count(r.Billed.Writes, "write", "writes"), count(r.Billed.Deletes, "delete", "deletes"))
}

func stored(r tidemark.Report) string {
	var parts []string
	if r.Store.Puts > 0 {
		parts = append(parts, count(r.Store.Puts, "PUT", "PUTs")+" ("+size(r.Store.BytesUp)+")")
	}
	if r.Store.Gets > 0 {
		parts = append(parts, count(r.Store.Gets, "GET", "GETs")+" ("+size(r.Store.BytesDown)+")")
	}
	return strings.Join(parts, ", ")
}

// tellStanding says whether the database is in step and, when not, what is left and
// what to do.
func (a *app) tellStanding(ctx context.Context, db *database, st tidemark.Status, ended bool) error {
	name := plain(db.path)
	switch {
	case st.LastCycle == nil:
		a.out.printf("%s was never synced.\n", name)
	case ended && st.Dirty == 0 && st.Waiting == 0 && st.Dead == 0:
		a.out.printf("%s is in step.\n", name)
	case ended:
		a.out.printf("%s is in step but for this:\n", name)
	default:
		a.out.printf("%s is not in step yet: other devices are writing. Sync again.\n", name)
	}
	return a.tellLeft(ctx, db, st)
}

// tellLeft lists what is left and what to do about it.
func (a *app) tellLeft(ctx context.Context, db *database, st tidemark.Status) error {
	reasons, err := db.setAside(ctx)
	if err != nil {
		return err
	}
	left, givenUp := st.Dirty, int64(0)
	for _, x := range reasons {
		left -= x.dirty
		if x.reason == "" {
			givenUp += x.dirty
		}
	}
	held, err := db.heldRows(ctx)
	if err != nil {
		return err
	}
	if children := min(left, held-(st.Dirty-left)); children > 0 {
		left -= children
		a.wrap(4, "  - ", count(children, "row waits", "rows wait")+" for a row that was set aside (`pipeline failed`)")
	}
	if left > 0 && st.ForgottenOn != nil {
		a.wrap(4, "  - ", count(left, "change was", "changes were")+" never uploaded")
	} else if e := st.LastError; left > 0 && e != nil && strings.Contains(e.Error, tidemark.ErrMassDelete.Error()) {
		a.wrap(4, "  - ", count(left, "change is", "changes are")+" still to be uploaded, and no sync does it until the deletes that wait are decided: `pipeline sync` says how")
	} else if left > 0 {
		a.wrap(4, "  - ", count(left, "change is", "changes are")+" still to be uploaded: the next sync does it")
	}
	if givenUp > 0 {
		a.wrap(4, "  - ", count(givenUp, "row stays", "rows stay")+" on this device only, as you chose (`pipeline failed list --discarded`)")
	}
	if st.Waiting > 0 {
		a.wrap(4, "  - ", count(st.Waiting, "document waits", "documents wait")+" for a parent that is not here: it is applied when the parent comes")
	}
	if st.Conflicts > 0 {
		a.wrap(4, "  - ", count(st.Conflicts, "conflict was", "conflicts were")+" decided so far; see `pipeline conflicts`")
	}
	broken, err := db.stuckStages(ctx)
	if err != nil {
		return err
	}
	for _, x := range broken {
		of := ""
		if x.table != "" {
			of = " of " + x.table
		}
		a.wrap(4, "  - ", "stage "+strconv.Quote(x.stage)+of+" failed by a mistake in a program; `pipeline failed show ID` has what to report, and every sync tries it again")
	}
	rows := st.Dead - int64(len(broken))
	if rows == 0 {
		return nil
	}
	a.wrap(4, "  - ", count(rows, "row was", "rows were")+" set aside (`pipeline failed`); change the row and it is tried again:")
	for i, x := range reasons {
		if x.reason == "" {
			break // they come last
		}
		if i == 5 {
			a.out.printf("    and for other reasons\n")
			break
		}
		a.wrap(6, "    ", x.table+", "+count(x.rows, "row", "rows")+": "+fit(x.reason, 300))
	}
	return nil
}
