package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

func (a *app) status() *cobra.Command {
	var asJSON bool
	cmd := a.takes(&cobra.Command{
		Use:   "status --db FILE [--json]",
		Short: "how the database stands, without asking the server",
		Long: `status tells whether the database is in step and, if not, since when and why:
what is left to upload, what waits for a parent or was set aside, how the last
sync ended; and which snapshot this device knows of, and who makes the next. It
asks no server and costs nothing; "pipeline doctor" looks further.`,
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
			chosen, err := db.choices(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				cost, err := billOf(ctx, db, s)
				if err != nil {
					return err
				}
				return a.out.json(struct {
					tidemark.Status
					Policies choices `json:"policies"`
					Cost     bill    `json:"cost"`
				}{st, chosen, cost})
			}
			a.out.printf("%s\n", headline(plain(s.db.text), st))
			if err := a.tellLeft(ctx, db, st); err != nil {
				return err
			}
			a.out.printf("\n")
			a.tellStatus(st)
			a.wrap(15, "  policies", chosen.inForce())
			if text := chosen.unheeded(s); text != "" {
				a.wrap(15, "  warning", text)
			}
			return a.tellBills(ctx, db, s)
		},
	}, "db", "budget")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one Status object on standard output, with policies and cost")
	return cmd
}

// staleAfter is when a status says how old it is: it asks no server.
const staleAfter = time.Hour

// headline says in a sentence whether all is well.
func headline(name string, st tidemark.Status) string {
	left := st.Dirty + st.Waiting + st.Dead
	switch {
	case st.ForgottenOn != nil:
		return name + " was forgotten; it syncs no more."
	case snapshotFailed(st) && left == 0:
		return name + " is in step with the server; its snapshot failed."
	case snapshotFailed(st):
		return name + " is in step but for this, and its snapshot failed:"
	case st.LastCycle == nil && st.LastError != nil:
		return name + " was never synced: the first sync failed."
	case st.LastCycle == nil:
		return name + " was never synced."
	case st.LastError != nil:
		return name + " is not in step: the last sync failed."
	case time.Since(st.LastCycle.EndedOn) > staleAfter && left == 0:
		return name + " was in step when it last synced, " + since(st.LastCycle.EndedOn) + "."
	case time.Since(st.LastCycle.EndedOn) > staleAfter:
		return name + " last synced " + since(st.LastCycle.EndedOn) + ", and is not in step:"
	case left == 0:
		return name + " is in step."
	}
	return name + " is in step but for this:"
}

// snapshotFailed: the last cycle came to its last stage and no further; all that could
// move has moved.
func snapshotFailed(st tidemark.Status) bool {
	return st.LastError != nil && st.LastError.Stage == messages.StageBackUp
}

func (a *app) tellStatus(st tidemark.Status) {
	row := func(name, text string) { a.wrap(15, fmt.Sprintf("  %-12s", name), text) }
	row("device", st.DeviceID)
	if st.ForgottenOn != nil {
		row("forgotten", ago(*st.ForgottenOn))
	}
	row("tables", thousands(int64(st.Tables)))
	row("dirty", thousands(st.Dirty))
	row("waiting", thousands(st.Waiting))
	row("set aside", thousands(st.Dead))
	row("conflicts", thousands(st.Conflicts))
	if st.BehindSince != nil && st.LastCycle != nil {
		row("behind since", ago(*st.BehindSince))
	}
	switch {
	case st.LastCycle == nil && snapshotFailed(st):
		row("last cycle", "its snapshot failed")
	case st.LastCycle == nil:
		row("last cycle", "none yet")
	default:
		row("last cycle", ago(st.LastCycle.EndedOn))
	}
	if e := st.LastError; e != nil {
		where := e.Stage
		if e.Table != "" {
			where += " of " + e.Table
		}
		row("last error", ago(e.FailedOn)+", "+fit(where, 60)+": "+fit(failure(e.Stage, e.Error), 300))
	}
	if st.Snapshot == nil {
		row("snapshot", "none known")
		row("Big Brother", "nobody yet: the first device that is in step makes a snapshot")
	} else {
		text := ago(st.Snapshot.MadeOn)
		if e := st.Snapshot.Encrypted; e != nil {
			text += ", " + encrypted(*e)
		}
		row("snapshot", text)
		if st.BigBrother != nil && *st.BigBrother == st.DeviceID {
			row("Big Brother", "this device")
		} else if st.BigBrother != nil {
			row("Big Brother", "another device, "+*st.BigBrother)
		}
	}
	switch off := time.Duration(st.ClockOffsetMs) * time.Millisecond; {
	case off > time.Minute:
		row("clock", fmt.Sprintf("%v behind the server's: set it", off.Round(time.Second)))
	case off < -time.Minute:
		row("clock", fmt.Sprintf("%v ahead of the server's: set it", -off.Round(time.Second)))
	case st.LastCycle == nil && !snapshotFailed(st):
		row("clock", "not compared yet")
	default:
		row("clock", "right")
	}
}

// failure is the error of a step, its class first and once, without the stage, which
// stands beside it.
func failure(stage, text string) string {
	class, rest, ok := strings.Cut(text, ": ")
	if !ok {
		return text
	}
	rest = strings.TrimPrefix(rest, stage+": ")
	return class + ": " + strings.TrimSuffix(strings.Replace(rest, ": "+class+": ", ": ", 1), ": "+class)
}

// since is how long ago a moment was.
func since(t time.Time) string {
	_, text, ok := strings.Cut(ago(t), ", ")
	if !ok {
		return "in the future by this machine's clock"
	}
	return text
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
