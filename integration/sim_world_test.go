package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// simLab keeps what all simulations of a test share: attached, empty databases.
type simLab struct {
	t         *testing.T
	dir       string
	templates map[string]string
	runs      int
}

func newSimLab(t *testing.T) *simLab {
	return &simLab{t: t, dir: t.TempDir(), templates: map[string]string{}}
}

// template is an attached database of a schema without rows and without an identity.
func (l *simLab) template(s *simSchema, policy int, old bool) string {
	key := fmt.Sprintf("%s-%d-%v", s.name, policy, old)
	if path := l.templates[key]; path != "" {
		return path
	}
	path := filepath.Join(l.dir, key+".db")
	db := bun.NewDB(openSim(simDSN(path, true), &simDisk{}), sqlitedialect.New())
	ddl := s.ddl
	if old {
		ddl = s.old
	}
	for q := range strings.SplitSeq(ddl, ";\n") {
		l.must(db, q)
	}
	setup := slices.DeleteFunc(slices.Clone(s.setup), func(t tidemark.Table) bool { return old && s.table(t.Name).young })
	if _, err := tidemark.Attach(l.t.Context(), db, setup...); err != nil {
		l.t.Fatal(err)
	}
	l.must(db, `UPDATE tidemark_state SET installationId = ''`)
	l.must(db, `PRAGMA wal_checkpoint(TRUNCATE)`)
	_ = db.Close()
	l.templates[key] = path
	return path
}

func (l *simLab) must(db *bun.DB, query string) {
	if _, err := db.DB.ExecContext(l.t.Context(), query); err != nil {
		l.t.Fatalf("%s: %v", query, err)
	}
}

// simDSN has what the engine would otherwise set for a while, and undo: each change
// makes SQLite parse every statement again.
func simDSN(path string, engine bool) string {
	dsn := "file:" + path + "?_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)&_pragma=temp_store(MEMORY)&_pragma=cache_size(-16384)&_pragma=wal_autocheckpoint(32000)"
	if !engine {
		dsn += "&_pragma=foreign_keys(1)"
	}
	return dsn
}

// simWorld is one simulation under way.
type simWorld struct {
	lab      *simLab
	dir      string
	story    simStory
	schema   *simSchema
	variant  *simVariant
	model    *simModel
	server   *memory.Server
	bucket   *memory.Bucket
	devices  []*simDevice
	copies   []simCopy
	acting   *simDevice
	ids      *rand.ChaCha8
	made     int
	numbers  int
	syncing  int // how deep: devices sync while others do
	healing  bool
	trace    []string
	dump     string // what the server holds in the end, rows and records
	problems []string
	class    string
	counts   simCounts
}

// simCounts says how much a simulation did.
type simCounts struct{ cycles, faults, edits, devices, conflicts int }

// simDevice is one installation: a process and its file.
type simDevice struct {
	name     string
	path     string
	old      bool
	upgraded bool          // since its last cycle
	offset   time.Duration // its clock's error
	disk     *simDisk
	db       *bun.DB // the engine's
	app      *sql.DB // the application's
	p        *tidemark.Pipeline
	remote   *memory.Remote
	port     *simPort
	store    *memory.Store
	syncing  bool
	rnd      *rand.Rand // of the cycle that runs
	repeat   int
}

type simCopy struct {
	d    *simDevice
	path string
	at   time.Time
	old  bool
}

type simStop struct{}

// run lets a story happen and says what was wrong with it: "" when nothing was.
func (l *simLab) run(story simStory, variant *simVariant) *simWorld {
	l.runs++
	schema := simSchemas[story.schema].with(story.policy)
	l.template(&schema, story.policy, false)
	if schema.old != "" {
		l.template(&schema, story.policy, true)
	}
	w := &simWorld{lab: l, story: story, schema: &schema, variant: variant, dir: filepath.Join(l.dir, fmt.Sprint("run", l.runs))}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	defer os.RemoveAll(w.dir)
	synctest.Test(l.t, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, story.seed)
		simRunning.Store(w)
		defer simRunning.Store(nil)
		defer w.close()
		defer func() {
			if r := recover(); r != nil && r != (simStop{}) {
				w.note("panic", "%v\n%s", r, debug.Stack())
			}
		}()
		defer func() {
			w.dump = fmt.Sprintf("%+v\n%+v\n%+v", w.server.Dump(), w.server.DumpDevices(), w.server.Bill())
		}()
		w.live()
	})
	return w
}

func (w *simWorld) close() {
	for _, d := range w.devices {
		d.close()
	}
}

func (d *simDevice) close() {
	_ = d.db.Close()
	_ = d.app.Close()
}

func (w *simWorld) skew() time.Duration {
	if w.acting == nil {
		return 0
	}
	return w.acting.offset
}

func (w *simWorld) tell(format string, args ...any) {
	w.trace = append(w.trace, time.Now().UTC().Format("02T15:04:05.000 ")+strings.Repeat("  ", w.syncing)+fmt.Sprintf(format, args...))
}

// note records a violation; fail ends the story with one.
func (w *simWorld) note(class, format string, args ...any) {
	if w.class == "" {
		w.class = class
	}
	w.problems = append(w.problems, class+": "+fmt.Sprintf(format, args...))
}

func (w *simWorld) fail(class, format string, args ...any) {
	w.note(class, format, args...)
	panic(simStop{})
}

func (w *simWorld) must(err error, what string) {
	if err != nil {
		w.fail("harness", "%s: %v", what, err)
	}
}

func (w *simWorld) seedIDs(seed uint64) {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	w.ids = rand.NewChaCha8(key)
}

func (w *simWorld) live() {
	w.server, w.bucket = memory.NewServer(), memory.NewBucket()
	w.model = &simModel{schema: w.schema, strict: w.story.strict, picky: w.story.picky, rows: map[string]*simHistory{}, landed: map[string]bool{}, buried: map[string]int64{}, kept: map[string]bool{}, beaten: map[string]bool{}, final: map[string]bool{}, muddled: map[string]bool{}, copied: map[*simDevice]bool{}, problem: w.fail}
	w.seedIDs(w.story.seed)
	rnd := rand.New(rand.NewPCG(w.story.seed, 1))
	for range w.story.devices {
		w.add(rnd)
	}
	w.begin(rnd)
	for _, a := range w.story.actions {
		w.seedIDs(a.seed)
		w.act(a)
	}
	w.seedIDs(w.story.seed + 1)
	w.heal(rand.New(rand.NewPCG(w.story.seed, 2)))
}

func (w *simWorld) maxDevices() int { return 8 }

// act does one step.
func (w *simWorld) act(a simAction) {
	d := w.devices[int(a.device)%len(w.devices)]
	rnd := a.rnd()
	room := len(w.devices) < w.maxDevices()
	switch a.kind {
	case simEdit:
		w.edit(d, rnd)
	case simSync:
		_, _ = w.sync(d, rnd) // it may fail: the next one goes on
	case simWait:
		wait := []time.Duration{time.Second, time.Minute, 10 * time.Minute, 2 * time.Hour, 50 * time.Hour, 100 * 24 * time.Hour}[rnd.IntN(6)]
		w.tell("%v pass", wait)
		w.wait(wait + time.Duration(rnd.IntN(1000))*time.Millisecond)
	case simClone: // identity and all
		if room {
			path := w.path("clone")
			_, err := d.app.Exec(`VACUUM INTO ?`, path)
			w.must(err, "clone")
			w.model.muddle(d.app)
			w.model.copied[d] = true
			c := w.open(path, d.old, rnd)
			c.offset = d.offset
			w.tell("%s is cloned to %s", d.name, c.name)
		}
	case simRestore:
		if room && !w.tampered() {
			w.restore(rnd)
		}
	case simKeep: // the phone's own backup
		path := w.path("copy")
		_, err := d.app.Exec(`VACUUM INTO ?`, path)
		w.must(err, "copy")
		w.model.muddle(d.app)
		w.copies = append(w.copies, simCopy{d, path, time.Now(), d.old})
		w.tell("a copy of %s is kept", d.name)
		w.wait(2 * time.Millisecond)
	case simRollback:
		w.rollback(d)
	case simNew:
		if room {
			w.tell("%s is new", w.add(rnd).name)
		}
	case simVanish:
		if len(w.devices) > 2 {
			w.vanish(d)
		}
	case simDeliver:
		w.deliver()
	case simClock:
		if !w.story.strict {
			d.offset = w.clock(rnd)
			w.tell("the clock of %s is %v off", d.name, d.offset)
		}
	case simUpgrade:
		w.upgrade(d)
	default:
		panic("unknown step")
	}
	if !slices.Contains(w.devices, d) {
		return
	}
	w.checkKeys(d)
}

// clock is how wrong a device's clock is: seconds, minutes or years, either way.
func (w *simWorld) clock(rnd *rand.Rand) time.Duration {
	off := []time.Duration{0, time.Second, time.Minute, time.Hour, 24 * time.Hour, 5 * 365 * 24 * time.Hour}[rnd.IntN(6)]
	off += time.Duration(rnd.IntN(60000)) * time.Millisecond
	if rnd.IntN(2) == 0 {
		return -off
	}
	return off
}

func (w *simWorld) wait(d time.Duration) { <-time.After(d) }

func (w *simWorld) path(kind string) string {
	w.made++
	return filepath.Join(w.dir, fmt.Sprintf("%s%d.db", kind, w.made))
}

// add makes a device with nothing on it, sometimes one that was not upgraded.
func (w *simWorld) add(rnd *rand.Rand) *simDevice {
	old := w.schema.old != "" && rnd.IntN(3) == 0
	path := w.path("device")
	w.must(copyPath(w.lab.template(w.schema, w.story.policy, old), path), "new device")
	d := w.open(path, old, rnd)
	if !w.story.strict && rnd.IntN(2) == 0 {
		d.offset = w.clock(rnd)
	}
	return d
}

func copyPath(from, to string) error {
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	return err
}

// open starts a device's process on its file.
func (w *simWorld) open(path string, old bool, rnd *rand.Rand) *simDevice {
	d := &simDevice{name: fmt.Sprintf("d%d", len(w.devices)+w.counts.devices+1), path: path, old: old, remote: w.server.Remote(), store: w.bucket.Store()}
	w.counts.devices++
	d.name = fmt.Sprintf("d%d", w.counts.devices)
	d.port = &simPort{Remote: d.remote, w: w, d: d}
	w.boot(d, int64(3+rnd.IntN(40)))
	w.devices = append(w.devices, d)
	return d
}

func (w *simWorld) boot(d *simDevice, backup int64) {
	d.disk = &simDisk{}
	d.db = bun.NewDB(openSim(simDSN(d.path, true), d.disk), sqlitedialect.New())
	d.app = openSim(simDSN(d.path, false), d.disk)
	d.db.SetMaxOpenConns(4)
	d.app.SetMaxOpenConns(1)
	if w.variant != nil && w.variant.opened != nil {
		w.must(w.variant.opened(d.db.DB, w.schema), "variant")
	}
	var remote tidemark.Remote = d.port
	if w.variant != nil && w.variant.remote != nil {
		remote = w.variant.remote(w, d, remote)
	}
	acting := w.acting
	w.acting = d
	defer func() { w.acting = acting }()
	var err error
	opts := []tidemark.Option{
		tidemark.WithRetries(1, time.Nanosecond), // any longer, and its jitter is not ours to repeat
		tidemark.WithBackup(backup, time.Hour, 3),
		tidemark.WithTakeover(time.Duration(backup%2) * time.Hour), // everybody at once, or in turns
		tidemark.WithBus(func() tidemark.Bus { return newSimBus(d.rnd, d.repeat, true) }),
	}
	for i := range w.schema.tables {
		if t := &w.schema.tables[i]; t.combine == tidemark.ByApplication {
			opts = append(opts, tidemark.WithResolver(t.name, simResolver))
		}
	}
	d.p, err = tidemark.New(context.Background(), d.db, remote, d.store, opts...)
	w.must(err, "open "+d.name)
}

// tampered: a restore refuses what a variant has put into our tables.
func (w *simWorld) tampered() bool { return w.variant != nil && w.variant.opened != nil }

func (w *simWorld) restore(rnd *rand.Rand) {
	var opts []tidemark.RestoreOption
	var use messages.StoreUse
	m, err := simManifest(w, &use)
	if errors.Is(err, tidemark.ErrNotFound) {
		return
	}
	w.must(err, "read the manifest")
	all := append([]messages.Snapshot{m.Current}, m.Older...)
	snap := all[rnd.IntN(len(all))]
	opts = append(opts, tidemark.RestoreGeneration(snap.Generation))
	path := w.path("restored")
	if _, err := tidemark.Restore(context.Background(), path, w.bucket.Store(), opts...); err != nil {
		w.fail("restore", "generation %s: %v", snap.Generation, err)
	}
	d := w.open(path, false, rnd)
	d.old = w.isOld(d)
	w.model.muddle(d.app)
	w.tell("%s is restored from generation %s", d.name, snap.Generation)
}

func (w *simWorld) isOld(d *simDevice) bool {
	for i := range w.schema.tables {
		if t := &w.schema.tables[i]; t.extra != "" {
			var n int
			w.must(d.app.QueryRow(`SELECT count(*) FROM pragma_table_info(?) WHERE name = ?`, t.name, t.extra).Scan(&n), "schema")
			return n == 0
		}
	}
	return false
}

// rollback puts back the oldest copy that was kept of a device's file.
func (w *simWorld) rollback(d *simDevice) {
	for i, c := range w.copies {
		if c.d != d {
			continue
		}
		w.landed()
		w.model.keep(d.app)
		w.model.lose(d, c.at)
		w.model.copied[d] = true
		d.close()
		for _, suffix := range []string{"-wal", "-shm"} {
			_ = os.Remove(d.path + suffix)
		}
		w.must(copyPath(c.path, d.path), "roll back")
		w.copies = slices.Delete(w.copies, i, i+1)
		d.old = c.old
		w.boot(d, 20)
		w.tell("%s is rolled back to %s", d.name, c.at.UTC().Format("02T15:04:05"))
		return
	}
}

func (w *simWorld) vanish(d *simDevice) {
	w.landed()
	w.model.keep(d.app)
	w.model.lose(d, time.Time{})
	w.devices = slices.DeleteFunc(w.devices, func(o *simDevice) bool { return o == d })
	w.copies = slices.DeleteFunc(w.copies, func(c simCopy) bool { return c.d == d })
	d.close()
	w.tell("%s vanishes for ever", d.name)
}

// upgrade brings a device to the schema that the others have.
func (w *simWorld) upgrade(d *simDevice) {
	if !d.old {
		return
	}
	for q := range strings.SplitSeq(w.schema.update, ";\n") {
		_, err := d.app.Exec(q)
		w.must(err, q)
	}
	_, err := tidemark.Attach(context.Background(), d.db, w.schema.setup...)
	w.must(err, "attach again")
	d.old, d.upgraded = false, true
	w.tell("%s is upgraded", d.name)
}

func (w *simWorld) deliver() {
	for _, err := range w.server.Deliver() {
		w.tell("a late commit arrives [%v]", err)
	}
	w.landed()
}

// landed notes all that the server has at the moment.
func (w *simWorld) landed() {
	for _, doc := range w.server.Dump() {
		w.model.land(&doc)
	}
}

// edit is a transaction of a user: all of it, or nothing.
func (w *simWorld) edit(d *simDevice, rnd *rand.Rand) {
	acting := w.acting
	w.acting = d
	defer func() { w.acting = acting }()
	w.counts.edits++
	w.write(d, w.writer(d, rnd).statements())
	if rnd.IntN(3) > 0 { // now and then devices write within one millisecond
		w.wait(time.Duration(1+rnd.IntN(400)) * time.Millisecond)
	}
	if w.story.strict {
		w.wait(2 * simWindow)
	}
}

func (w *simWorld) writer(d *simDevice, rnd *rand.Rand) *simWriter {
	return &simWriter{schema: w.schema, rnd: rnd, old: d.old, next: func() int { w.numbers++; return w.numbers }}
}

// begin gives everybody some rows whose fields they can merge.
func (w *simWorld) begin(rnd *rand.Rand) {
	var statements []string
	for i := range w.schema.tables {
		if t := &w.schema.tables[i]; t.fields {
			statements = append(statements, w.writer(w.devices[0], rnd).insert(t, "INSERT OR IGNORE", 3)...)
		}
	}
	if len(statements) == 0 {
		return
	}
	w.acting = w.devices[0]
	w.write(w.devices[0], statements)
	w.acting = nil
	for _, d := range w.devices {
		_, _ = w.sync(d, rnd) // it may fail: the next one goes on
	}
}

// write runs a user's transaction and tells the model.
func (w *simWorld) write(d *simDevice, statements []string) {
	before := w.model.read(d.app, d.old)
	touched := map[string]bool{}
	last := before
	err := transact(d.app, statements, func(conn *sql.Conn) {
		now := w.model.read(conn, d.old)
		w.model.touched(last, now, touched)
		last = now
	})
	after := w.model.read(d.app, d.old)
	if err != nil {
		clear(touched)
	}
	said := w.model.observe(d, before, after, touched)
	if d.syncing {
		w.model.muddle(d.app)
	}
	w.tell("%s: %s [%v] %s", d.name, strings.Join(statements, "; "), err, strings.Join(said, ", "))
}

// transact runs a transaction and calls then after each of its statements but the last.
func transact(db *sql.DB, statements []string, then func(*sql.Conn)) error {
	conn, err := db.Conn(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	for i, q := range append(append([]string{"BEGIN IMMEDIATE"}, statements...), "COMMIT") {
		if _, err := conn.ExecContext(context.Background(), q); err != nil {
			_, _ = conn.ExecContext(context.Background(), "ROLLBACK") // fails when it is rolled back already
			return err
		}
		if i > 0 && i < len(statements) {
			then(conn)
		}
	}
	return nil
}

// checkKeys: foreign keys hold at every moment, for every program that looks.
func (w *simWorld) checkKeys(d *simDevice) {
	var n int
	var first sql.NullString
	w.must(d.app.QueryRow(`SELECT count(*), min("table" || ' → ' || parent) FROM pragma_foreign_key_check`).Scan(&n, &first), "foreign_key_check")
	if n > 0 {
		w.fail("keys", "%s: %d rows refer to nothing: %s", d.name, n, first.String)
	}
}

func (w *simWorld) lines(d *simDevice) map[string]string {
	out := map[string]string{}
	for _, r := range w.model.read(d.app, d.old) {
		out[r.table.name+" "+r.clientID] = r.line
	}
	return out
}

// same fails unless two devices hold the same rows.
func (w *simWorld) same(a, b *simDevice) {
	x, y := w.lines(a), w.lines(b)
	if maps.Equal(x, y) {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(x)) {
		if y[k] != x[k] {
			w.fail("differ", "%s has %q and %s has %q", a.name, x[k], b.name, y[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(y)) {
		if y[k] != x[k] {
			w.fail("differ", "%s has %q and %s has %q", a.name, x[k], b.name, y[k])
		}
	}
}
