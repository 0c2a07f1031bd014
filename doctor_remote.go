package tidemark

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
	"github.com/tidemark-sync/tidemark/stages"
)

// server asks the remote what costs little.
func (d *doctor) server() {
	if d.remote == nil {
		return
	}
	scope := d.remote.Scope()
	if d.exam.Scope != "" && scope != "" && d.exam.Scope != scope {
		was, is := messages.TwoScopes(d.exam.Scope, scope)
		d.problem("scope", "correct the remote's URL, or start over with this one: `pipeline attach --reset`", "the database was synced with %s, and this is %s", was, is)
	}
	asked := time.Now()
	list, err := d.remote.Devices(d.ctx, -1)
	if err != nil {
		d.failed("server", err)
		return
	}
	took := time.Since(asked)
	d.ok("server", "answers, in %s; what is there can be read", tookText(took))
	d.clock(time.UnixMicro(list.ReadTime).Sub(asked.Add(took / 2)).Round(time.Millisecond))
	if c, ok := d.remote.(cautious); ok && c.Caution() != "" {
		d.warn("credentials", "sign in as the user whose scope it is; an operator's account is for operators", "%s", c.Caution())
	}
	if err := stages.CheckForgotten(list.Devices); err != nil {
		d.problem("scope", "remove this copy with `pipeline forget`, or start over with another remote: `pipeline attach --reset`", "%v", err)
		return
	}
	if d.exam.Attached {
		d.writes(list)
		d.strangers(list.ReadTime)
	}
	d.devices(list)
}

// cautious is a remote that knows whether it was opened unwisely: the sentence says how,
// and what to do.
type cautious interface{ Caution() string }

// writes asks for a write on a condition that cannot hold: who may write is told so. It
// is our own record as it is, or another's, to which rules that hold can say yes.
func (d *doctor) writes(list messages.DeviceList) {
	const never = 1 // a version of 1970
	record := messages.Device{ID: d.health.InstallationID}
	for i, x := range list.Devices {
		if i == 0 || x.ID == d.health.InstallationID {
			record = x
		}
	}
	record.Token = "doctor"
	_, err := d.remote.Commit(d.ctx, messages.Commit{Device: record, Expect: never})
	switch {
	case errors.Is(err, messages.ErrConflict):
		d.ok("rights", "this account may write")
	case errors.Is(err, ErrUnauthorized) && len(list.Devices) == 0:
		d.warn("rights", "run `pipeline sync`, which says what is missing", "whether this account may write shows at the first sync: there is nothing here yet that rules could allow to change")
	case err == nil:
		d.problem("rights", "use a server that honours preconditions", "the server took a write whose precondition does not hold")
	default:
		d.failed("rights", err)
	}
}

// strangers samples documents: those without a stamp were written by no device.
func (d *doctor) strangers(readTime int64) {
	if d.sample <= 0 {
		return
	}
	var all, without int64
	var where []string
	for _, table := range d.exam.Tables {
		var found int64
		_, err := d.remote.Read(d.ctx, messages.Query{Table: table, ReadTime: readTime, Limit: d.sample}, func(doc messages.Document) error {
			all++
			if doc.Stamp == (messages.Stamp{}) {
				found++
			}
			return nil
		})
		if err != nil {
			d.failed("documents", err)
			return
		}
		if found > 0 {
			without += found
			where = append(where, table)
		}
	}
	if without > 0 {
		d.warn("documents", "`pipeline sync --full` finds them, at a read a document; let the program that writes them write as a device does",
			"of %d looked at, no device wrote %d, in %s", all, without, someOf(where))
		return
	}
	if all == 0 {
		d.ok("documents", "there are none yet")
		return
	}
	d.ok("documents", "%d looked at, all written by devices", all)
}

func tookText(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", max(1, d.Milliseconds()))
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// quietAfter is when a device that holds back old tombstones is worth a word.
const quietAfter = 7 * 24 * time.Hour

func (d *doctor) devices(list messages.DeviceList) {
	var held []string
	here := false
	for _, x := range list.Devices {
		here = here || x.ID == d.health.InstallationID
		age := time.Duration(list.ReadTime-x.UpdateTime) * time.Microsecond
		if behind := behindOf(x.ID, x.Seen, list.Devices); x.ID != d.health.InstallationID && behind > 0 && age > quietAfter && age <= defaults().purge.Unseen {
			name := x.Name
			if name == "" {
				name = x.ID
			}
			held = append(held, fmt.Sprintf("%s (not heard of for %s)", name, ageText(age)))
		}
	}
	switch {
	case len(held) > 0:
		d.warn("devices", "sync them, or leave it: after 90 days they no longer count, and read everything again when they come back",
			"%s back the removal of old tombstones: %s", counted(len(held), "holds", "hold"), someOf(held))
	case d.exam.Attached && !here:
		d.warn("devices", "run `pipeline sync`", "%s with this remote; this one has not yet", counted(len(list.Devices), "syncs", "sync"))
	default:
		d.ok("devices", "%s; none that was silent for a week holds back the removal of old tombstones", counted(len(list.Devices), "device", "devices"))
	}
}

// bucket tries with an object of its own what a backup and a restore need.
func (d *doctor) bucket() {
	if d.store == nil {
		return
	}
	if !d.probe() {
		return
	}
	if s, ok := d.store.(interface {
		UnfinishedUploads(ctx context.Context) (lost int, rule, known bool, err error)
	}); ok {
		d.uploads(s.UnfinishedUploads(d.ctx))
	}
	d.snapshot()
}

const probeText = "tidemark's doctor tries here whether it may write; it removes this at once\n"

// probe puts, reads, lists and removes an object.
func (d *doctor) probe() bool {
	key := stages.DoctorProbe + newCycle()
	put := func(c messages.Condition) error {
		_, err := d.store.Put(d.ctx, key, bytes.NewReader([]byte(probeText)), c)
		return err
	}
	if err := put(messages.Condition{IfAbsent: true}); err != nil {
		d.failed("store", fmt.Errorf("write an object: %w", err))
		return false
	}
	again, match := put(messages.Condition{IfAbsent: true}), put(messages.Condition{IfMatch: `"00000000000000000000000000000000"`})
	read := d.readProbe(key)
	var listed error
	objects, err := d.store.List(d.ctx, key)
	if err != nil {
		listed = fmt.Errorf("list the objects: %w", err)
	} else if !slices.ContainsFunc(objects, func(o messages.Object) bool { return o.Key == key }) {
		listed = errors.New("an object that was just written is missing in the list: old snapshots cannot be removed")
	}
	var removed error
	if err := d.store.Delete(context.WithoutCancel(d.ctx), key); err != nil {
		removed = fmt.Errorf("remove an object: %w", err)
	}
	if err := errors.Join(read, listed, removed); err != nil {
		d.failed("store", err)
		return false
	}
	d.ok("store", "objects can be written, read, listed and removed")
	switch {
	case errors.Is(again, messages.ErrConflict) && errors.Is(match, messages.ErrConflict):
		d.ok("conditions", "conditional writes are honoured")
	case unconditional(again) && unconditional(match):
		d.problem("conditions", "use a store that honours If-None-Match and If-Match, or accept it: ?conditions=ignored in the store's URL",
			"the store ignores the conditions of writes: two devices that back up at once can replace each other's manifest")
	default:
		d.failed("conditions", errors.Join(again, match))
	}
	return true
}

// unconditional: the write went through, or the server does not even know the header.
func unconditional(err error) bool {
	return err == nil || errors.Is(err, ErrRejected) || errors.Is(err, messages.ErrConflict)
}

func (d *doctor) readProbe(key string) error {
	body, _, err := d.store.Get(d.ctx, key, 0)
	if err != nil {
		return fmt.Errorf("read an object: %w", err)
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, 1<<10))
	if err != nil {
		return fmt.Errorf("read an object: %w", err)
	}
	if string(got) != probeText {
		return errors.New("an object comes back other than it was written")
	}
	return nil
}

func (d *doctor) uploads(lost int, rule, known bool, err error) {
	const advice = "add a lifecycle rule to the bucket: AbortIncompleteMultipartUpload after 7 days"
	switch {
	case errors.Is(err, ErrUnauthorized): // as it should be where several share a bucket
		d.ok("uploads", "this account does not see unfinished uploads; the bucket's lifecycle rule aborts them, if it has one (`pipeline s3-policy`)")
	case err != nil:
		d.warn("uploads", "allow this account s3:ListBucketMultipartUploads", "unfinished uploads cannot be seen: %v", err)
	case lost > 0:
		d.warn("uploads", "the next snapshot aborts them; "+advice, "%s space, and no listing shows them", counted(lost, "upload that nobody will finish takes", "uploads that nobody will finish take"))
	case !known:
		d.ok("uploads", "none is left unfinished; the bucket's lifecycle rules cannot be seen")
	case !rule:
		d.ok("uploads", "none is left unfinished; no lifecycle rule aborts them, the next snapshot of any device does")
	default:
		d.ok("uploads", "none is left unfinished, and a lifecycle rule aborts them")
	}
}

// snapshot looks whether all that the newest one is made of is there and can be opened.
func (d *doctor) snapshot() {
	m, _, err := stages.ReadManifest(d.ctx, d.store, &messages.StoreUse{})
	if noneYet(err) {
		if known := d.health.Generation; known != "" {
			d.warn("snapshot", "run `pipeline sync --full`: on a device that is in step it makes a new one. It is billed a read for each document; without --full only a store that is another one gets it",
				"there is none, and this device knows of %s: the store was emptied, or is another one", known)
			return
		}
		d.warn("snapshot", "run `pipeline sync` on a device that is in step", "there is none yet")
		return
	}
	if err != nil {
		d.failed("snapshot", err)
		return
	}
	s := m.Current
	if d.exam.Scope != "" && s.Scope != "" && d.exam.Scope != s.Scope {
		theirs, ours := messages.TwoScopes(s.Scope, d.exam.Scope)
		d.problem("snapshot", "correct the store's URL: every scope has a store of its own, and this database is not backed up here", "the snapshots in the store are of %s, and the database is of %s", theirs, ours)
		return
	}
	if d.db != nil {
		if err := persistence.KnowsOf(d.ctx, d.db.DB, s); errors.Is(err, persistence.ErrRolledBack) {
			d.problem("snapshot", "see who may write to the store; the next snapshot of a device that is in step mends it", "the newest one, %s, is older than one that this device knows: somebody put an older manifest back", s.Generation)
			return
		}
	}
	const another = "make a new one (pipeline sync on a device that is in step); restore an older one meanwhile (pipeline snapshots)"
	objects, err := d.store.List(d.ctx, messages.SnapshotPrefix)
	if err != nil {
		d.failed("snapshot", err)
		return
	}
	for _, part := range s.Chain() {
		i := slices.IndexFunc(objects, func(o messages.Object) bool { return o.Key == part.Key })
		if i < 0 {
			d.problem("snapshot", another, "the newest one, %s, cannot be restored: its object %s is gone", s.Generation, part.Key)
			return
		}
		if objects[i].Size != part.Size {
			d.problem("snapshot", another, "the newest one, %s, cannot be restored: its object %s has %d bytes instead of %d", s.Generation, part.Key, objects[i].Size, part.Size)
			return
		}
	}
	switch err := d.open(s); {
	case s.Encrypted && d.key == nil:
		d.problem("key", "give the key (--key-file, TIDEMARK_KEY_FILE or TIDEMARK_PASSPHRASE)", "the newest snapshot is encrypted and this device has no key: it can neither restore it nor make the next")
		return
	case errors.Is(err, messages.ErrWrongKey):
		d.problem("key", "give the key that the snapshots were made with; --key-file may be repeated, the newest first", "the key does not open the newest snapshot, %s", s.Generation)
		return
	case err != nil:
		d.problem("snapshot", another, "the newest one, %s, cannot be opened: %v", s.Generation, err)
		return
	case s.Encrypted:
		d.ok("key", "it opens the newest snapshot")
	}
	text := fmt.Sprintf("%s, %s old, %s", s.Generation, ageText(time.Since(time.UnixMilli(s.MadeOn))), bytesText(s.Download()))
	if s.Encrypted {
		d.ok("snapshot", "%s, encrypted", text)
		return
	}
	remedy := "make a key with `pipeline keygen` and give it to every device, unless only you can read the store"
	if d.key != nil {
		remedy = "give the key to the device that made it; the next snapshot of this one is encrypted"
	}
	d.warn("snapshot", remedy, "%s, not encrypted", text)
}

// open reads the beginning of a snapshot's newest object.
func (d *doctor) open(s messages.Snapshot) error {
	if s.Encrypted && d.key == nil {
		return nil // there is nothing to try
	}
	body, _, err := d.store.Get(d.ctx, s.Key, 0)
	if err != nil {
		return err
	}
	defer body.Close()
	var plain io.Reader = body
	if s.Encrypted {
		if plain, err = d.key.Open(body); err != nil {
			return err
		}
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(plain, head); err != nil {
		return err
	}
	if !bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) { // zstd's
		return errors.New("it does not begin as a snapshot does")
	}
	return nil
}
