package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

func (a *app) status() *cobra.Command {
	var asJSON bool
	cmd := a.takes(&cobra.Command{
		Use:   "status --db FILE [--json]",
		Short: "how the database stands, without asking the server",
		Long: `status tells what is left to upload, what waits for a parent or was set aside,
when the last cycle ended, and which snapshot this device knows of. It asks no
server and costs nothing.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
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
			st, err := tidemark.ReadStatus(ctx, db.DB)
			if err != nil {
				return db.failed(cause(ctx, err))
			}
			if asJSON {
				return a.out.json(st)
			}
			a.tellStatus(st)
			return a.tellStanding(ctx, db, st, true)
		},
	}, "db")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one Status object on standard output")
	return cmd
}

func (a *app) tellStatus(st tidemark.Status) {
	row := func(name, format string, args ...any) {
		a.out.printf("  %-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("device", "%s", plain(st.DeviceID))
	row("tables", "%s", thousands(int64(st.Tables)))
	row("dirty", "%s", thousands(st.Dirty))
	row("waiting", "%s", thousands(st.Waiting))
	row("set aside", "%s", thousands(st.Dead))
	row("conflicts", "%s", thousands(st.Conflicts))
	if st.LastCycle == nil {
		row("last cycle", "none yet")
	} else {
		row("last cycle", "%s", ago(st.LastCycle.EndedOn))
	}
	if st.Snapshot == nil {
		row("snapshot", "none known")
	} else {
		by := "another device, Big Brother"
		if st.BigBrother != nil && *st.BigBrother == st.DeviceID {
			by = "this device, Big Brother"
		}
		row("snapshot", "%s, by %s", ago(st.Snapshot.MadeOn), by)
	}
	switch off := time.Duration(st.ClockOffsetMs) * time.Millisecond; {
	case off > time.Minute:
		row("clock", "%v behind the server's: set it", off.Round(time.Second))
	case off < -time.Minute:
		row("clock", "%v ahead of the server's: set it", -off.Round(time.Second))
	default:
		row("clock", "right")
	}
	a.out.printf("\n")
}

// ago is a moment and how long it has passed.
func ago(t time.Time) string {
	d := time.Since(t)
	text := t.Local().Format(time.DateTime)
	switch {
	case d < 0:
		return text
	case d < time.Minute:
		return text + ", just now"
	case d < time.Hour:
		return text + ", " + count(int64(d.Minutes()), "minute ago", "minutes ago")
	case d < 48*time.Hour:
		return text + ", " + count(int64(d.Hours()), "hour ago", "hours ago")
	default:
		return text + ", " + count(int64(d.Hours()/24), "day ago", "days ago")
	}
}

// stamp is a moment in Unix ms.
func stamp(ms int64) string { return ago(time.UnixMilli(ms)) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
