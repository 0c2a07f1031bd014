package stages

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// errScopeForgotten is what every device hears from then on.
var errScopeForgotten = messages.Saying(messages.ErrForgotten, "everything in this scope was forgotten, and nothing is synced with it any more; this database keeps its rows: "+
	"remove it (`pipeline forget`), or start over with another remote (`pipeline attach --reset`)")

// CheckForgotten is messages.ErrForgotten when the scope's marker is among the records.
func CheckForgotten(devices []messages.Device) error {
	if scopeForgotten(devices) {
		return errScopeForgotten
	}
	return nil
}

func scopeForgotten(devices []messages.Device) bool {
	return slices.ContainsFunc(devices, func(d messages.Device) bool { return d.ID == messages.ForgottenScope && d.UpdateTime != 0 })
}

// Inventory is what a scope holds.
type Inventory struct {
	// Documents per table, tombstones included.
	Documents map[string]int64
	// Devices are the installation ids that have a record, the marker apart.
	Devices []string
	// Marked: the scope is being forgotten, or was.
	Marked bool
	// Objects of the store. Unlisted: it does not list them, and these are those that
	// the manifest names.
	Objects     []string
	ObjectBytes int64
	Unlisted    bool
	// Foreign is how many other objects lie beside them; they are left alone.
	Foreign int
	Billed  messages.Billed
	Store   messages.StoreUse
}

// Empty reports whether nothing is left but the marker.
func (i Inventory) Empty() bool {
	return len(i.Documents) == 0 && len(i.Devices) == 0 && len(i.Objects) == 0
}

// ForgetScope removes a scope: first it leaves a marker that stops every device at its
// next check; then it writes every record anew, so that no commit which is on its way
// finds the version that it demands; then documents, snapshots and at last the records
// go. The marker stays. Each step can be repeated, and another one goes on where it was
// cut off.
type ForgetScope struct {
	remote CommitReader
	store  ObjectStore
	scope  string
	tables []string
	token  func() string
	tell   func(removed int64)
}

// NewForgetScope returns it. scope is the remote's; a store with another's snapshots is
// refused with messages.ErrOtherScope. tables are those that no record might name; store may be
// nil; tell hears of what was removed.
func NewForgetScope(remote CommitReader, store ObjectStore, scope string, tables []string, token func() string, tell func(removed int64)) *ForgetScope {
	return &ForgetScope{remote, store, scope, tables, token, tell}
}

// Look counts what is there. It is billed one read a document and a device.
func (f *ForgetScope) Look(ctx context.Context) (Inventory, error) {
	in := Inventory{Documents: map[string]int64{}}
	if err := f.checkStore(ctx, &in.Store); err != nil {
		return in, err
	}
	list, err := f.devices(ctx, &in.Billed)
	if err != nil {
		return in, err
	}
	for _, d := range list.Devices {
		if d.ID == messages.ForgottenScope {
			in.Marked = true
		} else {
			in.Devices = append(in.Devices, d.ID)
		}
	}
	for _, table := range f.allTables(list.Devices) {
		n := int64(0)
		reads, err := f.remote.Read(ctx, messages.Query{Table: table, ReadTime: list.ReadTime}, func(messages.Document) error { n++; return nil })
		in.Billed.Reads += reads
		if err != nil {
			return in, fmt.Errorf("count the documents of table %q: %w", table, err)
		}
		if n > 0 {
			in.Documents[table] = n
		}
	}
	return in, f.lookAtStore(ctx, &in)
}

func (f *ForgetScope) devices(ctx context.Context, billed *messages.Billed) (messages.DeviceList, error) {
	list, err := f.remote.Devices(ctx, -1)
	billed.Reads += list.Reads
	if err != nil {
		return list, fmt.Errorf("list the devices: %w", err)
	}
	return list, nil
}

// allTables are those that any device ever uploaded to, and those that the caller
// knows.
func (f *ForgetScope) allTables(devices []messages.Device) []string {
	tables := slices.Clone(f.tables)
	for _, d := range devices {
		for t := range d.Tables {
			tables = append(tables, t)
		}
	}
	slices.Sort(tables)
	return slices.Compact(tables)
}

// checkStore refuses a store whose manifest names snapshots of another scope.
func (f *ForgetScope) checkStore(ctx context.Context, use *messages.StoreUse) error {
	if f.store == nil || f.scope == "" {
		return nil
	}
	m, _, err := ReadManifest(ctx, f.store, use)
	if errors.Is(err, messages.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range m.Snapshots() {
		if s.Scope != "" && s.Scope != f.scope {
			return fmt.Errorf("snapshot %s in the store: %w: check the store's URL; nothing was done", s.Generation, messages.OtherScope(s.Scope, f.scope))
		}
	}
	return nil
}

func (f *ForgetScope) lookAtStore(ctx context.Context, in *Inventory) error {
	if f.store == nil {
		return nil
	}
	list, err := f.store.List(ctx, "")
	if err == nil {
		for _, o := range list {
			in.Store.Puts += o.Requests
			if !mayRemove(o.Key) {
				in.Foreign++
				continue
			}
			in.Objects = append(in.Objects, o.Key)
			in.ObjectBytes += o.Size
		}
		return nil
	}
	if !errors.Is(err, messages.ErrUnauthorized) {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	in.Unlisted = true
	m, _, err := ReadManifest(ctx, f.store, &in.Store)
	if errors.Is(err, messages.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	sizes := map[string]int64{}
	for _, s := range m.Snapshots() {
		for _, p := range s.Chain() {
			sizes[p.Key] = p.Size
		}
	}
	for _, r := range m.Retired {
		sizes[r.Key] += 0
	}
	for k, n := range sizes {
		in.Objects = append(in.Objects, k)
		in.ObjectBytes += n
	}
	slices.Sort(in.Objects)
	in.Objects = append(in.Objects, probeKey, messages.ManifestKey)
	return nil
}

// mayRemove: what somebody else put into the folder is left alone.
func mayRemove(key string) bool {
	return key == messages.ManifestKey || key == probeKey || strings.HasPrefix(key, DoctorProbe) || ours.MatchString(key)
}

// DoctorProbe begins the key of the object that a doctor writes, and removes.
const DoctorProbe = "doctor-probe-"

// maxPasses bounds how often it looks again for what a device uploaded meanwhile.
const maxPasses = 10

// Remove removes everything and returns what was removed.
func (f *ForgetScope) Remove(ctx context.Context) (Inventory, error) {
	done := Inventory{Documents: map[string]int64{}}
	if err := f.checkStore(ctx, &done.Store); err != nil {
		return done, err
	}
	marker, err := f.mark(ctx, &done.Billed)
	if err != nil {
		return done, err
	}
	done.Marked = true
	for range maxPasses {
		list, err := f.devices(ctx, &done.Billed)
		if err != nil {
			return done, err
		}
		if err := f.stop(ctx, list.Devices, &done.Billed); err != nil {
			return done, err
		}
		removed, err := f.documents(ctx, &marker, f.allTables(list.Devices), &done)
		if err != nil {
			return done, err
		}
		if err := f.objects(ctx, &done); err != nil {
			return done, err
		}
		// A first commit that was on its way when the records were written anew had
		// nothing to find changed: look again until nothing comes.
		if removed > 0 {
			continue
		}
		n, err := f.records(ctx, &done)
		if err != nil || n == 0 {
			return done, err
		}
	}
	return done, fmt.Errorf("devices go on uploading into the scope: stop them, and run this again: %w", messages.ErrUnavailable)
}

// mark leaves the marker, or finds it.
func (f *ForgetScope) mark(ctx context.Context, billed *messages.Billed) (messages.Device, error) {
	for range 2 {
		d, err := f.remote.Device(ctx, messages.ForgottenScope)
		if err != nil {
			return d, fmt.Errorf("see whether the scope is being forgotten: %w", err)
		}
		billed.Reads++
		if d.UpdateTime != 0 {
			return d, nil
		}
		d = messages.Device{ID: messages.ForgottenScope, Forgotten: true, Token: f.token(), Tables: map[string]int64{}}
		c, err := f.remote.Commit(ctx, messages.Commit{Device: d, Announce: true})
		if err == nil {
			billed.Writes += c.Writes
			d.UpdateTime = c.UpdateTime
			return d, nil
		}
		if !errors.Is(err, messages.ErrConflict) {
			return d, fmt.Errorf("mark the scope as forgotten: %w", err)
		}
	}
	return messages.Device{}, fmt.Errorf("mark the scope as forgotten: another program does too: %w", messages.ErrUnavailable)
}

// stop writes every record anew, so that its device's next commit fails.
func (f *ForgetScope) stop(ctx context.Context, devices []messages.Device, billed *messages.Billed) error {
	for _, d := range devices {
		for d.ID != messages.ForgottenScope && d.UpdateTime != 0 && !stopped(d) {
			expect := d.UpdateTime
			d = forgotten(d, stoppedToken+f.token())
			c, err := f.remote.Commit(ctx, messages.Commit{Device: d, Expect: expect})
			if err == nil {
				billed.Writes += c.Writes
				break
			}
			refusal := fmt.Errorf("stop device %s: %w", d.ID, err)
			if !perhapsMoved(err) {
				return refusal
			}
			if d, err = f.remote.Device(ctx, d.ID); err != nil {
				return fmt.Errorf("stop device %s: %w", d.ID, err)
			}
			billed.Reads++
			if d.UpdateTime == expect && errors.Is(refusal, messages.ErrConflict) {
				return fmt.Errorf("stop device %s: %w", d.ID, errHolds)
			}
			if d.UpdateTime == expect { // it has not committed meanwhile
				return refusal
			}
		}
	}
	return nil
}

// stoppedToken begins the token of a record that its own device did not write: that
// does not take it for one of its own, nor do we stop it twice.
const stoppedToken = "forgotten "

func stopped(d messages.Device) bool { return strings.HasPrefix(d.Token, stoppedToken) }

// forgotten is a record without anything that describes its device. Its numbers and
// its fence stay, others compare them.
func forgotten(d messages.Device, token string) messages.Device {
	d.Forgotten, d.Token = true, token
	d.Name, d.Platform, d.Version, d.Seen = "", "", "", nil
	return d
}

// documents removes them in commits that also write the marker anew: two programs that
// forget one scope do not get in each other's way unnoticed.
func (f *ForgetScope) documents(ctx context.Context, marker *messages.Device, tables []string, done *Inventory) (removed int64, err error) {
	conflicts := 0
	for _, table := range tables {
		for {
			var writes []messages.Write
			q := messages.Query{Table: table, Limit: messages.MaxCommitWrites - 1}
			reads, err := f.remote.Read(ctx, q, func(d messages.Document) error {
				writes = append(writes, messages.Write{Document: messages.Document{Table: table, ID: d.ID}, Expect: d.UpdateTime, Purge: true})
				return nil
			})
			done.Billed.Reads += reads
			if err != nil {
				return removed, fmt.Errorf("read what to remove of table %q: %w", table, err)
			}
			if len(writes) == 0 {
				break
			}
			expect := marker.UpdateTime
			marker.Token = f.token()
			c, err := f.remote.Commit(ctx, messages.Commit{Device: *marker, Expect: expect, Writes: writes})
			if errors.Is(err, messages.ErrConflict) { // somebody writes, or forgets, beside us
				if conflicts++; conflicts > maxPasses {
					return removed, fmt.Errorf("documents of table %q change while they are removed: %w", table, messages.ErrUnavailable)
				}
				if *marker, err = f.mark(ctx, &done.Billed); err != nil {
					return removed, err
				}
				continue
			}
			if err != nil {
				return removed, fmt.Errorf("remove documents of table %q: %w", table, err)
			}
			marker.UpdateTime = c.UpdateTime
			done.Billed.Writes += c.Writes
			done.Billed.Deletes += c.Deletes
			removed += int64(len(writes))
			done.Documents[table] += int64(len(writes))
			f.tell(int64(len(writes)))
		}
	}
	return removed, nil
}

// objects removes them, the manifest at last: where nothing can be listed, it alone
// knows the others.
func (f *ForgetScope) objects(ctx context.Context, done *Inventory) error {
	if f.store == nil {
		return nil
	}
	var there Inventory
	if err := f.lookAtStore(ctx, &there); err != nil {
		return err
	}
	done.Unlisted, done.Foreign = there.Unlisted, there.Foreign
	done.Store.Puts += there.Store.Puts
	done.Store.Gets += there.Store.Gets
	keys := there.Objects
	if i := slices.Index(keys, messages.ManifestKey); i >= 0 {
		keys = append(slices.Delete(slices.Clone(keys), i, i+1), messages.ManifestKey)
	}
	for _, k := range keys {
		if err := f.store.Delete(ctx, k); err != nil {
			return fmt.Errorf("remove the snapshots: %w", err)
		}
		done.Objects = append(done.Objects, k)
		f.tell(1)
	}
	done.ObjectBytes += there.ObjectBytes
	return nil
}

// records removes those that are still as stop left them, and returns how many there
// were.
func (f *ForgetScope) records(ctx context.Context, done *Inventory) (n int, err error) {
	list, err := f.devices(ctx, &done.Billed)
	if err != nil {
		return 0, err
	}
	for _, d := range list.Devices {
		if d.ID == messages.ForgottenScope {
			continue
		}
		n++
		if !stopped(d) {
			continue // it is new, and the next pass stops it first
		}
		c, err := f.remote.Commit(ctx, messages.Commit{Device: messages.Device{ID: d.ID}, Expect: d.UpdateTime, Remove: true})
		if errors.Is(err, messages.ErrConflict) {
			continue
		}
		if err != nil {
			return n, fmt.Errorf("remove the record of device %s: %w", d.ID, err)
		}
		done.Billed.Deletes += c.Deletes
		done.Devices = append(done.Devices, d.ID)
	}
	return n, nil
}

// Forgetter is what forgetting this device needs of the local side.
type Forgetter interface {
	Standing(ctx context.Context) (messages.Standing, error)
	Prepare(ctx context.Context, writes []messages.Write) (messages.Commit, error)
	Acknowledge(ctx context.Context, token string, updateTime int64) (messages.Counts, error)
	// Forgotten marks the database: it is not synced any more.
	Forgotten(ctx context.Context) error
}

// ForgetDevice takes out of this device's record what describes it, and says in it that
// the device will not come back. A record that somebody else writes under our id is left
// alone. It reports whether there was a record of ours.
func ForgetDevice(ctx context.Context, remote CommitReader, local Forgetter, billed *messages.Billed) (registered bool, err error) {
	const tries = 5 // an earlier commit of ours may still arrive, and then another one
	var refused error
	var refusedAt int64 // the version of the record that it stood on
	for range tries {
		st, err := local.Standing(ctx)
		if err != nil {
			return false, err
		}
		record, err := remote.Device(ctx, st.InstallationID)
		if err != nil {
			return false, fmt.Errorf("read our own record: %w", err)
		}
		billed.Reads++
		switch {
		case refused != nil && record.UpdateTime == refusedAt:
			return true, refused
		case record.UpdateTime == 0:
			return false, local.Forgotten(ctx)
		case record.UpdateTime != st.RecordVersion && !slices.Contains(st.Tokens, record.Token):
			return false, local.Forgotten(ctx) // a copy of this file, or the whole scope is being forgotten
		case record.UpdateTime != st.RecordVersion:
			if _, err := local.Acknowledge(ctx, record.Token, record.UpdateTime); err != nil {
				return false, err
			}
			continue
		case record.Forgotten:
			return true, local.Forgotten(ctx)
		}
		c, err := local.Prepare(ctx, nil)
		if err != nil {
			return true, err
		}
		c.Device = forgotten(c.Device, c.Device.Token)
		done, err := remote.Commit(ctx, c)
		if refused = nil; perhapsMoved(err) {
			if !errors.Is(err, messages.ErrConflict) {
				refused, refusedAt = fmt.Errorf("mark this device as forgotten: %w", err), c.Expect
			}
			continue
		}
		if err != nil {
			return true, fmt.Errorf("mark this device as forgotten: %w", err)
		}
		billed.Writes += done.Writes
		if _, err := local.Acknowledge(ctx, c.Device.Token, done.UpdateTime); err != nil {
			return true, err
		}
	}
	return true, fmt.Errorf("mark this device as forgotten: its record moves all the time: %w", messages.ErrUnavailable)
}
