package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

func (a *app) verify() *cobra.Command {
	var at string
	cmd := a.takes(&cobra.Command{
		Use:   "verify --store URL [--at GENERATION|TIME]",
		Short: "check a snapshot as a restore would, and install nothing",
		Long: `verify downloads a snapshot into the folder for temporary files (TMPDIR),
decrypts and unpacks it, and checks it as a restore does: checksums, integrity,
foreign keys, version. It installs nothing.`,
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
			store, closer, opts, err := a.restoring(ctx, s, at)
			if err != nil {
				return err
			}
			defer closer.Close()
			opts = append(opts, a.restoreProgress("verifying"))
			v, err := tidemark.Verify(ctx, store, opts...)
			a.progress.end()
			if err != nil {
				if err := cause(ctx, err); errors.Is(err, errInterrupted) {
					return err
				}
				return unnamed(at, explain(err))
			}
			how := count(int64(len(v.Chain())), "object", "objects") + ", " + encrypted(v.Encrypted)
			a.wrap(0, "", fmt.Sprintf("Snapshot %s is sound: a database of %s from %s (%s).", v.Generation, size(v.RawSize), size(v.Download()), how))
			a.out.printf("\n")
			a.out.printf("  made      %s, by %s\n", stamp(v.MadeOn), plain(v.Device))
			a.out.printf("  store     %s (%s)\n", count(v.Store.Gets, "GET", "GETs"), size(v.Store.BytesDown))
			return nil
		},
	}, "remote", "store", "key-file")
	cmd.Flags().StringVar(&at, "at", "", "an older snapshot: its `GENERATION`, a moment, or a time ago")
	return cmd
}
