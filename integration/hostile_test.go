package integration

import (
	"context"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// dice draws from a fuzzer's bytes; without any left it draws zeros. Tables are read side
// by side.
type dice struct {
	mu   sync.Mutex
	data []byte
}

func (d *dice) n(below int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.data) == 0 {
		return 0
	}
	b := int(d.data[0])
	d.data = d.data[1:]
	return b % below
}

func drawn[T any](d *dice, list ...T) T { return list[d.n(len(list))] }

// hostileRemote is a server that answers what it likes, as far as a Remote can say it.
type hostileRemote struct {
	tidemark.Remote
	d     *dice
	me    func() string
	ids   []string // of documents that there are
	large atomic.Int64
	peace bool
}

const injection = `"; DROP TABLE note; --`

func (r *hostileRemote) name() string {
	return drawn(r.d, "a", "", injection, "'); DELETE FROM note; --", "\x00", "\xff\xfe", "a\nb\x1b[31m", "..", "a/b", strings.Repeat("i", 2000), "note", "tidemark_state", "sqlite_master", "Devices", r.me())
}

func (r *hostileRemote) number() int64 {
	return drawn(r.d, 0, 1, 2, 3, -1, messages.MaxSeq, messages.MaxSeq+1, math.MaxInt64, math.MinInt64, 1_700_000_000_000, 1_700_000_000_000_000)
}

func (r *hostileRemote) numbers() map[string]int64 {
	m := map[string]int64{}
	for range r.d.n(4) {
		m[drawn(r.d, "note", "book", "page", r.name())] = r.number()
	}
	if r.d.n(12) == 11 {
		for i := range 1000 {
			m["t"+strconv.Itoa(i)] = r.number()
		}
	}
	return m
}

func (r *hostileRemote) value() any {
	return drawn(r.d,
		func() any { return nil }, func() any { return true }, func() any { return r.number() }, func() any { return r.name() },
		func() any {
			return drawn(r.d, math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1), math.MaxFloat64, 5e-324, 1<<53+1)
		},
		func() any { return []byte(r.name()) }, func() any { return []byte{} }, func() any { return messages.Unsupported{Type: drawn(r.d, "map", "array", injection)} },
		func() any { return r.big() }, func() any { return "0x10" }, func() any { return "1e400" },
	)()
}

// big is a text as large as a document, a few times.
func (r *hostileRemote) big() string {
	if r.large.Add(1) > 4 {
		return ""
	}
	return strings.Repeat("x", 1<<20)
}

func (r *hostileRemote) device(d messages.Device) messages.Device {
	if r.d.n(3) == 0 {
		d.ID = r.name()
	}
	if r.d.n(2) == 0 {
		d.Seq = r.number()
	}
	if r.d.n(2) == 0 {
		d.Tables = r.numbers()
	}
	if r.d.n(3) == 0 {
		d.Seen = r.numbers()
	}
	if r.d.n(4) == 0 {
		d.Fence = r.numbers()
	}
	if r.d.n(4) == 0 {
		d.UpdateTime = r.number()
	}
	if r.d.n(4) == 0 {
		d.Token, d.Name, d.Platform, d.Version = r.name(), r.name(), r.name(), r.name()
	}
	if r.d.n(4) == 0 {
		d.UploadedOn = r.number()
	}
	return d
}

func (r *hostileRemote) document(table string) messages.Document {
	d := messages.Document{
		Table: table, ID: drawn(r.d, append([]string{"new", r.name()}, r.ids...)...), CreatedOn: r.number(), UpdatedOn: r.number(), UpdatedBy: r.name(),
		UploadedOn: r.number(), UpdateTime: r.number(), Stamp: messages.Stamp{Device: r.name(), Seq: r.number()}, Fields: map[string]any{},
	}
	d.Deleted = r.d.n(5) == 4
	if d.Deleted {
		d.Survivor = drawn(r.d, "", "new", r.name())
	}
	for _, column := range []string{"id", "title", "book", "text", "serverId", "isDirty", "rowid", r.name()} {
		if r.d.n(2) == 0 {
			d.Fields[column] = r.value()
		}
	}
	if r.d.n(20) == 19 {
		for i := range 1000 {
			d.Fields[injection+strconv.Itoa(i)] = r.value()
		}
	}
	return d
}

func (r *hostileRemote) hostile() bool {
	return !r.peace && r.d.n(3) > 0
}

func (r *hostileRemote) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	list, err := r.Remote.Devices(ctx, since)
	if err != nil || !r.hostile() {
		return list, err
	}
	for i := range list.Devices {
		if r.d.n(3) == 0 {
			list.Devices[i] = r.device(list.Devices[i])
		}
	}
	for range r.d.n(5) {
		list.Devices = append(list.Devices, r.device(messages.Device{ID: "other", Seq: 1, Tables: map[string]int64{"note": 1, "page": 1, "book": 1}, UpdateTime: 1}))
	}
	if r.d.n(10) == 9 {
		list.ReadTime = r.number()
	}
	return list, nil
}

func (r *hostileRemote) Device(ctx context.Context, id string) (messages.Device, error) {
	d, err := r.Remote.Device(ctx, id)
	if err == nil && r.hostile() {
		d = r.device(d)
	}
	return d, err
}

func (r *hostileRemote) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	n, err := r.Remote.Read(ctx, q, yield)
	if err != nil || !r.hostile() {
		return n, err
	}
	for range r.d.n(5) {
		if err := yield(r.document(drawn(r.d, q.Table, r.name()))); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (r *hostileRemote) Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	page, err := r.Remote.Documents(ctx, table, ids, readTime)
	if err == nil && r.hostile() {
		for range r.d.n(3) {
			page.Documents = append(page.Documents, r.document(table))
		}
	}
	return page, err
}

func (r *hostileRemote) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	done, err := r.Remote.Commit(ctx, c)
	if err == nil && r.hostile() {
		done.UpdateTime = r.number()
	}
	return done, err
}

// besieged syncs a database with a server that answers what the bytes say, and then
// with one that has come to its senses.
func besieged(t *testing.T, data []byte) {
	t.Helper()
	f := newFleet(t, parentAndChild+oneTable)
	server := memory.NewServer()
	var a *device
	hostile := &hostileRemote{Remote: server.Remote(), d: &dice{data: data}, peace: true, me: func() string {
		return strings.Trim(a.value(`SELECT installationId FROM tidemark_state`), `"`)
	}}
	f.remote = func() tidemark.Remote { return hostile }
	policy := tidemark.DefaultRetryPolicy()
	policy.Unavailable.Times, policy.Conflict.Times = 0, 1
	a = f.device("a", tidemark.WithRetryPolicy(policy))
	a.exec(`INSERT INTO book (title) VALUES ('one'), ('two')`)
	a.exec(`INSERT INTO page (book, text) VALUES (1, 'p'), (2, 'q')`)
	a.exec(`INSERT INTO note (title) VALUES ('n')`)
	a.sync()
	for _, d := range server.Dump() {
		hostile.ids = append(hostile.ids, d.ID)
	}
	a.exec(`UPDATE page SET text = 'mine' WHERE id = 1`)
	a.exec(`INSERT INTO note (title) VALUES ('my own')`)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hostile.peace = false
	for i := range 4 {
		hostile.peace = i == 3
		_, err := a.p.Sync(ctx)
		switch {
		case err == nil:
		case messages.Class(err) == "bug":
			t.Errorf("an error of no class: %v", err)
		case strings.Contains(err.Error(), "panicked"), ctx.Err() != nil:
			t.Errorf("%v", err)
		}
		if _, err := a.p.Status(ctx); err != nil {
			t.Errorf("status: %v", err)
		}
	}
	for range tidemark.Doctor(ctx, a.db, tidemark.Checkup{Remote: hostile}) { // it must not panic
	}
	if got := a.value(`SELECT (SELECT group_concat(integrity_check) FROM pragma_integrity_check) || (SELECT count(*) FROM pragma_foreign_key_check)
		|| (SELECT count(*) FROM sqlite_master WHERE name IN ('note', 'book', 'page'))`); got != `"ok03"` {
		t.Errorf("the database is not sound: %s", got)
	}
	// What was written here is here, or kept as a conflict, or the server has it: then the
	// row was clean, and took what the server said next.
	arrived := map[any]bool{}
	for _, d := range server.Dump() {
		arrived[d.Fields["title"]], arrived[d.Fields["text"]] = true, true
	}
	if got := a.value(`SELECT (SELECT count(*) FROM note WHERE title = 'my own') + (SELECT count(*) FROM tidemark_conflicts WHERE CAST(localVersion AS TEXT) LIKE '%my own%')`); got == "0" && !arrived["my own"] {
		t.Error("a row that was written here is gone")
	}
	if got := a.value(`SELECT (SELECT count(*) FROM page WHERE text = 'mine') + (SELECT count(*) FROM tidemark_conflicts WHERE CAST(localVersion AS TEXT) LIKE '%mine%')`); got == "0" && !arrived["mine"] {
		t.Error("an edit that was made here is gone")
	}
}

// Whatever a server answers, nothing panics, nothing is executed, the file stays sound,
// and what was written here is there, or kept as a conflict, or went up.
func FuzzHostileServer(f *testing.F) {
	for seed := range uint64(12) {
		random := newRand(seed)
		data := make([]byte, 40+random.IntN(1500))
		for i := range data {
			data[i] = byte(random.IntN(256))
		}
		f.Add(data)
	}
	f.Fuzz(besieged)
}

// Documents of the greatest size, by the hundred, take no more memory than a page.
func TestLargestDocumentsTakeAPageOfMemory(t *testing.T) {
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.sync()
	big := strings.Repeat("x", messages.MaxDocumentBytes-2000)
	const documents = 300
	for i := range documents { // they share the text
		f.server.Put(messages.Document{Table: "note", ID: "d" + strconv.Itoa(i), CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"title": big}})
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	peak := make(chan uint64)
	go func() {
		var most uint64
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-tick.C:
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapAlloc)
			case <-done:
				tick.Stop()
				peak <- most
				return
			}
		}
	}()
	if _, err := a.p.SyncFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(done)
	if got := a.value(`SELECT count(*) FROM note WHERE length(title) > 1000000`); got != strconv.Itoa(documents) {
		t.Fatalf("%s documents arrived", got)
	}
	if most := <-peak; most > before.HeapAlloc+150<<20 {
		t.Errorf("%d MiB more than before, for %d MiB of documents", (most-before.HeapAlloc)>>20, documents*len(big)>>20)
	}
}

// A name is only a name: tables and columns whose names are SQL, keywords, quotes,
// brackets, line breaks or nothing but blanks go through everything there is.
func TestNamesThatAreSQL(t *testing.T) {
	t.Parallel()
	names := []string{injection, `'); DROP TABLE x; --`, "select", `"`, "'", "`", "[x]", "a\nb", " ", "ünï – 数", "?1", "%s"}
	more := []string{`\`, "]", "--", "/*", "*/", ";", "(", ")", ",", ".", "main.x", ":a", "@a", "$a", "_", "TABLE", "e\x1b[31m", `""`, "a\tb", "%", "NULL", "1"}
	var schema strings.Builder
	q := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	for i, n := range names {
		other := names[(i+7)%len(names)]
		schema.WriteString("CREATE TABLE " + q(n) + " (id INTEGER PRIMARY KEY, " + q(n+"c") + " TEXT UNIQUE, " + q(other+"d") + " BLOB, parent INTEGER REFERENCES " + q(names[(i+1)%len(names)]))
		if i == 0 {
			for _, m := range more {
				schema.WriteString(", " + q(m) + " TEXT DEFAULT " + "'x'")
			}
		}
		schema.WriteString(");\n")
	}
	f := newFleet(t, schema.String())
	a, b := f.device("a", tidemark.WithBackup(1, time.Hour, 2), tidemark.WithTakeover(0)), f.device("b")
	for i, n := range names {
		a.exec("INSERT INTO "+q(n)+" (id, "+q(n+"c")+", "+q(names[(i+7)%len(names)]+"d")+") VALUES (1, ?, ?)", n, []byte(injection))
		if i > 0 {
			a.exec("UPDATE " + q(names[i-1]) + " SET parent = 1 WHERE id = 1")
		}
	}
	a.sync()
	b.sync()
	same(t, a, b)
	for _, n := range names { // conflicts, deletes, two rows with one key, and a row that cannot go up
		a.exec("UPDATE " + q(n) + " SET " + q(n+"c") + " = 'a'")
		b.exec("UPDATE " + q(n) + " SET " + q(n+"c") + " = 'b'")
		a.exec("INSERT INTO " + q(n) + " (" + q(n+"c") + ") VALUES ('twin')")
		b.exec("INSERT INTO " + q(n) + " (" + q(n+"c") + ") VALUES ('twin')")
		b.exec("INSERT INTO " + q(n) + " (" + q(n+"c") + ") VALUES ('gone')")
		b.exec("DELETE FROM " + q(n) + " WHERE " + q(n+"c") + " = 'gone'")
	}
	a.sync()
	b.sync()
	a.sync()
	b.sync()
	same(t, a, b)
	conflicts := 0
	for _, d := range []*device{a, b} {
		for _, err := range tidemark.Conflicts(t.Context(), d.db, tidemark.ConflictFilter{}) {
			if err != nil {
				t.Fatal(err)
			}
			conflicts++
		}
	}
	if conflicts < len(names) {
		t.Errorf("only %d conflicts", conflicts)
	}
	a.exec("INSERT INTO " + q(injection) + " (" + q(injection+"c") + ") VALUES (CAST(x'ff' AS TEXT))")
	a.sync()
	if letters := a.failed(tidemark.DeadLetterFilter{Table: injection}); len(letters) != 1 {
		t.Errorf("letters: %+v", letters)
	}
	for finding := range tidemark.Doctor(t.Context(), a.db, tidemark.Checkup{Remote: f.remote(), Store: f.store()}) {
		if finding.Level == tidemark.Problem {
			t.Errorf("doctor: %+v", finding)
		}
	}
	a.exec("DELETE FROM " + q(injection) + " WHERE typeof(" + q(injection+"c") + ") = 'text' AND hex(" + q(injection+"c") + ") = 'FF'")
	a.sync()
	c := f.restore("c")
	c.sync()
	a.sync()
	b.sync()
	same(t, a, b, c)
}

// Nobody can have purged what nobody wrote: a fence above its writer's number is a lie,
// and does not make every device read everything in every cycle.
func TestAFenceThatLies(t *testing.T) {
	t.Parallel()
	f := newFleet(t, oneTable)
	a := f.device("a")
	a.notes(100)
	a.sync()
	list := f.server.DumpDevices()
	liar := &lyingRemote{Remote: f.server.Remote(), record: messages.Device{ID: "liar", Seq: 0, UploadedOn: list[0].UploadedOn, UpdateTime: 1, Fence: messages.Vector{"nobody": math.MaxInt64, "liar": 7}}}
	f.remote = func() tidemark.Remote { return liar }
	b := f.device("b")
	b.sync()
	for range 3 {
		if r := b.sync(); r.Billed.Reads > 10 {
			t.Errorf("an idle cycle was billed %d reads", r.Billed.Reads)
		}
	}
}

// lyingRemote adds a record to every answer.
type lyingRemote struct {
	tidemark.Remote
	record messages.Device
}

func (r *lyingRemote) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	list, err := r.Remote.Devices(ctx, since)
	list.Devices = append(list.Devices, r.record)
	return list, err
}

func (r *lyingRemote) Device(ctx context.Context, id string) (messages.Device, error) {
	if id == r.record.ID {
		return r.record, nil
	}
	return r.Remote.Device(ctx, id)
}
