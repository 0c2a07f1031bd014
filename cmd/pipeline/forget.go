package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

// forgetFlags are what the command line says.
type forgetFlags struct{ scope, dryRun, yes, discard, keepFile, asJSON bool }

func (a *app) forget() *cobra.Command {
	var f forgetFlags
	cmd := a.takes(&cobra.Command{
		Use:   "forget --db FILE --remote URL --store URL [--scope] [--dry-run]",
		Short: "forget this device, or with --scope everything of everybody",
		Long: `forget shows what it will do and asks before it does it.

It takes name, platform and version out of this device's record, says there that
the device will not come back, and removes the database FILE with what lies
beside it. Rows that this device uploaded are everybody's and stay. With rows
that exist nowhere else it refuses, unless --discard-unsynced gives them up.

--scope removes the documents, the devices and the snapshots of all devices. The
other devices keep their files, are told at their next sync that everything was
forgotten, and sync no more. A marker in Devices stays, for those who hear of it
late. --db may be left out then, and its FILE may be gone. A store with another
scope's snapshots is refused. It costs two reads and a delete a document.

What was cut off goes on when it is run again. At the end it says what remains.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.asJSON && !f.yes && !f.dryRun {
				return misuse("--json asks nobody: it needs --dry-run or --yes")
			}
			if f.scope {
				return a.forgetScope(cmd, f)
			}
			return a.forgetDevice(cmd, f)
		},
	}, "db", "remote", "store")
	cmd.Flags().BoolVar(&f.scope, "scope", false, "forget everything below the remote's scope and in the store")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only say what would go")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&f.discard, "discard-unsynced", false, "give up rows that exist nowhere else")
	cmd.Flags().BoolVar(&f.keepFile, "keep-file", false, "leave the database file where it is; it syncs no more")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one Forgotten object on standard output")
	return cmd
}

func (a *app) forgetDevice(cmd *cobra.Command, f forgetFlags) error {
	ctx := cmd.Context()
	w, plan, err := a.openToForget(cmd, f)
	if err != nil {
		return err
	}
	defer w.close()
	if !f.asJSON {
		a.out.printf("To be forgotten is this device, %s.\n\n", plain(plan.DeviceID))
		a.item("goes", "name, platform and version in its record")
		a.tellFile(w, plan, f)
	}
	if f.dryRun {
		plan.Remains = append(plan.Remains, kept(w, f)...)
		return a.tellForgotten(plan, f)
	}
	if err := a.refuseUnsynced(w, plan, f); err != nil {
		return err
	}
	if err := a.confirm(ctx, f, "forget"); err != nil {
		return err
	}
	done, err := a.forgetAgreed(ctx, w, f)
	if err != nil {
		return err
	}
	done.Remains = append(done.Remains, kept(w, f)...)
	if err := a.wipe(ctx, w, f); err != nil {
		return err
	}
	return a.tellForgotten(done, f)
}

func (a *app) forgetScope(cmd *cobra.Command, f forgetFlags) error {
	ctx := cmd.Context()
	s, err := a.settings(cmd)
	if err == nil {
		err = s.need("remote", "store")
	}
	if err != nil {
		return err
	}
	remoteURL, err := parseRemote(s.remote)
	if err != nil {
		return err
	}
	var w *work
	var opts []tidemark.ForgetOption
	var local tidemark.Forgotten
	if there, err := existsFile(s.db.text); err != nil {
		return err
	} else if there { // it may be gone already, by an earlier forget
		if w, local, err = a.openToForget(cmd, f); err != nil {
			return err
		}
		defer w.close()
		graph, err := w.pipeline.Topology(ctx)
		if err != nil {
			return w.db.failed(explain(err))
		}
		for _, t := range graph.Tables {
			opts = append(opts, tidemark.ForgetTables(t.Name))
		}
	}
	remote, store, closer, err := openBoth(ctx, s)
	if err != nil {
		return err
	}
	defer closer()
	var removed atomic.Int64
	a.progress.begin("looking at what is there", nil)
	plan, err := tidemark.ForgetScope(ctx, remote, store, append(opts, tidemark.ForgetDryRun())...)
	a.progress.end()
	if err != nil {
		return cause(ctx, err)
	}
	if !f.asJSON {
		a.tellScope(plan, s.remote.text, s.store.text)
		if w != nil {
			a.tellFile(w, local, f)
		}
	}
	if f.dryRun {
		plan.Remains = append(plan.Remains, kept(w, f)...)
		return a.tellForgotten(plan, f)
	}
	if w != nil {
		if err := a.refuseUnsynced(w, local, f); err != nil {
			return err
		}
	}
	if err := a.confirm(ctx, f, remoteURL.path); err != nil {
		return err
	}
	if w != nil { // the question may have been open for long
		if local, err = w.pipeline.Forget(ctx, tidemark.ForgetDryRun()); err != nil {
			return w.db.failed(cause(ctx, explain(err)))
		}
		if err := a.refuseUnsynced(w, local, f); err != nil {
			return err
		}
	}
	a.progress.begin("forgetting", func() string { return thousands(removed.Load()) + " removed" })
	done, err := tidemark.ForgetScope(ctx, remote, store, append(opts, tidemark.ForgetProgress(removed.Store))...)
	a.progress.end()
	if err != nil {
		return cause(ctx, fmt.Errorf("it is not done yet, run it again: %w", err))
	}
	if w != nil {
		if _, err := a.forgetAgreed(ctx, w, f); err != nil {
			return fmt.Errorf("the scope is forgotten, and the file stays: %w", err)
		}
		if err := a.wipe(ctx, w, f); err != nil {
			return err
		}
	}
	done.Remains = append(done.Remains, kept(w, f)...)
	return a.tellForgotten(done, f)
}

// forgetAgreed forgets the device, and no more than what was agreed to: rows may have
// been written while the question was open. A file that stays keeps them.
func (a *app) forgetAgreed(ctx context.Context, w *work, f forgetFlags) (tidemark.Forgotten, error) {
	var opts []tidemark.ForgetOption
	if f.keepFile {
		now, err := w.pipeline.Forget(ctx, tidemark.ForgetDryRun())
		if err != nil {
			return now, w.db.failed(cause(ctx, explain(err)))
		}
		if err := a.refuseUnsynced(w, now, f); err != nil {
			return now, err
		}
	}
	if f.discard || f.keepFile {
		opts = append(opts, tidemark.ForgetUnsynced())
	}
	done, err := w.pipeline.Forget(ctx, opts...)
	if refused := a.refuseUnsynced(w, done, f); errors.Is(err, tidemark.ErrUnsynced) && refused != nil {
		return done, refused // in the command's words
	}
	return done, w.db.failed(cause(ctx, explain(err)))
}

// openToForget opens everything, and counts what is only here.
func (a *app) openToForget(cmd *cobra.Command, f forgetFlags) (*work, tidemark.Forgotten, error) {
	ctx := cmd.Context()
	s, err := a.settings(cmd)
	if err == nil {
		err = s.need("db")
	}
	if err != nil {
		return nil, tidemark.Forgotten{}, err
	}
	if !f.keepFile {
		if err := removable(s.db.text); err != nil {
			return nil, tidemark.Forgotten{}, err
		}
	}
	if !f.keepFile && !f.dryRun {
		if err := unused(ctx, s.db.text); err != nil {
			return nil, tidemark.Forgotten{}, err
		}
	}
	w, err := a.open(cmd)
	if err != nil {
		return nil, tidemark.Forgotten{}, err
	}
	plan, err := w.pipeline.Forget(ctx, tidemark.ForgetDryRun())
	if err != nil {
		err = w.db.failed(cause(ctx, explain(err)))
		w.close()
		return nil, plan, err
	}
	return w, plan, nil
}

// kept says which files of this machine remain.
func kept(w *work, f forgetFlags) []string {
	if w == nil {
		return nil
	}
	var out []string
	if f.keepFile {
		out = append(out, "The file "+w.db.path+".")
	}
	for _, name := range keptBeside(w.db.path) {
		out = append(out, "The file "+name+", which a restore kept: it is a device of its own.")
	}
	return out
}

// existsFile reports whether there is something of that name, which may be "".
func existsFile(name string) (bool, error) {
	if name == "" {
		return false, nil
	}
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// openBoth opens the remote and the store.
func openBoth(ctx context.Context, s settings) (tidemark.Remote, tidemark.SnapshotStore, func(), error) {
	remoteURL, err := parseRemote(s.remote)
	if err != nil {
		return nil, nil, nil, err
	}
	storeURL, err := parseStore(s.store)
	if err != nil {
		return nil, nil, nil, err
	}
	remote, rc, err := openRemote(ctx, remoteURL)
	if err != nil {
		return nil, nil, nil, err
	}
	store, sc, err := openStore(ctx, storeURL)
	if err != nil {
		return nil, nil, nil, errors.Join(err, rc.Close())
	}
	return remote, store, func() { _ = errors.Join(sc.Close(), rc.Close()) }, nil
}

func (a *app) item(name, text string) { a.wrap(13, "  "+name, text) }

func (a *app) tellScope(p tidemark.Forgotten, remote, store string) {
	a.out.printf("To be forgotten is everything in this remote:\n  %s\n\n", plain(remote))
	var tables []string
	var n int64
	for _, t := range slices.Sorted(maps.Keys(p.Documents)) {
		n += p.Documents[t]
		tables = append(tables, fmt.Sprintf("%s in %s", thousands(p.Documents[t]), fit(t, 40)))
	}
	text := count(n, "document", "documents")
	if n > 0 {
		text += ": " + strings.Join(tables, ", ")
	}
	a.item("goes", text)
	a.item("goes", count(p.Devices, "device", "devices"))
	a.item("goes", fmt.Sprintf("%s of snapshots, %s, in %s", count(p.Objects, "object", "objects"), size(p.ObjectBytes), plain(store)))
	if p.Marked {
		a.item("", "It was begun before; this goes on.")
	}
}

// tellFile says what goes with the file.
func (a *app) tellFile(w *work, p tidemark.Forgotten, f forgetFlags) {
	if f.keepFile {
		a.item("stays", "the file "+w.db.path+", which syncs no more")
	} else {
		a.item("goes", "the file "+w.db.path+", and what lies beside it")
	}
	if p.Unsynced > 0 {
		a.item("only here", count(p.Unsynced, "row or delete that was", "rows and deletes that were")+" never uploaded")
	}
	for _, t := range slices.Sorted(maps.Keys(p.LocalOnly)) {
		a.item("only here", fmt.Sprintf("%s of table %s, which is not synced", count(p.LocalOnly[t], "row", "rows"), fit(t, 40)))
	}
	if p.Conflicts > 0 {
		a.item("only here", count(p.Conflicts, "version that lost a conflict", "versions that lost a conflict"))
	}
}

// tellForgotten says what remains.
func (a *app) tellForgotten(r tidemark.Forgotten, f forgetFlags) error {
	if f.asJSON {
		return a.out.json(r)
	}
	title := "Forgotten. What remains:"
	if f.dryRun {
		title = "Nothing was done. What would remain:"
	}
	a.out.printf("\n%s\n", title)
	for _, text := range r.Remains {
		a.wrap(4, "  -", text)
	}
	return nil
}

func (a *app) refuseUnsynced(w *work, p tidemark.Forgotten, f forgetFlags) error {
	lost := p.Unsynced > 0 && !(f.keepFile && f.scope) || len(p.LocalOnly) > 0 && !f.keepFile
	if f.discard || !lost {
		return nil
	}
	var advice []string
	if p.Unsynced > 0 {
		advice = append(advice, "sync it first")
	}
	if len(p.LocalOnly) > 0 {
		advice = append(advice, "copy away the tables that are not synced ("+strings.Join(slices.Sorted(maps.Keys(p.LocalOnly)), ", ")+")")
	}
	return w.db.failed(messages.Saying(tidemark.ErrUnsynced, "it has rows that are only here: %s, or give them up with --discard-unsynced", strings.Join(advice, " and ")))
}

// confirm wants a word typed, unless --yes says it.
func (a *app) confirm(ctx context.Context, f forgetFlags, word string) error {
	if f.yes {
		return nil
	}
	fmt.Fprintf(a.err, "\nThere is no way back. Type %s to go on: ", plain(word))
	type answer struct {
		text string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := bufio.NewReader(io.LimitReader(os.Stdin, 1<<12)).ReadString('\n')
		answered <- answer{strings.TrimRight(text, "\r\n"), err}
	}()
	select {
	case <-ctx.Done():
		return cause(ctx, ctx.Err())
	case r := <-answered:
		if r.text == word {
			return nil
		}
		if r.err != nil || !term.IsTerminal(int(os.Stdin.Fd())) { // there nobody's Return ended the line
			fmt.Fprintln(a.err)
		}
		return errors.New("nothing was forgotten: the word was not typed (--yes does not ask)")
	}
}
