package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
)

var (
	simSeeds = flag.Int("seeds", 8, "how many random fleets the simulation runs")
	simSeed  = flag.Uint64("seed", 1, "the first seed of the simulation")
)

// simSchema has the difficulties that sync has to survive: a self-reference, a
// cascade, a circle of two tables, a join table, a natural key.
const simSchema = `
CREATE TABLE list (id INTEGER PRIMARY KEY, b TEXT, v TEXT, parent INTEGER REFERENCES list(id));
CREATE TABLE item (id INTEGER PRIMARY KEY, b TEXT, v TEXT, list INTEGER NOT NULL REFERENCES list(id) ON DELETE CASCADE);
CREATE TABLE ping (id INTEGER PRIMARY KEY, b TEXT, v TEXT, other INTEGER REFERENCES pong(id));
CREATE TABLE pong (id INTEGER PRIMARY KEY, b TEXT, v TEXT, other INTEGER REFERENCES ping(id));
CREATE TABLE label (name TEXT PRIMARY KEY, b TEXT, v TEXT) WITHOUT ROWID;
CREATE TABLE tag (id INTEGER PRIMARY KEY, b TEXT, v TEXT, name TEXT UNIQUE);
CREATE TABLE item_tag (item INTEGER REFERENCES item(id) ON DELETE CASCADE, tag INTEGER REFERENCES tag(id) ON DELETE CASCADE, b TEXT, v TEXT, PRIMARY KEY (item, tag));
CREATE TABLE item_label (item INTEGER REFERENCES item(id) ON DELETE CASCADE, label TEXT REFERENCES label(name) ON UPDATE CASCADE ON DELETE CASCADE, b TEXT, v TEXT, PRIMARY KEY (item, label));
`

var simTables = []string{"list", "item", "ping", "pong", "label", "item_label", "tag", "item_tag"}

// TestSimulation lets random fleets work, fail and heal, and then checks that they
// agree with each other, with the server, and with what their users did.
func TestSimulation(t *testing.T) {
	for i := range *simSeeds {
		seed := *simSeed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
			if t.Failed() {
				t.Logf("replay with: go test ./integration -run Simulation -seeds 1 -seed %d", seed)
			}
		})
	}
}

type sim struct {
	t        *testing.T
	rnd      *rand.Rand
	f        *fleet
	devices  []*device
	remotes  map[*device]*memory.Remote
	n        int // numbers what users write
	story    []string
	made     int
	template string
	rows     map[string]*history // what users did, by the row's birth mark
	copies   []fileCopy
	healing  bool
}

func (s *sim) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf("%s "+format, append([]any{time.Now().Format("15:04:05")}, args...)...))
}

func simulate(t *testing.T, seed uint64) {
	s := &sim{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), f: newFleet(t, simSchema), remotes: map[*device]*memory.Remote{}, rows: map[string]*history{}}
	defer func() {
		for _, d := range s.devices {
			_ = d.db.Close()
		}
		if t.Failed() {
			t.Log("\n" + strings.Join(s.story, "\n"))
		}
	}()
	for range 2 + s.rnd.IntN(3) {
		s.add("")
	}
	for range 20 + s.rnd.IntN(60) {
		s.step()
		if t.Failed() {
			return
		}
	}
	s.heal()
}

// add makes a device: a copy of an attached, empty database, or of the file given.
func (s *sim) add(from string) *device {
	s.made++
	path := filepath.Join(s.f.dir, fmt.Sprintf("d%d.db", s.made))
	switch {
	case from != "":
		copyFile(s.t, from, path)
	case s.template == "":
		d := s.f.device("template")
		d.exec(`UPDATE tidemark_state SET installationId = ''`)
		s.template = filepath.Join(s.f.dir, "template.copy")
		d.exec(`VACUUM INTO ?`, s.template)
		_ = d.db.Close()
		copyFile(s.t, s.template, path)
	default:
		copyFile(s.t, s.template, path)
	}
	return s.open(path)
}

func (s *sim) open(path string) *device {
	s.t.Helper()
	db := openDB(s.t, path)
	remote := s.f.server.Remote()
	s.f.remote = func() tidemark.Remote { return remote }
	d := s.f.on(path, db, tidemark.WithRetries(1, time.Second), tidemark.WithBackup(int64(1+s.rnd.IntN(20)), time.Hour, 2), tidemark.WithParallel(1))
	s.remotes[d] = remote
	s.devices = append(s.devices, d)
	return d
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (s *sim) pick() *device { return s.devices[s.rnd.IntN(len(s.devices))] }

func (s *sim) wait(d time.Duration) { <-time.After(d) }

func (s *sim) step() {
	d := s.pick()
	name := filepath.Base(d.path)
	switch k := s.rnd.IntN(100); {
	case k < 55:
		s.edit(d)
	case k < 85:
		s.sync(d)
	case k < 88:
		s.wait(time.Duration(s.rnd.IntN(600)) * time.Second)
	case k < 91 && len(s.devices) < 6: // a clone, identity and all
		path := filepath.Join(s.f.dir, fmt.Sprintf("clone%d", s.made))
		d.exec(`VACUUM INTO ?`, path)
		c := s.add(path)
		s.tell("%s is cloned to %s", name, filepath.Base(c.path))
	case k < 93 && len(s.devices) < 6:
		path := filepath.Join(s.f.dir, fmt.Sprintf("r%d.db", s.made+1))
		s.made++
		_, err := tidemark.Restore(s.t.Context(), path, s.f.store())
		if errors.Is(err, tidemark.ErrNotFound) {
			return
		}
		if err != nil {
			s.t.Fatalf("restore: %v", err)
		}
		s.tell("%s is restored from the snapshot", filepath.Base(path))
		s.open(path)
	case k < 95: // the phone's own backup is kept, or put back
		s.rollback(d)
	case k < 97: // a new device with nothing
		if len(s.devices) < 6 {
			s.tell("%s is new", filepath.Base(s.add("").path))
		}
	}
	s.check(d)
}

// rollback keeps a copy of a device's file, or puts an older one back.
func (s *sim) rollback(d *device) {
	name := filepath.Base(d.path)
	for i, c := range s.copies {
		if c.d != d {
			continue
		}
		s.tell("%s is rolled back", name)
		_ = d.db.Close()
		for _, suffix := range []string{"-wal", "-shm"} {
			_ = os.Remove(d.path + suffix)
		}
		copyFile(s.t, c.path, d.path)
		for _, h := range s.rows {
			for j := range h.events {
				if e := &h.events[j]; e.device == d && !e.at.Before(c.at) {
					e.lost = true
				}
			}
		}
		s.copies = append(s.copies[:i], s.copies[i+1:]...)
		d.db = openDB(s.t, d.path)
		remote := s.remotes[d]
		s.f.remote = func() tidemark.Remote { return remote }
		d.p = s.f.on(d.path, d.db, tidemark.WithRetries(1, time.Second), tidemark.WithParallel(1)).p
		return
	}
	path := filepath.Join(s.f.dir, fmt.Sprintf("copy%d", len(s.story)))
	d.exec(`VACUUM INTO ?`, path)
	s.copies = append(s.copies, fileCopy{d, path, time.Now()})
	s.tell("%s: a copy is kept", name)
}

// check: foreign keys hold at every moment.
func (s *sim) check(d *device) {
	s.t.Helper()
	if got := strings1(s.t.Context(), s.t, d.db.DB, `SELECT "table" || ' ' || coalesce(rowid, '') FROM pragma_foreign_key_check`); len(got) > 0 {
		s.t.Errorf("%s: foreign_key_check: %v", filepath.Base(d.path), got)
	}
}

func (s *sim) value() string {
	s.n++
	return fmt.Sprintf("v%d", s.n)
}

// edit is one statement of a user.
func (s *sim) edit(d *device) {
	table := simTables[s.rnd.IntN(len(simTables))]
	v := s.value()
	nth := func(col, from string) string {
		return fmt.Sprintf("(SELECT %s FROM %s ORDER BY %s LIMIT 1 OFFSET %d %% max(1, (SELECT count(*) FROM %s)))", col, from, col, s.rnd.IntN(1000), from)
	}
	var q string
	switch s.rnd.IntN(10) {
	case 0, 1, 2, 3:
		switch table {
		case "list":
			q = fmt.Sprintf(`INSERT INTO list (b, v, parent) VALUES ('b%[1]s', '%[1]s', CASE WHEN %[2]d THEN %[3]s END)`, v, s.rnd.IntN(2), nth("id", "list"))
		case "item":
			q = fmt.Sprintf(`INSERT INTO item (b, v, list) SELECT 'b%[1]s', '%[1]s', id FROM list WHERE id = %[2]s`, v, nth("id", "list"))
		case "ping", "pong":
			other := map[string]string{"ping": "pong", "pong": "ping"}[table]
			q = fmt.Sprintf(`INSERT INTO %[1]s (b, v, other) VALUES ('b%[2]s', '%[2]s', %[3]s)`, table, v, nth("id", other))
			if s.rnd.IntN(3) == 0 { // a true circle
				q += fmt.Sprintf(`; INSERT INTO %[1]s (b, v, other) VALUES ('b%[2]s', '%[2]s', (SELECT max(id) FROM %[3]s)); UPDATE %[3]s SET other = (SELECT max(id) FROM %[1]s) WHERE id = (SELECT max(id) FROM %[3]s)`,
					other, s.value(), table)
			}
		case "label":
			q = fmt.Sprintf(`INSERT INTO label (name, b, v) VALUES ('%[1]s %[2]s', 'b%[2]s', '%[2]s')`, filepath.Base(d.path), v)
		case "tag":
			q = fmt.Sprintf(`INSERT OR IGNORE INTO tag (b, v, name) VALUES ('b%[1]s', '%[1]s', 'name%[2]d')`, v, s.rnd.IntN(6))
		case "item_tag":
			q = fmt.Sprintf(`INSERT OR IGNORE INTO item_tag (item, tag, b, v) SELECT i.id, l.id, 'b%[1]s', '%[1]s' FROM item i, tag l WHERE i.id = %[2]s AND l.id = %[3]s`,
				v, nth("id", "item"), nth("id", "tag"))
		case "item_label":
			q = fmt.Sprintf(`INSERT OR IGNORE INTO item_label (item, label, b, v) SELECT i.id, l.name, 'b%[1]s', '%[1]s' FROM item i, label l WHERE i.id = %[2]s AND l.name = %[3]s AND l.b LIKE '%%%[4]d' AND i.b LIKE '%%%[5]d'`,
				v, nth("id", "item"), nth("name", "label"), s.made%10, s.rnd.IntN(10))
		}
	case 4, 5, 6:
		q = fmt.Sprintf(`UPDATE %s SET v = '%s' WHERE clientId = %s`, table, v, nth("clientId", table))
	case 7:
		switch table {
		case "list":
			q = fmt.Sprintf(`UPDATE list SET v = '%s', parent = %s WHERE id = %s`, v, nth("id", "list"), nth("id", "list"))
		case "item":
			q = fmt.Sprintf(`UPDATE item SET v = '%s', list = %s WHERE id = %s`, v, nth("id", "list"), nth("id", "item"))
		case "tag":
			q = fmt.Sprintf(`UPDATE OR IGNORE tag SET v = '%s', name = 'name%d' WHERE id = %s`, v, s.rnd.IntN(6), nth("id", "tag"))
		case "label":
			q = fmt.Sprintf(`UPDATE label SET v = '%s', name = '%s %s' WHERE name = %s`, v, filepath.Base(d.path), v, nth("name", "label"))
		default:
			q = fmt.Sprintf(`INSERT OR REPLACE INTO list (id, b, v) SELECT id, b, '%s' FROM list WHERE id = %s AND id NOT IN (SELECT list FROM item) AND id NOT IN (SELECT parent FROM list WHERE parent IS NOT NULL)`, v, nth("id", "list"))
		}
	default:
		q = fmt.Sprintf(`DELETE FROM %s WHERE clientId = %s`, table, nth("clientId", table))
	}
	before := s.state(d)
	_, err := d.db.DB.ExecContext(s.t.Context(), q)
	s.tell("%s: %s [%v]", filepath.Base(d.path), q, err)
	s.observe(d, before)
	s.wait(time.Duration(s.rnd.IntN(4)) * time.Millisecond)
}

var errNetwork = fmt.Errorf("the network failed: %w", tidemark.ErrUnavailable)

// sync runs a cycle, with something going wrong now and then.
func (s *sim) sync(d *device) {
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	r := s.remotes[d]
	trouble := ""
	if !s.healing && s.rnd.IntN(3) == 0 {
		at, kind := int64(1+s.rnd.IntN(8)), s.rnd.IntN(11)
		n := int64(0)
		r.Fault = func(c memory.Call) memory.Fault {
			n++
			if n != at {
				return memory.Fault{}
			}
			trouble = fmt.Sprintf("%s fails, kind %d", c.Op, kind)
			switch kind {
			case 0:
				return memory.Fault{Before: errNetwork}
			case 1:
				return memory.Fault{After: errNetwork}
			case 2:
				return memory.Fault{Later: errNetwork}
			case 3:
				return memory.Fault{Break: errNetwork, BreakAfter: s.rnd.IntN(3)}
			case 4:
				return memory.Fault{Repeat: true}
			case 5:
				return memory.Fault{Then: cancel}
			case 6:
				cancel()
				return memory.Fault{}
			case 8, 9, 10: // the application writes meanwhile
				return memory.Fault{Then: func() { s.edit(d); s.edit(d); s.edit(d) }}
			default:
				return memory.Fault{Backdate: time.Duration(s.rnd.IntN(270)) * time.Second}
			}
		}
		defer func() { r.Fault = nil }()
	}
	rep, err := d.p.Sync(ctx)
	s.tell("%s: sync %s [%v] %s %+v", filepath.Base(d.path), trouble, err, rep.DeviceID[:min(4, len(rep.DeviceID))], rep.Tables)
	if s.rnd.IntN(4) == 0 {
		for _, err := range s.f.server.Deliver() {
			s.tell("a late commit arrives [%v]", err)
		}
	}
	if err != nil && s.healing {
		s.t.Errorf("sync %s in peace: %v", filepath.Base(d.path), err)
	}
	s.wait(time.Duration(1+s.rnd.IntN(5000)) * time.Millisecond)
}

// heal syncs everybody in peace until nothing moves, and checks.
func (s *sim) heal() {
	s.healing = true
	s.f.server.Deliver()
	for i := range 12 {
		moved := false
		for _, d := range s.devices {
			before := s.f.server.Bill()
			s.sync(d)
			s.check(d)
			if s.f.server.Bill().Writes != before.Writes {
				moved = true
			}
			if s.t.Failed() {
				return
			}
		}
		if !moved && i > 1 {
			break
		}
		if i == 11 {
			s.t.Errorf("still moving after %d rounds", i)
		}
	}
	same(s.t, s.devices...)
	s.server(s.devices[0])
	s.users(s.devices[0])
}

// server: the documents are the rows of every device, one to one.
func (s *sim) server(d *device) {
	ids := map[string]string{}
	for _, table := range simTables {
		for _, id := range strings1(s.t.Context(), s.t, d.db.DB, `SELECT clientId || ' ' || coalesce(v, '') FROM `+table) {
			id, v, _ := strings.Cut(id, " ")
			ids[table+" "+id] = v
		}
	}
	for _, doc := range s.f.server.Dump() {
		k := doc.Table + " " + doc.ID
		v, ok := ids[k]
		switch {
		case doc.Deleted && ok:
			s.t.Errorf("%s is deleted on the server and here on %s", k, filepath.Base(d.path))
		case !doc.Deleted && !ok:
			s.t.Errorf("%s lives on the server and is not on %s", k, filepath.Base(d.path))
		case !doc.Deleted && doc.Fields["v"] != v:
			s.t.Errorf("%s has %q on the server and %q on %s", k, doc.Fields["v"], v, filepath.Base(d.path))
		}
		delete(ids, k)
	}
	left := []string{}
	for k := range ids {
		left = append(left, k)
	}
	sort.Strings(left)
	if len(left) > 0 {
		s.t.Errorf("not on the server: %v", left)
	}
}

// history is what users did to one row, as seen in the database before and after
// each of their statements; tidemark has no part in it.
type history struct {
	table  string
	events []event
}

type event struct {
	device *device
	at     time.Time
	v      string // what was written; "" for a delete
	lost   bool   // the file it was made in was rolled back, perhaps before it went up
}

// state reads the rows of a device by their birth marks.
func (s *sim) state(d *device) map[string][2]string {
	out := map[string][2]string{}
	for _, table := range simTables {
		for _, r := range strings1(s.t.Context(), s.t, d.db.DB, `SELECT coalesce(b, '?') || '|' || coalesce(v, '') FROM `+table) {
			b, v, _ := strings.Cut(r, "|")
			if _, twice := out[b]; twice {
				s.t.Errorf("%s: row %s is there twice", filepath.Base(d.path), b)
			}
			out[b] = [2]string{table, v}
		}
	}
	return out
}

func (s *sim) observe(d *device, before map[string][2]string) {
	after := s.state(d)
	for b, row := range after {
		if was, ok := before[b]; ok && was == row {
			continue
		}
		h := s.rows[b]
		if h == nil {
			h = &history{table: row[0]}
			s.rows[b] = h
		}
		h.events = append(h.events, event{device: d, at: time.Now(), v: row[1]})
	}
	for b := range before {
		if _, ok := after[b]; !ok {
			s.rows[b].events = append(s.rows[b].events, event{device: d, at: time.Now()})
		}
	}
}

// users checks the rows against what users did to them.
func (s *sim) users(d *device) {
	final := s.state(d)
	for b, h := range s.rows {
		row, present := final[b]
		var last *event // the latest thing that nobody has lost
		deleted, maybe := false, false
		for i := range h.events {
			e := &h.events[i]
			if e.lost {
				maybe = true
				continue
			}
			if e.v == "" {
				deleted = true
			}
			if last == nil || !e.at.Before(last.at) {
				last = e
			}
		}
		delete(final, b)
		switch {
		case h.table == "tag" || h.table == "item_tag": // merged by their unique keys
			continue
		case last == nil || maybe: // a rollback may have taken any of it
			continue
		case !deleted && !present:
			s.t.Errorf("row %s of %s is lost: nobody deleted it: %s", b, h.table, s.trace(h))
		case !deleted && row[1] != last.v:
			s.t.Errorf("row %s of %s has %s and the last edit was %s: %s", b, h.table, row[1], last.v, s.trace(h))
		case deleted && !present && last.v != "" && !s.cascaded(h, last):
			s.t.Errorf("row %s of %s is gone although it was edited last: %s", b, h.table, s.trace(h))
		case deleted && present && last.v == "" && (h.table == "item_label" || h.table == "ping" && false):
			s.t.Errorf("row %s of %s has come back: %s", b, h.table, s.trace(h))
		case present && !s.wrote(h, row[1]):
			s.t.Errorf("row %s of %s has %s, which nobody wrote: %s", b, h.table, row[1], s.trace(h))
		}
	}
	for b, row := range final {
		s.t.Errorf("row %s %v was never made", b, row)
	}
}

// cascaded: an equally late delete elsewhere, or one whose clock ran ahead by the
// strictly rising updatedOn.
func (s *sim) cascaded(h *history, last *event) bool {
	for _, e := range h.events {
		if e.v == "" && last.at.Sub(e.at) < time.Second {
			return true
		}
	}
	return false
}

func (s *sim) wrote(h *history, v string) bool {
	for _, e := range h.events {
		if e.v == v {
			return true
		}
	}
	return false
}

func (s *sim) trace(h *history) string {
	var b strings.Builder
	for _, e := range h.events {
		what := e.v
		if what == "" {
			what = "deleted"
		}
		fmt.Fprintf(&b, "%s %s %s; ", e.at.Format("15:04:05.000"), filepath.Base(e.device.path), what)
	}
	return b.String()
}

// fileCopy is a device's file as it was, for a rollback.
type fileCopy struct {
	d    *device
	path string
	at   time.Time
}
