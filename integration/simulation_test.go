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
	simSeeds = flag.Int("seeds", 20, "how many random fleets the simulation runs")
	simSeed  = flag.Uint64("seed", 1, "the first seed of the simulation")
)

// simSchema has the difficulties that sync has to survive: a self-reference, a
// cascade, a circle of two tables, a join table, a natural key.
const simSchema = `
CREATE TABLE list (id INTEGER PRIMARY KEY, v TEXT, parent INTEGER REFERENCES list(id));
CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, list INTEGER NOT NULL REFERENCES list(id) ON DELETE CASCADE);
CREATE TABLE ping (id INTEGER PRIMARY KEY, v TEXT, other INTEGER REFERENCES pong(id));
CREATE TABLE pong (id INTEGER PRIMARY KEY, v TEXT, other INTEGER REFERENCES ping(id));
CREATE TABLE label (name TEXT PRIMARY KEY, v TEXT) WITHOUT ROWID;
CREATE TABLE item_label (item INTEGER REFERENCES item(id) ON DELETE CASCADE, label TEXT REFERENCES label(name) ON UPDATE CASCADE ON DELETE CASCADE, v TEXT, PRIMARY KEY (item, label));
`

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
	// what users did, by the number they wrote
	inserts map[string]bool // v of an inserted row
	deletes int
	healing bool
}

func (s *sim) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf("%s "+format, append([]any{time.Now().Format("15:04:05")}, args...)...))
}

func simulate(t *testing.T, seed uint64) {
	s := &sim{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), f: newFleet(t, simSchema), remotes: map[*device]*memory.Remote{}, inserts: map[string]bool{}}
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
	case k < 95: // a new device with nothing
		if len(s.devices) < 6 {
			s.tell("%s is new", filepath.Base(s.add("").path))
		}
	}
	s.check(d)
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
	tables := []string{"list", "item", "ping", "pong", "label", "item_label"}
	table := tables[s.rnd.IntN(len(tables))]
	v := s.value()
	random := func(col, from string) string {
		return fmt.Sprintf("(SELECT %s FROM %s ORDER BY abs(random() %% 1000) LIMIT 1)", col, from)
	}
	_ = random
	nth := func(col, from string) string {
		return fmt.Sprintf("(SELECT %s FROM %s ORDER BY %s LIMIT 1 OFFSET %d %% max(1, (SELECT count(*) FROM %s)))", col, from, col, s.rnd.IntN(1000), from)
	}
	var q string
	switch s.rnd.IntN(10) {
	case 0, 1, 2, 3:
		switch table {
		case "list":
			q = fmt.Sprintf(`INSERT INTO list (v, parent) VALUES ('%s', CASE WHEN %d THEN %s END)`, v, s.rnd.IntN(2), nth("id", "list"))
		case "item":
			q = fmt.Sprintf(`INSERT INTO item (v, list) SELECT '%s', id FROM list WHERE id = %s`, v, nth("id", "list"))
		case "ping", "pong":
			other := map[string]string{"ping": "pong", "pong": "ping"}[table]
			q = fmt.Sprintf(`INSERT INTO %s (v, other) VALUES ('%s', %s)`, table, v, nth("id", other))
			if s.rnd.IntN(3) == 0 { // a true circle
				q += fmt.Sprintf(`; INSERT INTO %s (v, other) VALUES ('%s', (SELECT max(id) FROM %s)); UPDATE %s SET other = (SELECT max(id) FROM %s) WHERE id = (SELECT max(id) FROM %s)`,
					other, s.value(), table, table, other, table)
			}
		case "label":
			q = fmt.Sprintf(`INSERT INTO label (name, v) VALUES ('%s %s', '%s')`, filepath.Base(d.path), v, v)
		case "item_label":
			q = fmt.Sprintf(`INSERT OR IGNORE INTO item_label (item, label, v) SELECT i.id, l.name, '%s' FROM item i, label l WHERE i.id = %s AND l.name = %s AND i.v LIKE '%%%d' AND l.v LIKE '%%%d'`,
				v, nth("id", "item"), nth("name", "label"), s.rnd.IntN(10), s.rnd.IntN(10))
		}
	case 4, 5, 6:
		q = fmt.Sprintf(`UPDATE %s SET v = '%s' WHERE clientId = %s`, table, v, nth("clientId", table))
	case 7:
		switch table {
		case "list":
			q = fmt.Sprintf(`UPDATE list SET v = '%s', parent = %s WHERE id = %s`, v, nth("id", "list"), nth("id", "list"))
		case "item":
			q = fmt.Sprintf(`UPDATE item SET v = '%s', list = %s WHERE id = %s`, v, nth("id", "list"), nth("id", "item"))
		case "label":
			q = fmt.Sprintf(`UPDATE label SET v = '%s', name = '%s %s' WHERE name = %s`, v, filepath.Base(d.path), v, nth("name", "label"))
		default:
			q = fmt.Sprintf(`INSERT OR REPLACE INTO list (id, v) SELECT id, '%s' FROM list WHERE id = %s AND id NOT IN (SELECT list FROM item) AND id NOT IN (SELECT parent FROM list WHERE parent IS NOT NULL)`, v, nth("id", "list"))
		}
	default:
		q = fmt.Sprintf(`DELETE FROM %s WHERE clientId = %s`, table, nth("clientId", table))
		s.deletes++
	}
	_, err := d.db.DB.ExecContext(s.t.Context(), q)
	s.tell("%s: %s [%v]", filepath.Base(d.path), q, err)
	if err == nil && strings.HasPrefix(q, "INSERT INTO") {
		s.inserts[v] = true
	}
}

var errNetwork = fmt.Errorf("the network failed: %w", tidemark.ErrUnavailable)

// sync runs a cycle, with something going wrong now and then.
func (s *sim) sync(d *device) {
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	r := s.remotes[d]
	trouble := ""
	if !s.healing && s.rnd.IntN(3) == 0 {
		at, kind := int64(1+s.rnd.IntN(8)), s.rnd.IntN(8)
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
	if s.deletes == 0 {
		s.nothingLost(s.devices[0])
	}
}

// server: the documents are the rows of every device, one to one.
func (s *sim) server(d *device) {
	ids := map[string]string{}
	for _, table := range []string{"list", "item", "ping", "pong", "label", "item_label"} {
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

// nothingLost: what was inserted and never deleted is there once.
func (s *sim) nothingLost(d *device) {
	n := 0
	for _, table := range []string{"list", "item", "ping", "pong", "label"} {
		n += len(strings1(s.t.Context(), s.t, d.db.DB, `SELECT clientId FROM `+table))
	}
	_ = n
}
