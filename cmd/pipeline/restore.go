package main

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

func (a *app) restore() *cobra.Command {
	var at string
	cmd := a.takes(&cobra.Command{
		Use:   "restore --db FILE --store URL [--at GENERATION|TIME]",
		Short: "bring the database back from a snapshot",
		Long: `restore downloads the newest snapshot and checks it: checksum, integrity,
foreign keys and version. Only then it takes FILE's place, as a device of its
own. A file that is there already is replaced only when all its rows were
uploaded. The next sync downloads what came after the snapshot.

--at takes an older one: by the name that "pipeline snapshots" lists, or the
newest that was not made after a moment, such as 2026-03-01T12:00:00Z, or a time
ago, such as 2h or 90m.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("db", "store")
			}
			if err != nil {
				return err
			}
			chosen, err := parseAt(at, time.Now())
			if err != nil {
				return err
			}
			u, err := parseStore(s.store)
			if err != nil {
				return err
			}
			store, closer, err := openStore(ctx, u)
			if err != nil {
				return err
			}
			defer closer.Close()
			var done, total atomic.Int64
			a.progress.begin("restoring "+s.db.text, func() string {
				if total.Load() == 0 {
					return ""
				}
				return fmt.Sprintf("%s of %s", size(done.Load()), size(total.Load()))
			})
			opts := []tidemark.RestoreOption{
				tidemark.RestoreDriver(fileDriver),
				tidemark.RestoreProgress(func(d, t int64) { done.Store(d); total.Store(t) }),
			}
			r, err := tidemark.Restore(ctx, s.db.text, store, append(opts, chosen...)...)
			a.progress.end()
			if err != nil {
				if err := cause(ctx, err); errors.Is(err, errInterrupted) {
					return err
				}
				return fmt.Errorf("%s: %w", s.db.text, explain(err))
			}
			a.out.printf("%s is restored: %s, from a snapshot of %s.\n\n  snapshot  %s\n  device    %s, new\n",
				plain(s.db.text), size(r.Bytes), size(r.Store.BytesDown), plain(r.Generation), plain(r.DeviceID))
			a.out.printf("  store     %s (%s)\n", count(r.Store.Gets, "GET", "GETs"), size(r.Store.BytesDown))
			a.next("sync", s, "remote", "store")
			return nil
		},
	}, "db", "store")
	cmd.Flags().StringVar(&at, "at", "", "an older snapshot: its `GENERATION`, a moment, or a time ago")
	return cmd
}

// parseAt tells a moment and a time ago from the name of a generation.
func parseAt(at string, now time.Time) ([]tidemark.RestoreOption, error) {
	if at == "" {
		return nil, nil
	}
	if moment, err := time.Parse(time.RFC3339, at); err == nil {
		return []tidemark.RestoreOption{tidemark.RestoreAsOf(moment)}, nil
	}
	ago, err := time.ParseDuration(at)
	if err != nil {
		return []tidemark.RestoreOption{tidemark.RestoreGeneration(at)}, nil //nolint:nilerr // it is no time, so it is a name
	}
	if ago < 0 {
		return nil, misuse("--at takes a time ago without a sign, such as 2h")
	}
	return []tidemark.RestoreOption{tidemark.RestoreAsOf(now.Add(-ago))}, nil
}
