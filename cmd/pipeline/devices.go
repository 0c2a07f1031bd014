package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/file"
)

func (a *app) devices() *cobra.Command {
	var asJSON bool
	cmd := a.takes(&cobra.Command{
		Use:   "devices --db FILE --remote URL --store URL [--json]",
		Short: "who syncs with the remote, and who is Big Brother",
		Long: `devices lists everybody who syncs with the remote, and who backs up: how many
uploads a device made, and how many of the others' it was behind when it last
wrote its record: with each upload, else once a day. One that is behind and
silent for a week holds back the removal of old tombstones, for at most 90 days.
It costs one read a device and one GET.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if err := a.bothThere(cmd); err != nil {
				return err
			}
			w, err := a.open(cmd)
			if err != nil {
				return err
			}
			defer w.close()
			fleet, err := w.pipeline.Devices(ctx)
			if err != nil {
				return w.db.failed(cause(ctx, err))
			}
			if asJSON {
				return a.out.json(fleet)
			}
			a.tellDevices(fleet)
			return nil
		},
	}, "db", "remote", "store")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one Fleet object on standard output")
	return cmd
}

// bothThere fails when a folder is not there that opening it would make, for what only
// reads.
func (a *app) bothThere(cmd *cobra.Command) error {
	s, err := a.settings(cmd)
	if err == nil {
		err = s.need("db", "remote", "store")
	}
	if err != nil {
		return err
	}
	remote, err := parseRemote(s.remote)
	if err != nil {
		return err
	}
	store, err := parseStore(s.store)
	if err != nil {
		return err
	}
	if err := remote.exists(); err != nil {
		return err
	}
	if store.scheme == "file" {
		return file.StoreExists(store.path)
	}
	return nil
}

// quietAfter is when a device that is behind is worth a word, as for doctor.
const quietAfter = 7 * 24 * time.Hour

func (a *app) tellDevices(f tidemark.Fleet) {
	row := "  %-*s  %-19s %8s %8s\n"
	a.out.printf(row, nameWidth, "device", "last upload", "uploads", "behind")
	this := false
	for _, d := range f.Devices {
		this = this || d.This
		name := d.Name
		if name == "" {
			name = d.DeviceID
		}
		upload := "never"
		if d.UploadedOn != nil {
			upload = d.UploadedOn.Local().Format(time.DateTime)
		}
		a.out.printf(row, nameWidth, fit(name, nameWidth), upload, thousands(d.Seq), thousands(d.Behind))
		who := fit(d.DeviceID, 40)
		if d.Platform != "" {
			who += ", " + fit(d.Platform, 40)
		}
		text := []string{who + ", heard of " + ago(d.HeardOn)}
		for _, r := range []struct {
			is   bool
			text string
		}{{d.Forgotten, "forgotten"}, {d.This, "this device"}, {d.BigBrother, "Big Brother"}, {d.HoldsBackPurge && time.Since(d.HeardOn) > quietAfter, "holds back the removal of old tombstones"}} {
			if r.is {
				text = append(text, r.text)
			}
		}
		a.wrap(4, "    ", strings.Join(text, "; "))
	}
	if !this {
		a.wrap(2, "  ", "This device is not among them yet: its first sync registers it.")
	}
	a.out.printf("\n")
	if f.BigBrother == nil {
		a.wrap(2, "  ", "Nobody is Big Brother: "+f.Why)
		return
	}
	a.wrap(2, "  ", "Big Brother is "+*f.BigBrother+": "+f.Why)
}
