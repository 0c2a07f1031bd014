package integration

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

const (
	// circleRows are the circles that each device makes: ids are random, so that of each
	// some rows live on and some do not.
	circleRows = 8
	deferred   = " DEFERRABLE INITIALLY DEFERRED"

	deptAndEmp = `CREATE TABLE dept (id INTEGER PRIMARY KEY, name TEXT UNIQUE, head INTEGER REFERENCES emp(id)` + deferred + `);
CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE, dept INTEGER REFERENCES dept(id)` + deferred + `);
CREATE TABLE task (id INTEGER PRIMARY KEY, emp INTEGER REFERENCES emp(id), dept INTEGER REFERENCES dept(id));`
	makeDeptAndEmp = `INSERT INTO dept (id, name, head) VALUES (%[1]d, 'd%[1]d', %[1]d);
INSERT INTO emp (id, name, dept) VALUES (%[1]d, 'e%[1]d', %[1]d); INSERT INTO task (emp, dept) VALUES (%[1]d, %[1]d);`
)

// circleCase is a schema whose rows refer to each other in circles, and what makes the
// nth circle.
type circleCase struct {
	schema, row string
	unique      []string // tables whose rows have a unique name
	apart       []string // tables of whose rows none is another device's
}

var circleCases = map[string]circleCase{
	"two tables": {deptAndEmp, makeDeptAndEmp, []string{"dept", "emp"}, []string{"task"}},
	"one of two is unique": {
		strings.Replace(deptAndEmp, "emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE", "emp (id INTEGER PRIMARY KEY, name TEXT", 1),
		makeDeptAndEmp,
		[]string{"dept"},
		[]string{"emp", "task"},
	},
	"three tables": {
		`CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT UNIQUE, b INTEGER REFERENCES b(id)` + deferred + `);
CREATE TABLE b (id INTEGER PRIMARY KEY, name TEXT UNIQUE, c INTEGER REFERENCES c(id)` + deferred + `);
CREATE TABLE c (id INTEGER PRIMARY KEY, name TEXT UNIQUE, a INTEGER REFERENCES a(id)` + deferred + `, b INTEGER REFERENCES b(id)` + deferred + `);`,
		`INSERT INTO a (id, name, b) VALUES (%[1]d, 'a%[1]d', %[1]d); INSERT INTO b (id, name, c) VALUES (%[1]d, 'b%[1]d', %[1]d);
INSERT INTO c (id, name, a, b) VALUES (%[1]d, 'c%[1]d', %[1]d, %[1]d);`,
		[]string{"a", "b", "c"},
		nil,
	},
	"a table that refers to itself": {
		`CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE, boss INTEGER REFERENCES emp(id)` + deferred + `, deputy INTEGER REFERENCES emp(id)` + deferred + `);`,
		// The boss of the next one; the last one is the boss of the first.
		`INSERT INTO emp (id, name, boss, deputy) VALUES (%[1]d, 'e%[1]d', %[1]d %% 8 + 1, %[1]d);`,
		[]string{"emp"},
		nil,
	},
	"keys that are data": {
		`CREATE TABLE dept (name TEXT PRIMARY KEY, head TEXT REFERENCES emp(name) ON UPDATE CASCADE` + deferred + `);
CREATE TABLE emp (name TEXT PRIMARY KEY, dept TEXT REFERENCES dept(name) ON UPDATE CASCADE` + deferred + `);`,
		`INSERT INTO dept (name, head) VALUES ('d%[1]d', 'e%[1]d'); INSERT INTO emp (name, dept) VALUES ('e%[1]d', 'd%[1]d');`,
		[]string{"dept", "emp"},
		nil,
	},
	"unique within the parent": {
		`CREATE TABLE dept (id INTEGER PRIMARY KEY, name TEXT UNIQUE, head INTEGER REFERENCES emp(id)` + deferred + `);
CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT, dept INTEGER REFERENCES dept(id)` + deferred + `, UNIQUE (dept, name));`,
		`INSERT INTO dept (id, name, head) VALUES (%[1]d, 'd%[1]d', %[1]d); INSERT INTO emp (id, name, dept) VALUES (%[1]d, 'e%[1]d', %[1]d);`,
		[]string{"dept", "emp"},
		nil,
	},
	"keys that are made of the parent's": {
		`CREATE TABLE org (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE emp (org INTEGER NOT NULL REFERENCES org(id), no INTEGER NOT NULL, name TEXT, boss INTEGER, PRIMARY KEY (org, no), FOREIGN KEY (org, boss) REFERENCES emp (org, no)` + deferred + `);`,
		`INSERT INTO org (id, name) VALUES (100 - %[1]d, 'o%[1]d'); INSERT INTO emp (org, no, name, boss) VALUES (100 - %[1]d, 1, 'e%[1]d', 1);`,
		[]string{"org", "emp"},
		nil,
	},
}

// device attaches a device with the policies given, and makes its circles.
func (c *circleCase) device(f *fleet, name string, tables ...tidemark.Table) *device {
	f.t.Helper()
	path := filepath.Join(f.dir, name+".db")
	db := openDB(f.t, path)
	if _, err := db.DB.Exec(c.schema); err != nil {
		f.t.Fatal(err)
	}
	if _, err := tidemark.Attach(f.t.Context(), db, tables...); err != nil {
		f.t.Fatal(err)
	}
	d := f.on(path, db)
	var rows strings.Builder
	for i := 1; i <= circleRows; i++ {
		fmt.Fprintf(&rows, c.row, i)
	}
	d.exec("BEGIN;" + rows.String() + "COMMIT")
	return d
}

// sync syncs and checks what has to hold at every moment: no reference to nothing, and
// every name there once.
func (c *circleCase) sync(d *device) tidemark.Report {
	d.t.Helper()
	r := d.sync()
	if n := d.value(`SELECT count(*) FROM pragma_foreign_key_check`); n != "0" {
		d.t.Fatalf("%s rows refer to nothing", n)
	}
	for _, table := range c.unique {
		if n := d.value(`SELECT count(*) || ' rows, ' || count(DISTINCT name) || ' names' FROM ` + table); n != fmt.Sprintf(`"%[1]d rows, %[1]d names"`, circleRows) {
			d.t.Fatalf("table %s has %s, want %d", table, n, circleRows)
		}
	}
	return r
}

// settle lets the devices sync, and again until nothing may be left to do.
func (c *circleCase) settle(meanwhile func(), ds ...*device) {
	for i := range 5 {
		for _, d := range ds {
			c.sync(d)
			if i < 2 && meanwhile != nil {
				meanwhile()
			}
		}
	}
}

// Rows that refer to each other in a circle, with unique keys, made on every device.
func TestUniqueRowsInACircleOnTwoDevices(t *testing.T) {
	t.Parallel()
	converge := func(t *testing.T, c circleCase, names ...string) {
		t.Helper()
		f := newFleet(t, c.schema)
		var ds []*device
		for _, name := range names {
			ds = append(ds, c.device(f, name))
		}
		c.settle(nil, ds...)
		c.merged(t, ds...)
	}
	for name, c := range circleCases {
		t.Run(name, func(t *testing.T) { converge(t, c, "a", "b") })
	}
	t.Run("three devices", func(t *testing.T) { converge(t, circleCases["two tables"], "a", "b", "c") })
	t.Run("one edits meanwhile", func(t *testing.T) {
		c := circleCases["two tables"]
		f := newFleet(t, c.schema)
		a, b := c.device(f, "a"), c.device(f, "b")
		n := 0
		c.settle(func() {
			n++
			b.exec(`UPDATE emp SET dept = (SELECT id FROM dept WHERE name = ?) WHERE name IN ('e1', 'e2', 'e3')`, fmt.Sprint("d", n))
			b.exec(`UPDATE dept SET head = (SELECT id FROM emp WHERE name = ?) WHERE name IN ('d3', 'd4', 'd5')`, fmt.Sprint("e", 9-n))
		}, a, b)
		c.merged(t, a, b)
		if got := a.value(`SELECT count(*) FROM emp JOIN dept ON dept.id = emp.dept WHERE emp.name IN ('e1', 'e2', 'e3') AND dept.name = 'd4'`); got != "3" {
			t.Errorf("%s of 3 edits are left", got)
		}
	})
}

// merged fails unless all devices have the same rows, every name once, nothing waits,
// and nothing moves any more.
func (c *circleCase) merged(t *testing.T, ds ...*device) {
	t.Helper()
	same(t, ds...)
	for _, d := range ds {
		if got := strings1(t.Context(), t, d.db.DB, `SELECT tableName || ' ' || kind || ': ' || reason FROM tidemark_inbox UNION ALL SELECT tableName || ' dead: ' || reason FROM tidemark_dead_letters`); len(got) > 0 {
			t.Errorf("%s: %d documents did not get in: %q", filepath.Base(d.path), len(got), got)
		}
		for _, table := range c.apart {
			if n := d.value(`SELECT count(*) FROM ` + table); n != strconv.Itoa(circleRows*len(ds)) {
				t.Errorf("%s has %s rows in table %q, want %d", filepath.Base(d.path), n, table, circleRows*len(ds))
			}
		}
		if r := c.sync(d); r.Total().Uploaded != 0 || r.Total().Downloaded != 0 {
			t.Errorf("%s is not quiet: %+v", filepath.Base(d.path), r.Tables)
		}
	}
}

// Where the rows of one table are set aside, each device keeps its own, the documents of
// the others are dead letters, and what refers to those waits for them: it would refer
// to nothing. Nothing else moves, however often they sync.
func TestUniqueRowsInACircleThatAreSetAside(t *testing.T) {
	t.Parallel()
	c := circleCases["two tables"]
	for _, policies := range []map[string]tidemark.UniquePolicy{
		{"dept": tidemark.SetAside, "emp": tidemark.Adopt},
		{"dept": tidemark.Adopt, "emp": tidemark.SetAside},
		{"dept": tidemark.SetAside, "emp": tidemark.SetAside},
	} {
		t.Run(fmt.Sprint(policies), func(t *testing.T) {
			f := newFleet(t, c.schema)
			tables := []tidemark.Table{{Name: "dept", Unique: policies["dept"]}, {Name: "emp", Unique: policies["emp"]}}
			a, b := c.device(f, "a", tables...), c.device(f, "b", tables...)
			made := contents(t.Context(), t, a.db.DB)
			madeB := contents(t.Context(), t, b.db.DB)
			c.settle(nil, a, b)
			diff(t, "a before", made, "a", contents(t.Context(), t, a.db.DB))
			diff(t, "b before", madeB, "b", contents(t.Context(), t, b.db.DB))
			for _, d := range []*device{a, b} {
				for _, table := range []string{"dept", "emp"} {
					letters := d.value(`SELECT count(*) FROM tidemark_dead_letters WHERE tableName = ?`, table)
					waiting := d.value(`SELECT count(*) FROM tidemark_inbox WHERE tableName = ? AND kind = 'waiting'`, table)
					want := [2]string{"0", "8"}
					if policies[table] == tidemark.SetAside {
						want = [2]string{"8", "0"}
					}
					if got := [2]string{letters, waiting}; got != want {
						t.Errorf("%s, table %q: %s dead letters and %s that wait, want %s and %s", filepath.Base(d.path), table, letters, waiting, want[0], want[1])
					}
				}
				if n := d.value(`SELECT count(*) FROM tidemark_inbox WHERE tableName = 'task' AND kind = 'waiting'`); n != "8" {
					t.Errorf("%s: %s tasks of the other device wait, want 8", filepath.Base(d.path), n)
				}
				if r := c.sync(d); r.Total().Uploaded != 0 || r.Total().Downloaded != 0 {
					t.Errorf("%s is not quiet: %+v", filepath.Base(d.path), r.Tables)
				}
			}
		})
	}
}

// A new row refers to the very row that it has a unique key with, and lives on: from then
// on it refers to itself.
func TestARowThatIsMergedWithItsParent(t *testing.T) {
	t.Parallel()
	for schema, key := range map[string]string{
		`CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE, boss INTEGER REFERENCES emp (id))`:                        "id",
		`CREATE TABLE emp (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, boss INTEGER NOT NULL REFERENCES emp (id))`: "id",
		`CREATE TABLE emp (id TEXT, name TEXT UNIQUE, boss TEXT REFERENCES emp (name))`:                                        "name",
	} {
		t.Run(schema, func(t *testing.T) {
			f := newFleet(t, schema)
			put := func(id, boss string) {
				f.server.Put(messages.Document{Table: "emp", ID: id, CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"name": "kim", "boss": boss}})
			}
			put("b", "b")
			a, b := f.device("a"), f.device("b")
			for _, d := range []*device{a, b} {
				if _, err := d.p.SyncFull(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			a.exec(`INSERT INTO emp (name, boss) SELECT 'lee', boss FROM emp`)
			rounds(1, a)
			put("a", "b")
			for _, d := range []*device{a, b} {
				if _, err := d.p.SyncFull(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			rounds(2, a, b)
			same(t, a, b)
			if got := b.value(`SELECT group_concat(e.name || ' of ' || p.name || ' ' || (p.clientId = 'a')) FROM (SELECT * FROM emp ORDER BY name) e JOIN emp p ON p.` + key + ` = e.boss`); got != `"kim of kim 1,lee of kim 1"` {
				t.Errorf("there is %s, letters %s", got, b.value(`SELECT group_concat(documentId || reason) FROM tidemark_dead_letters`))
			}
		})
	}
}

// Deleted rows come back for a child that somebody else has made meanwhile, also when they
// refer to themselves or to each other, and then nothing moves any more.
func TestRowsThatReferToEachOtherComeBack(t *testing.T) {
	t.Parallel()
	for name, rows := range map[string]string{
		"itself":     `INSERT INTO emp (id, name, boss) VALUES (1, 'kim', 1)`,
		"each other": `INSERT INTO emp (id, name, boss) VALUES (1, 'kim', 2), (2, 'lee', 1)`,
		"a ring":     `INSERT INTO emp (id, name, boss) VALUES (1, 'kim', 2), (2, 'lee', 3), (3, 'max', 1), (4, 'ned', 1)`,
	} {
		for _, key := range []string{"name", "id"} {
			t.Run(name+" by "+key, func(t *testing.T) {
				f := newFleet(t, map[string]string{
					"id": `CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE, boss INTEGER REFERENCES emp (id)` + deferred + `);
CREATE TABLE task (id INTEGER PRIMARY KEY, emp INTEGER NOT NULL REFERENCES emp (id) ON DELETE CASCADE);`,
					"name": `CREATE TABLE emp (id INTEGER, name TEXT PRIMARY KEY, boss TEXT REFERENCES emp (name)` + deferred + `);
CREATE TABLE task (id INTEGER PRIMARY KEY, emp TEXT NOT NULL REFERENCES emp (name) ON DELETE CASCADE);`,
				}[key])
				a, b := f.device("a"), f.device("b")
				if key == "name" {
					a.exec(`PRAGMA foreign_keys = OFF; ` + rows + `; UPDATE emp SET boss = (SELECT name FROM emp AS e WHERE e.id = emp.boss); PRAGMA foreign_keys = ON`)
				} else {
					a.exec(rows)
				}
				rounds(2, a, b)
				n := a.value(`SELECT count(*) FROM emp WHERE name <> 'ned'`)
				a.exec(`DELETE FROM emp`)
				b.exec(`INSERT INTO task (emp) SELECT ` + key + ` FROM emp WHERE name = 'kim'`)
				rounds(3, b, a)
				same(t, a, b)
				if got := a.value(`SELECT count(*) FROM emp`); got != n {
					t.Errorf("%s of %s are back", got, n)
				}
				if got := a.value(`SELECT count(*) FROM task JOIN emp ON emp.` + key + ` = task.emp`); got != "1" {
					t.Errorf("%s tasks", got)
				}
				for _, d := range []*device{a, b} {
					if r := d.sync(); r.Billed.Writes != 0 || r.Billed.Reads > 2 {
						t.Errorf("%s still moves: %+v %v", filepath.Base(d.path), r.Billed, r.Tables)
					}
				}
			})
		}
	}
}

// What waits for a row that is merged goes in with it.
func TestAChildOfAMergedRow(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE tag (id INTEGER PRIMARY KEY, name TEXT UNIQUE); CREATE TABLE note (id INTEGER PRIMARY KEY, tag INTEGER REFERENCES tag (id));`)
	put := func(table, id string, fields map[string]any) {
		f.server.Put(messages.Document{Table: table, ID: id, CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: fields})
	}
	put("tag", "zz", map[string]any{"name": "red"}) // random ids are smaller
	put("note", "n", map[string]any{"tag": "zz"})
	a := f.device("a")
	a.exec(`INSERT INTO tag (name) VALUES ('red')`)
	if _, err := a.p.SyncFull(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := a.value(`SELECT count(*) FROM note JOIN tag ON tag.id = note.tag`); got != "1" {
		t.Errorf("%s notes have their tag, %s wait", got, a.value(`SELECT count(*) FROM tidemark_inbox`))
	}
}

// A row that refers to itself took in another one and was deleted; meanwhile somebody else
// has made a child of that one.
func TestAMergedRowComesBackForItsChild(t *testing.T) {
	t.Parallel()
	for _, uploaded := range []bool{false, true} {
		t.Run(fmt.Sprint("uploaded ", uploaded), func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE, boss INTEGER REFERENCES emp (id)); CREATE TABLE task (id INTEGER PRIMARY KEY, emp INTEGER REFERENCES emp (id));`)
			a, b := f.device("a"), f.device("b")
			f.server.Put(messages.Document{Table: "emp", ID: "zz", CreatedOn: 1, UpdatedOn: 1, UpdatedBy: "x", Fields: map[string]any{"name": "kim"}}) // random ids are smaller
			for _, d := range []*device{b, a} {
				d.exec(map[*device]string{a: `INSERT INTO emp (id, name, boss) VALUES (1, 'kim', 1)`, b: `DELETE FROM task`}[d])
				if _, err := d.p.SyncFull(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			b.exec(`INSERT INTO task (emp) SELECT id FROM emp`)
			a.exec(`DELETE FROM emp`)
			if uploaded {
				a.sync()
			}
			rounds(3, b, a)
			same(t, a, b)
			if got := a.value(`SELECT count(*) FROM task JOIN emp ON emp.id = task.emp WHERE name = 'kim'`); got != "1" {
				t.Errorf("%s tasks have their emp", got)
			}
			for _, d := range []*device{a, b} {
				if r := d.sync(); r.Billed.Writes != 0 || r.Billed.Reads > 2 {
					t.Errorf("%s still moves: %+v %v", filepath.Base(d.path), r.Billed, r.Tables)
				}
			}
		})
	}
}
