package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

func (a *app) snapshots() *cobra.Command {
	var asJSON bool
	cmd := a.takes(&cobra.Command{
		Use:   "snapshots --store URL [--json]",
		Short: "what can be restored, and from when",
		Long: `snapshots lists what "pipeline restore --at" can bring back, the newest first:
when it was made, the size of the database and of what is stored, how many rows
it has, whether it is encrypted, and which device made it. It costs one GET.
--json has the rows of each table.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("store")
			}
			if err != nil {
				return err
			}
			u, err := parseStore(s.store)
			if err != nil {
				return err
			}
			store, closer, err := openStoreThatIs(ctx, u)
			if err != nil {
				return err
			}
			defer closer.Close()
			list, err := tidemark.Snapshots(ctx, store)
			if err != nil {
				return cause(ctx, explain(err))
			}
			if asJSON {
				return a.out.json(list)
			}
			a.tellSnapshots(s, list)
			return nil
		},
	}, "store")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a list of SnapshotInfo objects on standard output")
	return cmd
}

func (a *app) tellSnapshots(known settings, list []tidemark.SnapshotInfo) {
	if len(list) == 0 {
		a.out.printf("There is no snapshot in this store yet: sync a device with it first.\n")
		return
	}
	for _, s := range list {
		var rows int64
		for _, n := range s.Rows {
			rows += n
		}
		content := size(s.Bytes)
		if s.Rows != nil {
			content += ", " + count(rows, "row", "rows") + " in " + count(int64(len(s.Rows)), "table", "tables")
		}
		current := ""
		if s.Current {
			current = ", the newest"
		}
		a.out.printf("%s\n  made      %s%s\n  holds     %s; stored as %s, %s\n  by        %s\n", plain(s.Generation),
			ago(s.MadeOn.Truncate(time.Second)), current, content, size(s.StoredBytes), encrypted(s.Encrypted), plain(s.DeviceID))
	}
	a.next("restore", known, "db", "store", "at")
}
