package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/file"
)

func (a *app) doctor() *cobra.Command {
	var asJSON bool
	var sample int
	cmd := a.takes(&cobra.Command{
		Use:   "doctor --db FILE [--remote URL] [--store URL] [--json]",
		Short: "look for what is wrong, and say how to mend it",
		Long: `doctor checks the database (integrity, triggers, foreign keys, room), the server
(reachable, rights, clock, documents that no device wrote, devices that hold
back old tombstones) and the store (rights, conditional writes, unfinished
uploads, the newest snapshot). What is not named is left out. It changes
nothing: in the store it writes one small object and removes it.

It costs a read for each device and up to --sample reads for each table, and
about ten requests to the store.

Exit code 0: no problem, perhaps warnings. 1: a problem. --json prints one
object: problems, warnings, and findings with check, level (ok, warning,
problem), text and remedy.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if sample < 0 {
				return misuse("--sample takes no negative number")
			}
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("db")
			}
			if err != nil {
				return err
			}
			return a.examine(cmd, s, sample, asJSON)
		},
	}, "db", "remote", "store", "key-file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object on standard output")
	cmd.Flags().IntVar(&sample, "sample", 20, "look at up to `N` documents of each table; 0 for none")
	return cmd
}

// diagnosis is what doctor prints with --json.
type diagnosis struct {
	Problems int                `json:"problems"`
	Warnings int                `json:"warnings"`
	Findings []tidemark.Finding `json:"findings"`
}

func (a *app) examine(cmd *cobra.Command, s settings, sample int, asJSON bool) error {
	ctx := cmd.Context()
	out := diagnosis{Findings: []tidemark.Finding{}}
	tell := func(f tidemark.Finding) {
		switch f.Level {
		case tidemark.Problem:
			out.Problems++
		case tidemark.Warning:
			out.Warnings++
		case tidemark.OK:
		}
		out.Findings = append(out.Findings, f)
		if !asJSON {
			a.progress.end()
			a.tellFinding(f)
			a.progress.begin("looking further", nil)
		}
	}
	key, err := s.key()
	if err != nil {
		return err
	}
	var unopened []tidemark.Finding // they stand below the heading
	remote, store, closers, err := a.openBoth(cmd, s, func(f tidemark.Finding) { unopened = append(unopened, f) })
	defer func() {
		for _, c := range slices.Backward(closers) {
			_ = c.Close() // it has only looked
		}
	}()
	if err != nil {
		return err
	}
	if !asJSON {
		a.tellCost(s, remote != nil, store != nil, sample)
	}
	for _, f := range unopened {
		tell(f)
	}
	db, err := a.openDatabase(ctx, s.db)
	if errors.As(err, new(usageError)) {
		return err
	}
	a.progress.begin("looking at "+s.db.text, nil)
	defer a.progress.end()
	checkup := tidemark.Checkup{Remote: remote, Store: store, Encryption: key, Sample: sample}
	look := tidemark.Doctor(ctx, nil, checkup)
	if err != nil {
		tell(tidemark.Finding{Check: "file", Level: tidemark.Problem, Text: err.Error(), Remedy: remedyFor(err)})
	} else {
		closers = append(closers, db)
		look = tidemark.Doctor(ctx, db.DB, checkup)
	}
	for f := range look {
		if ctx.Err() != nil {
			return cause(ctx, ctx.Err())
		}
		tell(f)
	}
	a.progress.end()
	if asJSON {
		if err := a.out.json(out); err != nil {
			return err
		}
	} else {
		a.out.printf("\n%s\n", verdict(out))
	}
	if out.Problems > 0 {
		return toldError{errors.New("there are problems")}
	}
	return nil
}

// openBoth opens what is named; what cannot be opened is a finding.
func (a *app) openBoth(cmd *cobra.Command, s settings, tell func(tidemark.Finding)) (remote tidemark.Remote, store tidemark.SnapshotStore, closers []io.Closer, err error) {
	ctx := cmd.Context()
	failed := func(check string, u address, err error) error {
		if errors.As(err, new(usageError)) {
			return err
		}
		tell(tidemark.Finding{Check: check, Level: tidemark.Problem, Text: err.Error(), Remedy: u.remedyFor(err)})
		return nil
	}
	var remoteURL, storeURL address
	if s.remote.text != "" {
		if remoteURL, err = parseRemote(s.remote); err != nil {
			return nil, nil, nil, err
		}
	}
	if s.store.text != "" {
		if storeURL, err = parseStore(s.store); err != nil {
			return nil, nil, nil, err
		}
	}
	if s.remote.text != "" {
		err := remoteURL.exists()
		if err == nil {
			var c io.Closer
			if remote, c, err = openRemote(ctx, remoteURL); err == nil {
				closers = append(closers, c)
			}
		}
		if err != nil && failed("server", remoteURL, err) != nil {
			return nil, nil, closers, err
		}
	}
	if s.store.text != "" {
		err := storeURL.exists()
		if err == nil {
			var c io.Closer
			if store, c, err = openStore(ctx, storeURL); err == nil {
				closers = append(closers, c)
			}
		}
		if err != nil && failed("store", storeURL, err) != nil {
			return nil, nil, closers, err
		}
	}
	return remote, store, closers, nil
}

// exists fails when a folder is not there, which opening it would make.
func (u address) exists() error {
	if u.scheme != "file" {
		return nil
	}
	return file.Exists(u.path)
}

// remedyFor is remedyFor of what is opened by its URL.
func (u address) remedyFor(err error) string {
	if u.scheme == "file" && errors.Is(err, tidemark.ErrUnauthorized) {
		return "give this user the right to read and write the folder and its files"
	}
	return remedyFor(err)
}

func remedyFor(err error) string {
	switch {
	case errors.Is(err, tidemark.ErrNotFound):
		return "correct the URL, or do what the error says; the first sync makes a folder that is new"
	case errors.Is(err, tidemark.ErrUnavailable):
		return "check the network, the URL and the server"
	case errors.Is(err, tidemark.ErrUnauthorized):
		return "sign in, as the error says"
	case errors.Is(err, tidemark.ErrNotDatabase):
		return "check the name; a damaged file is kept, and the newest snapshot restored beside it (pipeline restore)"
	case errors.Is(err, tidemark.ErrReadOnly):
		return "give this user the right to read and write the file and its folder"
	case errors.Is(err, tidemark.ErrLocked):
		return "find the program that holds a transaction open, and end it"
	}
	return "mend what the error names"
}

// tellCost says what is asked of whom, before it is.
func (a *app) tellCost(s settings, remote, store bool, sample int) {
	name := []rune(fit(s.db.text, 1<<12))
	if len(name) > 80 { // the end of a path says more
		name = append([]rune{'…'}, name[len(name)-79:]...)
	}
	a.out.printf("%s\n", string(name))
	missing := func(name, flag string, given setting) string {
		if given.text != "" {
			return "the " + name + " could not be opened"
		}
		return "no " + flag
	}
	noRemote, noStore := missing("server", "--remote", s.remote), missing("store", "--store", s.store)
	switch {
	case remote && store:
		a.wrap(2, "  ", fmt.Sprintf("costs a read for each device, up to %d for each table, and about ten requests to the store", sample))
	case remote:
		a.wrap(2, "  ", fmt.Sprintf("costs a read for each device, and up to %d for each table; %s: nothing of it is checked", sample, noStore))
	case store:
		a.wrap(2, "  ", "costs about ten requests to the store; "+noRemote+": nothing of it is checked")
	case s.remote.text != "" || s.store.text != "":
		a.wrap(2, "  ", "costs nothing; "+noRemote+", and "+noStore+": only the file is checked")
	default:
		a.wrap(2, "  ", "costs nothing; neither --remote nor --store: only the file is checked")
	}
	a.out.printf("\n")
}

func (a *app) tellFinding(f tidemark.Finding) {
	const indent = 25
	a.wrap(indent, fmt.Sprintf("  %-7s  %-12s", f.Level, fit(f.Check, 12)), fit(f.Text, 600))
	if f.Remedy != "" {
		a.wrap(indent, strings.Repeat(" ", indent-2)+"→ ", f.Remedy)
	}
}

func verdict(d diagnosis) string {
	count := func(n int, one, many string) string { return count(int64(n), one, many) }
	switch {
	case d.Problems > 0 && d.Warnings > 0:
		return count(d.Problems, "problem", "problems") + ", " + count(d.Warnings, "warning", "warnings") + "."
	case d.Problems > 0:
		return count(d.Problems, "problem", "problems") + "."
	case d.Warnings > 0:
		return "No problem, " + count(d.Warnings, "warning", "warnings") + "."
	}
	return "All is well."
}
