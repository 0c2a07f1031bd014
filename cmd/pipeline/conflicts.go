package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

const aboutConflicts = `A conflict is a row that was changed here and, before the two met, on another
device. One version won; both are kept, with who won and why, until somebody
discards them: nothing goes by itself. "pipeline status" counts them.

  winner    local: the version of this device; server: the other one; merged:
            two became one; restored: "conflicts restore" put another in place`

func (a *app) conflicts() *cobra.Command {
	cmd := a.listConflicts("conflicts [show ID | restore ID… | discard ID…] --db FILE")
	cmd.Short = "list, show and restore versions that lost"
	cmd.Long = aboutConflicts + `

Without a command it lists them, the newest first. --json prints one Conflict
object a line: id, table, documentId, row, winner, reason, detectedOn,
restoredOn, local, server (updatedOn, updatedBy, deleted, values, parents) and
differing. A BLOB is {"bytes": BASE64}, a float has a point or an exponent.`
	cmd.Args = noSuchCommand
	list := a.listConflicts("list --db FILE [--table TABLE] [--limit N] [--json]")
	list.Short, list.Long, list.Args = "list them, the newest first", aboutConflicts, noArguments
	cmd.AddCommand(list, a.showConflict(), a.restoreConflicts(), a.discardConflicts())
	return cmd
}

// attached opens the database that the settings name, if `pipeline attach` was run on
// it. The caller closes it.
func (a *app) attached(cmd *cobra.Command) (settings, *database, error) {
	s, err := a.settings(cmd)
	if err == nil {
		err = s.need("db")
	}
	if err != nil {
		return s, nil, err
	}
	db, err := a.openDatabase(cmd.Context(), s.db)
	if err != nil {
		return s, nil, err
	}
	if err := db.attached(cmd.Context()); err != nil {
		return s, nil, errors.Join(err, db.Close())
	}
	return s, db, nil
}

// knows refuses a table that the database never had.
func (db *database) knows(ctx context.Context, table string) error {
	if table == "" {
		return nil
	}
	var yes bool
	err := db.DB.DB.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM tidemark_tables WHERE tableName = ?1 COLLATE NOCASE)
		OR EXISTS (SELECT 1 FROM tidemark_conflicts WHERE tableName = ?1 COLLATE NOCASE)
		OR EXISTS (SELECT 1 FROM tidemark_dead_letters WHERE tableName = ?1 COLLATE NOCASE)`, table).Scan(&yes)
	if err == nil && !yes {
		err = fmt.Errorf("there is no table %q: check the name", table)
	}
	return db.failed(explain(err))
}

func (a *app) listConflicts(use string) *cobra.Command {
	var asJSON bool
	var f tidemark.ConflictFilter
	cmd := a.takes(&cobra.Command{
		Use: use,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if f.Limit < 0 {
				return misuse("--limit takes a number from 0, which is all")
			}
			s, db, err := a.attached(cmd)
			if err != nil {
				return err
			}
			defer db.Close()
			if err := db.knows(ctx, f.Table); err != nil {
				return err
			}
			n := int64(0)
			for c, err := range tidemark.Conflicts(ctx, db.DB, f) {
				if err != nil {
					return db.failed(cause(ctx, err))
				}
				n++
				if asJSON {
					if err := a.out.line(c); err != nil {
						return err
					}
					continue
				}
				a.tellConflict(n == 1, c)
			}
			switch {
			case asJSON:
			case n == 0:
				a.out.printf("%s has no conflicts%s.\n", plain(db.path), of(f.Table))
			default:
				a.out.printf("\n%s.\n", count(n, "conflict", "conflicts"))
				a.next("conflicts show ID", s)
			}
			return nil
		},
	}, "db")
	cmd.Flags().StringVar(&f.Table, "table", "", "only those of `TABLE`")
	cmd.Flags().IntVar(&f.Limit, "limit", 0, "list at most `N`; 0 is all")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object a line on standard output")
	return cmd
}

func of(table string) string {
	if table == "" {
		return ""
	}
	return " of table " + plain(table)
}

// day is a moment on a line of a table.
func day(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

func (a *app) tellConflict(first bool, c tidemark.Conflict) {
	row := "%5s  %-16s  %-13s  %-12s  %-8s  %s\n"
	if first {
		a.out.printf(row, "id", "decided", "table", "row", "winner", "differs in")
	}
	differs := strings.Join(c.Differing, ", ")
	if c.RestoredOn != nil {
		differs = "(restored)"
	}
	a.out.printf(row, strconv.FormatInt(c.ID, 10), day(c.DetectedOn), fit(c.Table, 13), fitRow(rowOr(c.Row, c.DocumentID), 12), fit(c.Winner, 8), fit(differs, 16))
}

// fitRow is a row's key on so few columns that its name is cut before its value.
func fitRow(row string, width int) string {
	row = fit(row, 1<<12)
	name, value, ok := strings.Cut(row, " ")
	left := width - utf8.RuneCountInString(value) - 1
	if utf8.RuneCountInString(row) <= width || !ok || left < 2 {
		return fit(row, width)
	}
	return fit(name, left) + " " + value
}

// rowOr names a row by its key, or by its document where it has none.
func rowOr(row, document string) string {
	if row == "" {
		return document
	}
	return row
}

func (a *app) showConflict() *cobra.Command {
	var asJSON bool
	cmd := a.takes(&cobra.Command{
		Use:   "show ID --db FILE [--json]",
		Short: "show one: both versions, who made them, who won and why",
		Long:  "show prints the columns in which the two versions differ, side by side, cut to\nthe width of the screen; --json prints the whole Conflict object.",
		Args:  oneID,
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
			c, err := tidemark.ReadConflict(ctx, db.DB, ids[0])
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			if asJSON {
				return a.out.json(c)
			}
			me, err := tidemark.ReadStatus(ctx, db.DB)
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			a.tellVersions(c, me.DeviceID)
			if c.Lost() == "" {
				a.next(fmt.Sprintf("conflicts restore %d --side local|server", c.ID), s)
			} else {
				a.next(fmt.Sprintf("conflicts restore %d", c.ID), s)
			}
			return nil
		},
	}, "db")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one Conflict object on standard output")
	return cmd
}

var winners = map[string]string{
	"local": "the version of this device", "server": "the version of the server", "merged": "both: two became one",
	"restored": "what was restored over it",
}

func (a *app) tellVersions(c tidemark.Conflict, me string) {
	a.out.printf("Conflict %d: %s, %s\n\n", c.ID, plain(c.Table), plain(rowOr(c.Row, c.DocumentID)))
	row := func(name, text string) { a.wrap(14, fmt.Sprintf("  %-11s", name), text) }
	row("decided", ago(c.DetectedOn))
	if won, ok := winners[c.Winner]; ok {
		row("winner", won)
	} else {
		row("winner", c.Winner)
	}
	row("why", c.Reason)
	if c.RestoredOn != nil {
		row("restored", ago(*c.RestoredOn))
	}
	heads := [2]string{"on this device", "on the server"}
	if c.Winner == "restored" {
		heads = [2]string{"before", "restored"}
	}
	if lost := c.Lost(); lost == tidemark.LocalSide {
		heads[0] += ", lost"
	} else if lost == tidemark.ServerSide {
		heads[1] += ", lost"
	}
	const width = 31
	line := func(name, left, right string) {
		a.out.printf("  %-11s %-*s  %s\n", fit(name, 11), width, fit(left, width), fit(right, width))
	}
	a.out.printf("\n")
	line("", heads[0], heads[1])
	edited := func(v *tidemark.RowVersion) string {
		switch {
		case v == nil && c.Winner == "merged":
			return "was not here"
		case v == nil:
			return "deleted"
		case v.Deleted:
			return "deleted " + v.UpdatedOn.Local().Format(time.DateTime)
		}
		return v.UpdatedOn.Local().Format(time.DateTime)
	}
	by := func(v *tidemark.RowVersion) string {
		switch {
		case v == nil:
			return ""
		case v.UpdatedBy == me:
			return "this device"
		}
		return "device " + v.UpdatedBy
	}
	line("edited", edited(c.Local), edited(c.Server))
	line("by", by(c.Local), by(c.Server))
	for _, name := range c.Differing {
		left, right := fromDifference(cell(c.Local, name), cell(c.Server, name), width)
		line(name, left, right)
	}
}

// cell writes a version's value of a column for people.
func cell(v *tidemark.RowVersion, column string) string {
	if v == nil || v.Deleted {
		return "-"
	}
	x, ok := v.Values[column]
	if p, isRef := v.Parents[column]; ok && isRef {
		if p.Row == "" {
			return "a row of " + p.Table + " that is not here"
		}
		return p.Table + ", " + p.Row
	}
	if !ok {
		return "-"
	}
	return valueText(x)
}

func valueText(x any) string {
	switch x := x.(type) {
	case nil:
		return "NULL"
	case string:
		if x == "" {
			return "''"
		}
		return x
	case []byte:
		return fmt.Sprintf("%s, x'%x'", count(int64(len(x)), "byte", "bytes"), x[:min(len(x), 64)])
	case float64:
		if x == math.Trunc(x) && math.Abs(x) < 1e15 {
			return strconv.FormatFloat(x, 'f', 1, 64)
		}
		return strconv.FormatFloat(x, 'g', -1, 64)
	}
	return fmt.Sprint(x)
}

// fromDifference leaves out the beginning that two long texts have in common.
func fromDifference(left, right string, width int) (string, string) {
	l, r := []rune(left), []rune(right)
	same := 0
	for same < min(len(l), len(r)) && l[same] == r[same] {
		same++
	}
	if max(len(l), len(r)) <= width || same < width/2 {
		return left, right
	}
	cut := same - width/4
	return "…" + string(l[cut:]), "…" + string(r[cut:])
}

func (a *app) restoreConflicts() *cobra.Command {
	var asJSON bool
	var side string
	cmd := a.takes(&cobra.Command{
		Use:   "restore ID… --db FILE [--side local|server] [--json]",
		Short: "bring the version that lost back, as an edit made here and now",
		Long: `restore makes the version that lost an ordinary edit of this device, as if your
app had written it: its triggers fire, and the next sync uploads it. A row that
is gone is inserted again. What was there before is kept as a conflict in its
turn: restoring that takes the restore back. Doing it twice does nothing more.

The first one that cannot be restored ends it, with the reason: a parent that is
not here, or a row with the same unique key. --json prints one object a line:
table, documentId, row, did (updated, inserted, deleted, nothing) and kept, the
conflict that has what was there before.`,
		Args: someIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			ids, err := parseIDs(args)
			if err != nil {
				return err
			}
			if side != "" && side != string(tidemark.LocalSide) && side != string(tidemark.ServerSide) {
				return misuse("--side takes local or server")
			}
			s, db, err := a.attached(cmd)
			if err != nil {
				return err
			}
			defer db.Close()
			changed := false
			for _, id := range ids {
				r, err := tidemark.RestoreConflict(ctx, db.DB, id, tidemark.Side(side))
				if errors.Is(err, tidemark.ErrWhichSide) {
					err = fmt.Errorf("%w: --side local or --side server", err)
				}
				if err != nil {
					return db.failed(cause(ctx, err))
				}
				changed = changed || r.Kept != 0
				if asJSON {
					if err := a.out.line(r); err != nil {
						return err
					}
					continue
				}
				a.tellRestored(id, r)
			}
			if changed && !asJSON {
				a.next("sync", s, "remote", "store")
			}
			return nil
		},
	}, "db")
	cmd.Flags().StringVar(&side, "side", "", "`SIDE` to restore, local or server, instead of the one that lost")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one object a line on standard output")
	return cmd
}

func (a *app) tellRestored(id int64, r tidemark.RestoredConflict) {
	name := r.Table + ", " + rowOr(r.Row, r.DocumentID)
	if r.Kept == 0 {
		a.wrap(0, "", fmt.Sprintf("Conflict %d: %s is like that already; nothing was done.", id, name))
		return
	}
	a.wrap(0, "", fmt.Sprintf("Conflict %d: %s was %s; restoring conflict %d takes that back.", id, name, r.Did, r.Kept))
}

func (a *app) discardConflicts() *cobra.Command {
	var f tidemark.ConflictFilter
	var older age
	cmd := a.takes(&cobra.Command{
		Use:   "discard ID… | --older-than AGE --db FILE [--table TABLE]",
		Short: "forget some: the version that lost is gone then",
		Long: `discard forgets conflicts, by their ids or by their age: --older-than 90d, 12h.
The rows themselves stay as they are. What lost is gone then for good.`,
		Args: func(cmd *cobra.Command, args []string) error {
			byAge := cmd.Flags().Changed("older-than")
			if byAge == (len(args) > 0) {
				return misuse("discard takes either the ids of conflicts or --older-than AGE")
			}
			if !byAge && f.Table != "" {
				return misuse("--table goes with --older-than")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			var err error
			if len(args) > 0 {
				if f.IDs, err = parseIDs(args); err != nil {
					return err
				}
			} else {
				f.Before = time.Now().Add(-time.Duration(older))
			}
			_, db, err := a.attached(cmd)
			if err != nil {
				return err
			}
			defer db.Close()
			if err := db.knows(ctx, f.Table); err != nil {
				return err
			}
			for _, id := range f.IDs { // all or nothing
				if _, err := tidemark.ReadConflict(ctx, db.DB, id); errors.Is(err, tidemark.ErrNotFound) {
					return db.failed(err)
				}
			}
			n, err := tidemark.DiscardConflicts(ctx, db.DB, f)
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			a.out.printf("%s discarded.\n", count(n, "conflict was", "conflicts were"))
			return nil
		},
	}, "db")
	cmd.Flags().Var(&older, "older-than", "those that were decided more than `AGE` ago, such as 90d or 12h")
	cmd.Flags().StringVar(&f.Table, "table", "", "only those of `TABLE`")
	return cmd
}

// age is a duration that may be in days.
type age time.Duration

// Set implements pflag.Value.
func (d *age) Set(s string) error {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		*d = age(time.Duration(n) * 24 * time.Hour)
		return err
	}
	x, err := time.ParseDuration(s)
	if err == nil && x < 0 {
		err = errors.New("negative")
	}
	*d = age(x)
	return err
}

// String implements pflag.Value.
func (d *age) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

// Type implements pflag.Value.
func (d *age) Type() string { return "age" }

func oneID(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return misuse("%s takes one id: `%s` lists them", cmd.Name(), cmd.Parent().CommandPath())
	}
	return nil
}

func someIDs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return misuse("%s takes ids: `%s` lists them", cmd.Name(), cmd.Parent().CommandPath())
	}
	return nil
}

func parseIDs(args []string) ([]int64, error) {
	ids := make([]int64, len(args))
	for i, s := range args {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 1 {
			return nil, misuse("%s is no id: ids are whole numbers from 1", shell(plain(s)))
		}
		ids[i] = n
	}
	return ids, nil
}
