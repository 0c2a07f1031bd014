package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// simPort is a device's line to the server: it dies with its process, and it counts.
type simPort struct {
	*memory.Remote

	w *simWorld
	d *simDevice

	reads, writes      int64 // billed
	checks, lookups    int
	purges             int
	documents, commits int64
}

func (p *simPort) alive() error {
	if p.d.disk.dead {
		return errDied
	}
	return nil
}

func (p *simPort) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	if err := p.alive(); err != nil {
		return messages.DeviceList{}, err
	}
	p.checks++
	if since < 0 {
		p.purges++
	}
	list, err := p.Remote.Devices(ctx, since)
	slices.SortFunc(list.Devices, func(a, b messages.Device) int { return int(a.UpdateTime - b.UpdateTime) }) // the memory's are in no order
	p.reads += list.Reads
	p.w.tell("%s: devices since %d → %d, as of %d [%v]", p.d.name, since, len(list.Devices), list.ReadTime, err)
	return list, errors.Join(err, p.alive())
}

func (p *simPort) Device(ctx context.Context, id string) (messages.Device, error) {
	if err := p.alive(); err != nil {
		return messages.Device{}, err
	}
	dev, err := p.Remote.Device(ctx, id)
	p.reads++
	p.w.tell("%s: device %.4s → seq %d [%v]", p.d.name, id, dev.Seq, err)
	return dev, errors.Join(err, p.alive())
}

func (p *simPort) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	if err := p.alive(); err != nil {
		return 0, err
	}
	n, err := p.Remote.Read(ctx, q, yield)
	p.reads += n
	p.w.tell("%s: read %s of %.4s after %d %.4s at %d → %d [%v]", p.d.name, q.Table, q.Device, q.After.Stamp.Seq, q.After.ID, q.ReadTime, n, err)
	return n, errors.Join(err, p.alive())
}

func (p *simPort) Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	if err := p.alive(); err != nil {
		return messages.Page{}, err
	}
	p.lookups++
	page, err := p.Remote.Documents(ctx, table, ids, readTime)
	p.reads += page.Reads
	p.w.tell("%s: look up %d of %s → %d [%v]", p.d.name, len(ids), table, len(page.Documents), err)
	return page, errors.Join(err, p.alive())
}

func (p *simPort) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	if err := p.alive(); err != nil {
		return messages.Committed{}, err
	}
	if err := p.refuses(c); err != nil {
		p.w.tell("%s: commit %d as %.4s, %d documents [%v]", p.d.name, c.Device.Seq, c.Device.ID, len(c.Writes), err)
		return messages.Committed{}, err
	}
	done, err := p.Remote.Commit(ctx, c)
	p.commits++
	p.documents += int64(len(c.Writes))
	p.writes += done.Writes + done.Deletes
	if err == nil {
		for i := range c.Writes {
			p.w.model.land(&c.Writes[i].Document)
		}
	} else {
		p.w.landed()
	}
	p.w.tell("%s: commit %d as %.4s, %d documents → %d [%v]", p.d.name, c.Device.Seq, c.Device.ID, len(c.Writes), done.UpdateTime, err)
	return done, errors.Join(err, p.alive())
}

// refuses: the server takes only so much at once, and some rows not at all until there
// is peace.
func (p *simPort) refuses(c messages.Commit) error {
	if p.w.healing {
		return nil
	}
	if n := p.w.story.narrow; n > 0 && len(c.Writes) > n {
		return fmt.Errorf("no more than %d documents at once: %w", n, tidemark.ErrRejected)
	}
	for i := range c.Writes {
		var n int
		v, _ := c.Writes[i].Document.Fields["v"].(string)
		if _, err := fmt.Sscanf(v, "v%d", &n); err == nil && p.w.story.picky && n%11 == 0 {
			return fmt.Errorf("not %s: %w", v, tidemark.ErrRejected)
		}
	}
	return nil
}

func simManifest(w *simWorld, use *messages.StoreUse) (messages.Manifest, error) {
	m, _, err := stages.ReadManifest(context.Background(), w.bucket.Store(), use)
	return m, err
}

var (
	errLine      = fmt.Errorf("the line is dead: %w", tidemark.ErrUnavailable)
	errMalformed = errors.New("the answer is malformed")
)

// simFault is what goes wrong with a cycle, at one of its port calls or commits.
type simFault struct {
	name  string
	fault func(w *simWorld, d *simDevice, rnd *rand.Rand, cancel func()) memory.Fault
}

// simFaults is filled in when the program starts: a fault may sync a device, which
// has faults.
var simFaults []simFault

func init() { simFaults = simFaultList() }

func simFaultList() []simFault {
	return []simFault{
		{"the request is lost", func(*simWorld, *simDevice, *rand.Rand, func()) memory.Fault { return memory.Fault{Before: errLine} }},
		{"the answer is lost", func(*simWorld, *simDevice, *rand.Rand, func()) memory.Fault { return memory.Fault{After: errLine} }},
		{"it arrives later", func(*simWorld, *simDevice, *rand.Rand, func()) memory.Fault { return memory.Fault{Later: errLine} }},
		{"the answer is cut off", func(_ *simWorld, _ *simDevice, rnd *rand.Rand, _ func()) memory.Fault {
			return memory.Fault{Break: errLine, BreakAfter: rnd.IntN(4)}
		}},
		{"it is repeated", func(*simWorld, *simDevice, *rand.Rand, func()) memory.Fault { return memory.Fault{Repeat: true} }},
		{"it is backdated", func(_ *simWorld, _ *simDevice, rnd *rand.Rand, _ func()) memory.Fault {
			return memory.Fault{Backdate: time.Duration(rnd.IntN(270)) * time.Second}
		}},
		{"cancelled before", func(_ *simWorld, _ *simDevice, _ *rand.Rand, cancel func()) memory.Fault {
			cancel()
			return memory.Fault{}
		}},
		{"cancelled after", func(_ *simWorld, _ *simDevice, _ *rand.Rand, cancel func()) memory.Fault {
			return memory.Fault{Then: cancel}
		}},
		{"the process dies before", func(_ *simWorld, d *simDevice, _ *rand.Rand, _ func()) memory.Fault {
			d.disk.die()
			return memory.Fault{Before: errDied}
		}},
		{"the process dies after", func(_ *simWorld, d *simDevice, _ *rand.Rand, _ func()) memory.Fault {
			return memory.Fault{Then: d.disk.die, After: errDied}
		}},
		{"it is malformed", func(*simWorld, *simDevice, *rand.Rand, func()) memory.Fault { return memory.Fault{After: errMalformed} }},
		{"it is too old to read", func(*simWorld, *simDevice, *rand.Rand, func()) memory.Fault {
			return memory.Fault{Before: messages.ErrReadTimeTooOld}
		}},
		{"the user writes meanwhile", func(w *simWorld, d *simDevice, rnd *rand.Rand, _ func()) memory.Fault {
			return memory.Fault{Then: func() {
				for range 1 + rnd.IntN(3) {
					w.edit(d, rnd)
				}
			}}
		}},
		{"another device syncs meanwhile", func(w *simWorld, d *simDevice, rnd *rand.Rand, _ func()) memory.Fault {
			o := w.devices[rnd.IntN(len(w.devices))]
			if o == d || o.syncing || w.syncing > 2 {
				return memory.Fault{}
			}
			return memory.Fault{Then: func() {
				w.edit(o, rnd)
				_, _ = w.sync(o, rnd) // it may fail: the next one goes on
			}}
		}},
		{"another device syncs before", func(w *simWorld, d *simDevice, rnd *rand.Rand, _ func()) memory.Fault {
			if o := w.devices[rnd.IntN(len(w.devices))]; o != d && !o.syncing && w.syncing <= 2 {
				w.edit(o, rnd)
				_, _ = w.sync(o, rnd) // it may fail: the next one goes on
			}
			return memory.Fault{}
		}},
	}
}

// plan decides what goes wrong with a cycle. told says what it was.
func (w *simWorld) plan(d *simDevice, rnd *rand.Rand, cancel func()) (told func() string) {
	d.repeat = 0
	d.remote.Fault, d.store.Fault = nil, nil
	d.disk.commits, d.disk.dieAt = 0, 0
	quiet := func() string { return "" }
	if w.healing {
		return quiet
	}
	faults, always := simFaults, false
	if f := w.story.focus; f != nil && f.faults != nil {
		always = true
		faults = slices.DeleteFunc(slices.Clone(faults), func(s simFault) bool { return !slices.Contains(f.faults, s.name) })
	}
	if rnd.IntN(5) < 2 && !always {
		return quiet
	}
	if rnd.IntN(3) == 0 {
		d.repeat = 2 + rnd.IntN(3)
	}
	what := ""
	told = func() string { return what }
	switch k := rnd.IntN(10); {
	case always:
		w.faultAt(d, rnd, 1+rnd.IntN(5), faults, cancel, &what)
	case k < 2:
		return quiet
	case k < 4: // around a local commit
		d.disk.dieAt, d.disk.after = 1+rnd.IntN(12), rnd.IntN(2) == 0
		d.disk.died = func() {
			what = fmt.Sprintf("the process dies at local commit %d, after it: %v", d.disk.commits, d.disk.after)
		}
	case k < 5: // the line is dead from some call on
		at := int64(1 + rnd.IntN(3))
		n := int64(0)
		d.remote.Fault = func(c memory.Call) memory.Fault {
			if n++; n < at {
				return memory.Fault{}
			}
			what = fmt.Sprintf("the line is dead from call %d on", at)
			return memory.Fault{Before: errLine}
		}
	case k < 6:
		at, broken := int64(1+rnd.IntN(3)), rnd.IntN(3)
		n := int64(0)
		d.store.Fault = func(c memory.StoreCall) memory.StoreFault {
			if n++; n != at {
				return memory.StoreFault{}
			}
			what = fmt.Sprintf("the bucket fails at %s %s", c.Op, c.Key)
			return []memory.StoreFault{{Before: errLine}, {After: errLine}, {Break: errLine, BreakAfter: 100}}[broken]
		}
	default:
		w.faultAt(d, rnd, 1+rnd.IntN(2+rnd.IntN(6)), faults, cancel, &what)
	}
	return told
}

// faultAt lets one of some faults happen at a call.
func (w *simWorld) faultAt(d *simDevice, rnd *rand.Rand, at int, faults []simFault, cancel func(), what *string) {
	fault := faults[rnd.IntN(len(faults))]
	n := 0
	d.remote.Fault = func(c memory.Call) memory.Fault {
		if n++; n != at {
			return memory.Fault{}
		}
		*what = fmt.Sprintf("at call %d, %s: %s", at, c.Op, fault.name)
		w.tell("%s: %s", d.name, *what)
		return fault.fault(w, d, rnd, cancel)
	}
}

// sync runs a cycle, with something going wrong now and then.
func (w *simWorld) sync(d *simDevice, rnd *rand.Rand) (tidemark.Report, error) {
	acting := w.acting
	w.acting = d
	w.syncing++
	d.syncing = true
	defer func() {
		w.acting = acting
		w.syncing--
		d.syncing = false
	}()
	w.counts.cycles++
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d.rnd = rand.New(rand.NewPCG(rnd.Uint64(), rnd.Uint64()))
	told := w.plan(d, rnd, cancel)
	var saved func()
	died := d.disk.died
	d.disk.died = func() { // the files as they are at that moment
		saved = w.freeze(d)
		if died != nil {
			died()
		}
		cancel()
	}
	if w.variant != nil && w.variant.before != nil {
		w.must(w.variant.before(w, d), "variant")
	}
	report, err := d.p.Sync(ctx)
	d.remote.Fault, d.store.Fault = nil, nil
	d.disk.dieAt = 0
	if what := told(); what != "" {
		w.counts.faults++
		w.tell("%s: %s", d.name, what)
	}
	d.upgraded = d.upgraded && err != nil
	if w.class != "" {
		panic(simStop{}) // the engine has made an error of it
	}
	w.tell("%s: sync [%v] in step %v, %v", d.name, err, report.InStep, report.Tables)
	if d.disk.dead {
		d.close()
		saved()
		w.boot(d, 5)
		w.tell("%s starts again", d.name)
	}
	if err != nil {
		w.model.muddle(d.app)
	}
	if w.variant != nil && w.variant.after != nil {
		w.must(w.variant.after(w, d), "variant")
	}
	w.checkKeys(d)
	w.model.read(d.app, d.old)
	w.wait(time.Duration(1+rnd.IntN(5000)) * time.Millisecond)
	return report, err
}

// freeze copies a device's files as a death leaves them, the write-ahead log
// included, and returns what puts them back.
func (w *simWorld) freeze(d *simDevice) func() {
	files := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		if b, err := os.ReadFile(d.path + suffix); err == nil {
			files[d.path+suffix] = b
		}
	}
	return func() {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(d.path + suffix)
		}
		for _, path := range slices.Sorted(maps.Keys(files)) {
			w.must(os.WriteFile(path, files[path], 0o600), "restart")
		}
	}
}

const simRounds = 14

// heal lets everybody sync in peace until nothing moves, and checks everything.
func (w *simWorld) heal(rnd *rand.Rand) {
	w.tell("peace")
	w.healing = true
	w.deliver()
	for _, d := range w.devices {
		w.upgrade(d)
		w.must(tidemark.ReplayDeadLetters(context.Background(), d.db, tidemark.DeadLetterFilter{}, false, func(tidemark.Replayed) error { return nil }), "replay")
	}
	for round := 0; ; round++ {
		if round == simRounds {
			w.fail("moving", "still moving after %d rounds", round)
		}
		moved := false
		for _, d := range w.devices {
			cost := w.price(d)
			rep, err := w.sync(d, rnd)
			if err != nil {
				w.fail("peace", "%s cannot sync in peace: %v", d.name, err)
			}
			moved = moved || !rep.InStep || d.port.writes != cost.writes
			cost.check(w, d)
		}
		if !moved && round > 0 {
			break
		}
	}
	for _, d := range w.devices {
		st, err := d.p.Status(context.Background())
		w.must(err, "status")
		if !st.InStep {
			w.fail("step", "%s is not in step: %+v", d.name, st)
		}
		w.model.keep(d.app)
		w.same(w.devices[0], d)
		var ok string
		w.must(d.app.QueryRow(`PRAGMA quick_check`).Scan(&ok), "quick_check")
		if ok != "ok" {
			w.fail("file", "%s: quick_check: %s", d.name, ok)
		}
		w.counts.conflicts += int(st.Conflicts)
	}
	w.checkServer()
	w.model.check(w.model.read(w.devices[0].app, false))
	w.checkIdle(rnd)
	if !w.tampered() {
		w.checkSnapshot(rnd)
	}
}

// checkServer: the documents are the rows, one to one.
func (w *simWorld) checkServer() {
	rows := map[string]string{}
	for b, r := range w.model.read(w.devices[0].app, false) {
		rows[r.table.name+" "+r.clientID] = b + " " + r.value
	}
	for _, doc := range w.server.Dump() {
		t := w.schema.table(doc.Table)
		if t == nil {
			w.fail("server", "a document of table %q", doc.Table)
		}
		k := doc.Table + " " + doc.ID
		row, ok := rows[k]
		b, _ := doc.Fields["b"].(string)
		switch {
		case doc.Deleted && ok:
			w.fail("server", "%s is deleted on the server and on no device: %s", k, row)
		case !doc.Deleted && !ok:
			w.fail("server", "%s (%s) lives on the server and on no device", k, b)
		case !doc.Deleted && b+" "+fieldsValue(t, doc.Fields) != row:
			w.fail("server", "%s is %q on the server and %q on the devices", k, b+" "+fieldsValue(t, doc.Fields), row)
		}
		delete(rows, k)
	}
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		w.fail("server", "%s is not on the server: %s", k, rows[k])
	}
}

// simPrice is what a cycle may cost at most, computed from what the server has and
// what the device has seen.
type simPrice struct {
	writes, reads         int64 // billed before
	checks, lookups       int
	purges                int
	commits, documents    int64
	devices, pairs, fresh int64
	whole                 bool
}

func (w *simWorld) price(d *simDevice) simPrice {
	p := simPrice{writes: d.port.writes, reads: d.port.reads, checks: d.port.checks, purges: d.port.purges, lookups: d.port.lookups, commits: d.port.commits, documents: d.port.documents}
	var me string
	var missing int
	var version int64
	w.must(d.app.QueryRow(`SELECT installationId, recordVersion, (SELECT count(*) FROM tidemark_DownloadedTracker WHERE downloadedTill IS NULL) FROM tidemark_state`).Scan(&me, &version, &missing), "state")
	p.whole = missing > 0 || d.upgraded
	seen := map[string]int64{}
	rows, err := d.app.Query(`SELECT device, seq FROM tidemark_seen`)
	w.must(err, "seen")
	for rows.Next() {
		var id string
		var n int64
		w.must(rows.Scan(&id, &n), "seen")
		seen[id] = n
	}
	w.must(errors.Join(rows.Err(), rows.Close()), "seen")
	for _, rec := range w.server.DumpDevices() {
		p.devices++
		p.whole = p.whole || rec.ID == me && rec.UpdateTime != version // it will read its own log
		for _, n := range rec.Tables {
			if rec.ID != me && n > seen[rec.ID] {
				p.pairs++
			}
		}
	}
	for _, doc := range w.server.Dump() {
		if doc.Stamp.Device != me && doc.Stamp.Seq > seen[doc.Stamp.Device] {
			p.fresh++
		}
	}
	return p
}

// check holds a cycle in peace against its price: every new document once, one for
// each changed device and table, and the records; nothing for an upload beyond what
// it writes.
func (p simPrice) check(w *simWorld, d *simDevice) {
	if wrote, want := d.port.writes-p.writes, d.port.documents-p.documents+d.port.commits-p.commits; wrote > want {
		w.fail("cost", "%s: %d writes for %d documents in %d commits", d.name, wrote, d.port.documents-p.documents, d.port.commits-p.commits)
	}
	if p.whole || d.port.lookups > p.lookups || d.port.purges > p.purges {
		return // whole tables, deleted parents that got a child, or a look for old tombstones
	}
	checks := int64(d.port.checks - p.checks)
	if got, most := d.port.reads-p.reads, p.fresh+p.pairs+checks*max(1, p.devices); got > most {
		w.fail("cost", "%s: %d reads for %d new documents, %d tables of changed devices, %d records, %d checks", d.name, got, p.fresh, p.pairs, p.devices, checks)
	}
}

// checkIdle: when nobody has uploaded for a while, a cycle costs one read.
func (w *simWorld) checkIdle(rnd *rand.Rand) {
	for n := range 2 {
		w.wait(10 * time.Minute)
		for i := range 2 {
			d := w.devices[(int(w.story.seed%7)+i)%len(w.devices)]
			p := w.price(d)
			if _, err := w.sync(d, rnd); err != nil {
				w.fail("peace", "%s cannot sync at leisure: %v", d.name, err)
			}
			if reads, writes := d.port.reads-p.reads, d.port.writes-p.writes; d.port.purges == p.purges && (writes > 0 || n > 0 && reads != 1) {
				w.fail("cost", "%s: an idle cycle cost %d reads and %d writes", d.name, reads, writes)
			}
			p.check(w, d)
		}
	}
}

// checkSnapshot: the newest snapshot restores, and what came after it is all that is
// read.
func (w *simWorld) checkSnapshot(rnd *rand.Rand) {
	var use messages.StoreUse
	m, err := simManifest(w, &use)
	if errors.Is(err, tidemark.ErrNotFound) {
		return
	}
	w.must(err, "read the manifest")
	path := w.path("last")
	if _, err := tidemark.Restore(context.Background(), path, w.bucket.Store()); err != nil {
		w.fail("restore", "the newest snapshot: %v", err)
	}
	d := w.open(path, false, rnd)
	w.upgradeRestored(d)
	fresh := int64(0)
	for _, doc := range w.server.Dump() {
		if doc.Stamp.Seq > m.Current.Seen[doc.Stamp.Device] {
			fresh++
		}
	}
	p := w.price(d)
	for range 2 {
		if _, err := w.sync(d, rnd); err != nil {
			w.fail("peace", "the restored %s cannot sync: %v", d.name, err)
		}
	}
	if got, most := d.port.reads-p.reads, fresh+p.pairs+3*p.devices; !p.whole && d.port.purges == p.purges && d.port.lookups == 0 && got > most {
		w.fail("cost", "the restored %s read %d where %d documents were new", d.name, got, fresh)
	}
	if d.port.documents == 0 {
		w.same(w.devices[0], d)
	}
}

func (w *simWorld) upgradeRestored(d *simDevice) {
	d.old = w.isOld(d)
	w.upgrade(d)
}
