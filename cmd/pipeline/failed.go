package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

const aboutFailed = `What can never be handled as it is, or was refused, is set aside with the reason
and stops nobody: a row that the server does not take (stage upload), a document
that does not fit here (stage download). It goes by itself once the row, or a
newer version of the document, gets through. What only waits for its parent is
no failure: every sync tries it again. A stage that failed as a whole, by a
mistake in a program, stands there with its message, until it gets through.`

func (a *app) failed() *cobra.Command {
	cmd := a.listFailed("failed [show ID | replay ID… | discard ID…] --db FILE")
	cmd.Short = "list, show and replay what was set aside"
	cmd.Long = aboutFailed + `

Without a command it lists them, the oldest first, and apart what waits. --json
prints one object a line: id, state (dead, discarded), stage, table, documentId,
row, class, reason, attempts, firstOn, lastOn and replay (it is tried by the
next sync); or state (waiting, collides), stage, table, documentId, row, reason.`
	cmd.Args = noSuchCommand
	list := a.listFailed("list --db FILE [--table TABLE] [--stage STAGE] [--json]")
	list.Short, list.Long, list.Args = "list what was set aside and, apart, what waits", aboutFailed, noArguments
	cmd.AddCommand(list, a.showFailed(), a.replayFailed(), a.discardFailed())
	return cmd
}

// choosing adds the flags that choose dead letters.
func choosing(cmd *cobra.Command, f *tidemark.DeadLetterFilter) {
	cmd.Flags().StringVar(&f.Table, "table", "", "only those of `TABLE`")
	cmd.Flags().StringVar(&f.Stage, "stage", "", "only those of `STAGE`, such as upload or download")
}

func checkStage(stage string) error {
	if stage == "" {
		return nil
	}
	for _, e := range tidemark.Topology().Edges {
		if e.Stage == stage {
			return nil
		}
	}
	return misuse("--stage takes upload, download or another stage that `pipeline topology` draws")
}

func (a *app) listFailed(use string) *cobra.Command {
	var asJSON bool
	var f tidemark.DeadLetterFilter
	cmd := a.takes(&cobra.Command{
		Use: use,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := checkStage(f.Stage); err != nil {
				return err
			}
			s, db, err := a.attached(cmd)
			if err != nil {
				return err
			}
			defer db.Close()
			if err := db.knows(ctx, f.Table); err != nil {
				return err
			}
			var dead, waiting int64
			for x, err := range tidemark.DeadLetters(ctx, db.DB, f) {
				if err != nil {
					return db.failed(cause(ctx, err))
				}
				dead++
				if !asJSON {
					a.tellLetter(dead == 1, x)
				} else if err := a.out.line(x); err != nil {
					return err
				}
			}
			for x, err := range tidemark.ListWaiting(ctx, db.DB, f.Table) {
				if err != nil {
					return db.failed(cause(ctx, err))
				}
				if f.Stage != "" && x.Stage != f.Stage {
					continue
				}
				waiting++
				if !asJSON {
					a.tellWaiting(dead > 0, waiting == 1, x)
				} else if err := a.out.line(x); err != nil {
					return err
				}
			}
			if asJSON {
				return nil
			}
			a.tellFailed(s, db, f.Table, dead, waiting)
			return nil
		},
	}, "db")
	choosing(cmd, &f)
	cmd.Flags().BoolVar(&f.Discarded, "discarded", false, "list those too that were discarded")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object a line on standard output")
	return cmd
}

func (a *app) tellFailed(s settings, db *database, table string, dead, waiting int64) {
	if dead+waiting == 0 {
		a.out.printf("Nothing%s was set aside or waits in %s.\n", of(table), plain(db.path))
		return
	}
	var parts []string
	if dead > 0 {
		parts = append(parts, count(dead, "failure", "failures"))
	}
	if waiting > 0 {
		parts = append(parts, count(waiting, "waits", "wait"))
	}
	a.out.printf("\n%s.\n", strings.Join(parts, ", "))
	if dead > 0 {
		a.next("failed show ID", s)
	}
}

func (a *app) tellLetter(first bool, x tidemark.DeadLetter) {
	row := "%5s  %-8s  %-16s  %-18s  %5s  %s\n"
	if first {
		a.out.printf(row, "id", "stage", "table", "row", "tries", "since")
	}
	a.out.printf(row, strconv.FormatInt(x.ID, 10), fit(x.Stage, 8), fit(orDash(x.Table), 16), fit(orDash(rowOr(x.Row, x.DocumentID)), 18), thousands(x.Attempts), day(x.FirstOn))
	reason := fit(x.Reason, 300)
	switch {
	case x.State != "dead":
		reason += " (discarded)"
	case x.Replay:
		reason += " (the next sync tries it again)"
	}
	a.wrap(7, "", reason)
}

func (a *app) tellWaiting(after, first bool, x tidemark.Waiting) {
	if first {
		if after {
			a.out.printf("\n")
		}
		a.out.printf("Waiting; every sync tries it again:\n")
	}
	a.wrap(4, "  - ", x.Table+", "+rowOr(x.Row, x.DocumentID)+": "+fit(x.Reason, 300))
}

func (a *app) showFailed() *cobra.Command {
	var asJSON bool
	cmd := a.takes(&cobra.Command{
		Use:   "show ID --db FILE [--json]",
		Short: "show one: why, since when, and what could not be handled",
		Long: `show prints one failure with the row, or the document, that could not be
handled, cut to the width of the screen; --json prints the object that "failed"
does, with version: updatedOn, updatedBy, deleted, values and parents.`,
		Args: oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			ids, err := parseIDs(args)
			if err != nil {
				return err
			}
			s, db, err := a.attached(cmd)
			if err != nil {
				return err
			}
			defer db.Close()
			x, err := tidemark.ReadDeadLetter(ctx, db.DB, ids[0])
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			if asJSON {
				return a.out.json(x)
			}
			a.tellLetterWhole(x)
			if x.Stage == messages.StageUpload && x.Message == nil && x.Class == "local" {
				a.out.printf("\nAs it is, the row can never go up: change the row, then sync.\n")
				a.next("sync", s, "remote", "store")
				return nil
			}
			a.next(fmt.Sprintf("failed replay %d", x.ID), s)
			return nil
		},
	}, "db")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object on standard output")
	return cmd
}

func (a *app) tellLetterWhole(x tidemark.DeadLetter) {
	a.out.printf("%s\n\n", fit(fmt.Sprintf("Failure %d: %s", x.ID, letterName(x.Stage, x.Table, x.Row, x.DocumentID)), 80))
	row := func(name, text string) { a.wrap(14, fmt.Sprintf("  %-11s", name), text) }
	stages := map[string]string{messages.StageUpload: "upload: the row is here, and not on the server", messages.StageDownload: "download: the document is on the server, and not here"}
	if text, ok := stages[x.Stage]; ok && x.Message == nil {
		row("stage", text)
	} else {
		row("stage", x.Stage)
	}
	row("why", x.Reason)
	row("class", x.Class)
	row("since", ago(x.FirstOn))
	if x.Attempts > 1 {
		row("last tried", ago(x.LastOn))
	}
	row("tries", thousands(x.Attempts))
	switch {
	case x.State != "dead":
		row("state", x.State+": it is tried again when it changes, or is replayed")
	case x.Replay:
		row("state", "the next sync tries it again")
	}
	if x.Message != nil {
		a.wrap(14, "  message", string(x.Message))
		for i, f := range x.Stack {
			heading := "  stack"
			if i > 0 {
				heading = ""
			}
			a.wrap(14, heading, f)
		}
		a.out.printf("\n")
		a.wrap(2, "  ", "No row was lost: each sync makes the message again, and the failure goes when the stage gets through. Report it with what stands here; it holds no data of yours.")
	}
	v := x.Version
	if v == nil {
		return
	}
	a.out.printf("\n")
	row("edited", v.UpdatedOn.Local().Format(time.DateTime)+" by device "+v.UpdatedBy)
	if v.Deleted {
		row("", "it is a delete")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(v.Values)) {
		a.out.printf("  %-11s %s\n", fit(name, 11), fit(cell(v, name), 66))
	}
}

func (a *app) replayFailed() *cobra.Command {
	var asJSON, all, dryRun bool
	var f tidemark.DeadLetterFilter
	cmd := a.takes(&cobra.Command{
		Use:   "replay ID… | --all | --stage STAGE | --table TABLE --db FILE",
		Short: "hand it once more to the stage that failed, and to no other",
		Long: `replay tries again what was set aside, parents before children. A row is tried
by the next sync although nobody edited it, and is done when the server has
taken it. A document is applied at once, from what was kept of it. Doing it
twice does no harm; what fails again keeps its id.

Exit code 0: nothing failed again. 1: something did. --json prints one object a
line: id, stage, table, documentId, row, reason and outcome: requested (for the
next sync), applied, waiting, superseded (a newer version is here), failed.`,
		Args: func(cmd *cobra.Command, args []string) error { return choosesLetters(cmd, args, all, f) },
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			s, db, err := a.chosenLetters(cmd, args, &f)
			if err != nil {
				return err
			}
			defer db.Close()
			tracer, closer, err := a.tracer(ctx)
			if err != nil {
				return err
			}
			if tracer != nil {
				defer closer.Close()
			}
			outcomes := map[string]int64{}
			err = tidemark.ReplayDeadLetters(ctx, db.DB, f, dryRun, func(r tidemark.Replayed) error {
				outcomes[r.Outcome]++
				traceReplay(ctx, tracer, r)
				if asJSON {
					return a.out.line(r)
				}
				a.tellReplayed(r, dryRun)
				return a.out.failed()
			})
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			if !asJSON {
				a.tellReplay(s, outcomes, dryRun)
			}
			if outcomes["failed"] > 0 && !dryRun {
				return toldError{errors.New("some failed again")}
			}
			return nil
		},
	}, "db")
	choosing(cmd, &f)
	cmd.Flags().BoolVar(&all, "all", false, "replay all that were not discarded")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; say what would become of each by itself")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object a line on standard output")
	return cmd
}

// outcomes in words: what a replay did, and what it would do.
var outcomeTexts = map[string][2]string{
	"requested":  {"the next sync tries it", "the next sync would try it"},
	"applied":    {"applied", "would be applied"},
	"waiting":    {"waits now, and every sync tries it", "would wait, and every sync try it"},
	"superseded": {"done with: a newer version took its place", "done with: a newer version took its place"},
	"failed":     {"failed again", "would fail again"},
}

func (a *app) tellReplayed(r tidemark.Replayed, dryRun bool) {
	text := outcomeTexts[r.Outcome][0]
	if dryRun {
		text = outcomeTexts[r.Outcome][1]
	}
	if r.Reason != "" {
		text += ": " + fit(r.Reason, 300)
	}
	a.wrap(7, fmt.Sprintf("%5d  ", r.ID), letterName(r.Stage, r.Table, r.Row, r.DocumentID)+": "+text)
}

// letterName is what a failure is about.
func letterName(stage, table, row, id string) string {
	switch {
	case id != "" || row != "":
		return table + ", " + rowOr(row, id)
	case table != "":
		return "the whole stage " + strconv.Quote(stage) + " of " + table
	default:
		return "the whole stage " + strconv.Quote(stage)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) tellReplay(s settings, outcomes map[string]int64, dryRun bool) {
	if len(outcomes) == 0 {
		a.out.printf("There is nothing to replay.\n")
		return
	}
	var parts []string
	for _, o := range []string{"requested", "applied", "waiting", "superseded", "failed"} {
		if outcomes[o] > 0 {
			parts = append(parts, thousands(outcomes[o])+" "+o)
		}
	}
	verdict := "Replayed"
	if dryRun {
		verdict = "Nothing was changed; a replay would be"
	}
	a.out.printf("\n%s: %s.\n", verdict, strings.Join(parts, ", "))
	if !dryRun && outcomes["requested"]+outcomes["waiting"] > 0 {
		a.next("sync", s, "remote", "store")
	}
}

func (a *app) discardFailed() *cobra.Command {
	var all bool
	var f tidemark.DeadLetterFilter
	cmd := a.takes(&cobra.Command{
		Use:   "discard ID… | --all | --stage STAGE | --table TABLE --db FILE",
		Short: "give some up: not counted and not tried again until they change",
		Long: `discard gives failures up. A row stays on this device only and a document is not
applied here, until it changes; nothing is deleted. "list --discarded" lists
them, "replay ID" tries one again.`,
		Args: func(cmd *cobra.Command, args []string) error { return choosesLetters(cmd, args, all, f) },
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			_, db, err := a.chosenLetters(cmd, args, &f)
			if err != nil {
				return err
			}
			defer db.Close()
			n, err := tidemark.DiscardDeadLetters(ctx, db.DB, f)
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			a.out.printf("%s discarded.\n", count(n, "failure was", "failures were"))
			return nil
		},
	}, "db")
	choosing(cmd, &f)
	cmd.Flags().BoolVar(&all, "all", false, "discard all")
	return cmd
}

// choosesLetters is the Args of a command that takes ids, or a choice by flags.
func choosesLetters(cmd *cobra.Command, args []string, all bool, f tidemark.DeadLetterFilter) error {
	if (len(args) > 0) == (all || f.Stage != "" || f.Table != "") {
		return misuse("%s takes either ids, or --all, --stage or --table: `%s` lists what there is", cmd.Name(), cmd.Parent().CommandPath())
	}
	return checkStage(f.Stage)
}

// chosenLetters completes the filter and opens the database, which the caller closes.
func (a *app) chosenLetters(cmd *cobra.Command, args []string, f *tidemark.DeadLetterFilter) (s settings, db *database, err error) {
	if len(args) > 0 {
		if f.IDs, err = parseIDs(args); err != nil {
			return s, nil, err
		}
	}
	if s, db, err = a.attached(cmd); err != nil {
		return s, nil, err
	}
	if err := db.knows(cmd.Context(), f.Table); err != nil {
		return s, nil, errors.Join(err, db.Close())
	}
	return s, db, nil
}
