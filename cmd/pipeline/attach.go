package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

func (a *app) attach() *cobra.Command {
	var reset bool
	var include []string
	cmd := a.takes(&cobra.Command{
		Use:   "attach --db FILE [--exclude TABLE]… [--include TABLE]… [--reset]",
		Short: "make a database ready for sync: once, and whenever you like",
		Long: `attach makes an existing SQLite database ready for sync. Every table gets the
columns that tell what changed (createdOn, updatedOn, updatedBy, serverId,
isDirty and two of ours), and triggers that keep them right whatever program
writes. All rows are marked dirty: the next sync uploads them.

It is done as a whole or not at all, and doing it again does only what is new.
The file gets a write-ahead log (journal mode WAL), which keeps readers and
writers out of each other's way and makes a file beside it that ends in -wal.
Your own columns and rows stay as they are. Who wins when two devices change a
row can be said for each table under policies in tidemark.yaml.

Attach the file once. Other devices restore, or start with the same tables and
no rows: rows that two files had before are different rows.

What is excluded stays out, also when nothing excludes it any more, until
--include names it. Excluded tables are not synced, but they are in the
snapshots, and on every device restored from one.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("db")
			}
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			db, err := a.openDatabase(ctx, s.db)
			if err != nil {
				return err
			}
			defer db.Close()
			if err := db.inhabited(ctx); err != nil {
				return err
			}
			var tables []tidemark.Table
			for _, t := range s.exclude {
				tables = append(tables, tidemark.Table{Name: t, Exclude: true})
			}
			for _, t := range include {
				tables = append(tables, tidemark.Table{Name: t, Include: true})
			}
			for _, t := range sortedKeys(s.policies) {
				tables = append(tables, tidemark.Table{Name: t, Policy: s.policies[t]})
			}
			was, err := db.excluded(ctx)
			if err != nil && !strings.Contains(err.Error(), "no such table") { // never attached
				return err
			}
			a.progress.begin("attaching "+s.db.text, nil)
			done, err := tidemark.Attach(ctx, db.DB, tables...)
			a.progress.end()
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			if reset {
				if err := tidemark.Reset(ctx, db.DB); err != nil {
					return db.failed(cause(ctx, err))
				}
			}
			now, err := db.choices(ctx)
			if err != nil {
				return err
			}
			others, err := db.otherObjects(ctx)
			if err != nil {
				return err
			}
			for _, t := range include {
				if !slices.ContainsFunc(was, func(x string) bool { return strings.EqualFold(x, t) }) {
					done.Warnings = append(done.Warnings, "table "+strconv.Quote(t)+" was not excluded: --include only takes back what was")
				}
			}
			a.tellAttached(s, done, now, others, reset)
			return nil
		},
	}, "db", "exclude")
	cmd.Flags().StringArrayVar(&include, "include", nil, "excluded `TABLE` to take back; may be repeated")
	cmd.Flags().BoolVar(&reset, "reset", false, "forget the server, to start over with another one")
	return cmd
}

func (a *app) tellAttached(s settings, d tidemark.Attached, c choices, others []string, reset bool) {
	name := plain(s.db.text)
	tables := count(int64(len(d.Tables)), "table", "tables")
	switch {
	case len(d.Tables) == 0:
		a.out.printf("%s has no table that could be synced: all are left out.\n", name)
	case reset:
		a.wrap(0, "", fmt.Sprintf("%s has forgotten its server: %s, every row is dirty, and the next sync may go to another. A scope that was forgotten takes nobody back.", name, tables))
		a.out.printf("\n")
		a.list("tables", d.Tables)
	default:
		a.out.printf("%s is attached: %s, %s marked dirty.\n\n", name, tables, count(d.Rows, "row", "rows"))
		a.list("tables", d.Tables)
	}
	for _, l := range []struct {
		name   string
		tables []string
	}{
		{"new", d.New}, {"rebuilt", d.Rebuilt}, {"gained columns", d.Gained}, {"gone", d.Vanished}, {"left out", append(d.Excluded, others...)},
	} {
		if l.name == "new" && len(l.tables) == len(d.Tables) {
			continue // says nothing that is not said
		}
		a.list(l.name, l.tables)
	}
	if len(d.Tables) > 0 {
		a.wrap(18, "  policies", c.inForce())
	}
	if d.WAL {
		a.wrap(18, "  journal", "WAL from now on: the newest rows may be in the file beside it that ends in -wal; to copy the database, use VACUUM INTO")
	}
	if len(d.New) > 0 && d.Rows > 0 && !reset {
		a.out.printf("\nThe rows that were there are this file's. Attach no other copy of them, or they\nare there twice: other devices restore, or start without rows.\n")
	}
	if len(d.Dangling) > 0 {
		a.out.printf("\nReferences to rows that do not exist; such rows stay here and are not uploaded:\n")
		for _, x := range d.Dangling {
			a.wrap(2, "", x.Table+" ("+strings.Join(x.Columns, ", ")+"): "+count(x.Rows, "row refers", "rows refer")+" to no row of "+x.Parent+", such as the row "+x.First)
		}
	}
	if len(d.Warnings) > 0 {
		a.out.printf("\nPlease note:\n")
		for _, w := range d.Warnings {
			a.wrap(2, "", w)
		}
	}
	if reset {
		s.remote, s.store = setting{}, setting{} // it is to name another
	}
	if len(d.Tables) > 0 {
		a.next("sync", s, "remote", "store")
	}
}

// list prints names under a heading, wrapped.
func (a *app) list(heading string, names []string) {
	if len(names) > 0 {
		a.wrap(18, "  "+heading, strings.Join(names, ", "))
	}
}

// wrap prints a text in at most 80 columns, all of it indented, after a heading.
func (a *app) wrap(indent int, heading, text string) {
	a.out.printf("%s\n", folded(indent, heading, text, 80))
}

// next tells the command that comes next, with what it needs and does not know.
func (a *app) next(command string, s settings, more ...string) {
	line := []string{"pipeline", command}
	if a.given.config != "" {
		line = append(line, "--config", shell(a.given.config))
	}
	if s.db.from == "--db" && !slices.Contains(more, "db") {
		line = append(line, "--db", shell(s.db.text))
	}
	for _, n := range more {
		v := map[string]setting{"db": s.db, "remote": s.remote, "store": s.store}[n]
		switch {
		case n == "at":
			line = append(line, "--at", "GENERATION|TIME")
		case v.text == "" && n == "db":
			line = append(line, "--db", "FILE")
		case v.text == "":
			line = append(line, "--"+n, "URL")
		case strings.HasPrefix(v.from, "--"):
			line = append(line, "--"+n, shell(v.text))
		}
	}
	a.out.printf("\nNext: %s\n", plain(strings.Join(line, " ")))
}
