package tidemark

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// Fleet is who syncs with one remote.
type Fleet struct {
	// Devices, the one that was heard of last first.
	Devices []DeviceStatus `json:"devices"`
	// BigBrother is the installation id of the device whose turn it is to back up, or
	// nil, and Why says why.
	BigBrother *string `json:"bigBrother"`
	Why        string  `json:"why"`
}

// DeviceStatus is one device, by what it wrote into its record last.
type DeviceStatus struct {
	DeviceID string `json:"deviceId"`
	Name     string `json:"name"`
	Platform string `json:"platform"`
	Version  string `json:"version"`
	// Forgotten: it was told to, and will not come back.
	Forgotten bool `json:"forgotten"`
	// This is the device that asks, BigBrother the one that backs up.
	This       bool `json:"this"`
	BigBrother bool `json:"bigBrother"`
	// Seq is the number of its last upload, UploadedOn when that was, or nil.
	Seq        int64      `json:"seq"`
	UploadedOn *time.Time `json:"uploadedOn"`
	// HeardOn is when its record was last written: with every upload, and otherwise
	// once a day while it syncs. All times are by the remote's clock.
	HeardOn time.Time `json:"heardOn"`
	// Seen is how far it had read every other device then, Behind how many uploads of
	// others it had not read.
	Seen   map[string]int64 `json:"seen"`
	Behind int64            `json:"behind"`
	// HoldsBackPurge: tombstones of what it has not read stay on the server for it.
	HoldsBackPurge bool `json:"holdsBackPurge"`
}

// Devices lists everybody who syncs with this remote. It is billed one read a device,
// and one GET of the store.
func (p *Pipeline) Devices(ctx context.Context) (Fleet, error) {
	fleet := Fleet{Devices: []DeviceStatus{}}
	list, err := p.remote.Devices(ctx, -1)
	if err != nil {
		return fleet, fmt.Errorf("list the devices: %w", err)
	}
	if err := stages.CheckForgotten(list.Devices); err != nil {
		return fleet, fmt.Errorf("list the devices: %w", err)
	}
	st, err := p.local.BackupStanding(ctx)
	if err != nil {
		return fleet, fmt.Errorf("list the devices: %w", err)
	}
	if fleet.BigBrother, fleet.Why, err = p.bigBrother(ctx); err != nil {
		return fleet, fmt.Errorf("list the devices: %w", err)
	}
	for _, d := range list.Devices {
		s := DeviceStatus{
			DeviceID: d.ID, Name: d.Name, Platform: d.Platform, Version: d.Version, Seq: d.Seq, HeardOn: time.UnixMicro(d.UpdateTime).UTC(),
			Forgotten: d.Forgotten, This: d.ID == st.Device, BigBrother: fleet.BigBrother != nil && *fleet.BigBrother == d.ID,
		}
		if d.UploadedOn > 0 {
			on := time.UnixMilli(d.UploadedOn).UTC()
			s.UploadedOn = &on
		}
		seen := d.Seen
		if s.This {
			seen = st.Seen // its record may be a day old
		}
		s.Seen = seen.Clone()
		delete(s.Seen, d.ID)
		s.Behind = behindOf(d.ID, seen, list.Devices)
		s.HoldsBackPurge = s.Behind > 0 && !d.Forgotten && time.Duration(list.ReadTime-d.UpdateTime)*time.Microsecond <= p.set.purge.Unseen
		fleet.Devices = append(fleet.Devices, s)
	}
	slices.SortFunc(fleet.Devices, func(a, b DeviceStatus) int {
		return cmp.Or(b.HeardOn.Compare(a.HeardOn), cmp.Compare(a.DeviceID, b.DeviceID))
	})
	return fleet, nil
}

// behindOf counts the uploads of others that a device has not read.
func behindOf(id string, seen messages.Vector, all []messages.Device) (n int64) {
	for _, o := range all {
		if o.ID != id {
			n += max(0, o.Seq-seen[o.ID])
		}
	}
	return n
}

// spanText is a time that somebody set.
func spanText(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return counted(int64(d/time.Hour), "hour", "hours")
	case d%time.Minute == 0:
		return counted(int64(d/time.Minute), "minute", "minutes")
	}
	return d.String()
}

// bigBrother reads from the manifest whose turn it is.
func (p *Pipeline) bigBrother(ctx context.Context) (id *string, why string, err error) {
	if p.store == nil {
		return nil, "there is no store for snapshots", nil
	}
	m, _, err := stages.ReadManifest(ctx, p.store, &messages.StoreUse{})
	if noneYet(err) {
		return nil, "there is no snapshot yet: the first device that is in step makes one", nil
	}
	if err != nil {
		return nil, "", err
	}
	why = "it made the newest snapshot, " + m.Current.Generation
	if wait := p.set.backup.Takeover; wait > 0 {
		why += fmt.Sprintf("; when the next one is due and it does not make it for %s, another device takes over", spanText(wait))
	}
	return &m.Current.Device, why, nil
}
