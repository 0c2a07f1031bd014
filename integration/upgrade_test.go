package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// troubles are what a device has set aside, holds back or kept.
func (d *device) troubles() string {
	d.t.Helper()
	return strings.Join(strings1(d.t.Context(), d.t, d.db.DB, `SELECT 'waits: ' || tableName || ' ' || kind || ': ' || reason FROM tidemark_inbox UNION ALL SELECT state || ': ' || handler || ' ' || tableName || ': ' || reason FROM tidemark_dead_letters
		UNION ALL SELECT 'conflict: ' || tableName || ' ' || winner || ': ' || reason || ' ' || coalesce(CAST(localVersion AS TEXT), '') || ' ' || coalesce(CAST(serverVersion AS TEXT), '') FROM tidemark_conflicts`), "\n\t")
}

// rebuildAs is SQLite's way to change a table.
func rebuildAs(table, body, into, from string) string {
	return fmt.Sprintf(`PRAGMA foreign_keys = OFF; CREATE TABLE new_%[1]s (%[2]s); INSERT INTO new_%[1]s (%[3]s) SELECT %[4]s FROM %[1]s; DROP TABLE %[1]s; ALTER TABLE new_%[1]s RENAME TO %[1]s; PRAGMA foreign_keys = ON`,
		table, body, into, from)
}

// An application's upgrade arrives on one device, and some syncs later on the other one. Nothing
// is there twice, and nothing is gone.
func TestUpgradesOneDeviceAfterTheOther(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ schema, rows, upgrade, show, want string }{
		"not null": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item SELECT 1`,
			rebuildAs("item", "id INTEGER PRIMARY KEY, v TEXT NOT NULL", "id, v", "id, coalesce(v, '')"),
			`SELECT group_concat(quote(v), ' ') FROM (SELECT v FROM item ORDER BY v)`, `"'' 'one'"`,
		},
		"text to integer": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item (id, v) VALUES (1, '1'), (2, '2')`,
			rebuildAs("item", "id INTEGER PRIMARY KEY, v INTEGER", "id, v", "id, CAST(v AS INTEGER)"),
			`SELECT group_concat(quote(v), ' ') FROM (SELECT v FROM item ORDER BY v)`, `"1 2"`,
		},
		"integer to text": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v INTEGER)`, `INSERT INTO item (id, v) VALUES (1, 1), (2, 2)`,
			rebuildAs("item", "id INTEGER PRIMARY KEY, v TEXT", "id, v", "id, v"),
			`SELECT group_concat(quote(v), ' ') FROM (SELECT v FROM item ORDER BY v)`, `"'1' '2'"`,
		},
		"foreign key": {
			`CREATE TABLE book (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, book INTEGER)`,
			`INSERT INTO book (id, v) VALUES (7, 'seven'); INSERT INTO item (id, v, book) VALUES (1, 'one', 7), (2, 'two', NULL)`,
			rebuildAs("item", "id INTEGER PRIMARY KEY, v TEXT, book INTEGER REFERENCES book (id)", "id, v, book", "id, v, book"),
			`SELECT group_concat(x, ' ') FROM (SELECT item.v || coalesce(book.v, '') AS x FROM item LEFT JOIN book ON book.id = item.book ORDER BY 1)`, `"oneseven two"`,
		},
		"no foreign key": {
			`CREATE TABLE book (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, book INTEGER REFERENCES book (id))`,
			`INSERT INTO book (id, v) VALUES (7, 'seven'); INSERT INTO item (id, v, book) VALUES (1, 'one', 7), (2, 'two', NULL)`,
			rebuildAs("item", "id INTEGER PRIMARY KEY, v TEXT, book INTEGER", "id, v, book", "id, v, book"),
			`SELECT group_concat(x, ' ') FROM (SELECT item.v || coalesce(book.v, '') AS x FROM item LEFT JOIN book ON book.id = item.book ORDER BY 1)`, `"oneseven two"`,
		},
		"gets a key": {
			`CREATE TABLE item (v TEXT, w TEXT)`, `INSERT INTO item (v) VALUES ('one'), ('two')`,
			rebuildAs("item", "id INTEGER PRIMARY KEY, v TEXT, w TEXT", "v, w", "v, w"),
			`SELECT group_concat(v, ' ') FROM (SELECT v FROM item ORDER BY v)`, `"one two"`,
		},
		"loses its key": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`,
			rebuildAs("item", "v TEXT", "v", "v"),
			`SELECT group_concat(v, ' ') FROM (SELECT v FROM item ORDER BY v)`, `"one two"`,
		},
		"text key": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`,
			rebuildAs("item", "id TEXT PRIMARY KEY, v TEXT", "id, v", "id, v"),
			`SELECT group_concat(v, ' ') FROM (SELECT v FROM item ORDER BY v)`, `"one two"`,
		},
		"without rowid": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`,
			`CREATE TABLE new_item (id INTEGER PRIMARY KEY, v TEXT) WITHOUT ROWID; INSERT INTO new_item SELECT id, v FROM item; DROP TABLE item; ALTER TABLE new_item RENAME TO item`,
			`SELECT group_concat(v, ' ') FROM (SELECT v FROM item ORDER BY v)`, `"one two"`,
		},
		"another key": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, code TEXT UNIQUE, v TEXT)`, `INSERT INTO item (id, code, v) VALUES (1, 'a', 'one'), (2, 'b', 'two')`,
			rebuildAs("item", "code TEXT PRIMARY KEY, v TEXT", "code, v", "code, v"),
			`SELECT group_concat(v, ' ') FROM (SELECT v FROM item ORDER BY v)`, `"one two"`,
		},
		"table renamed": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`,
			`ALTER TABLE item RENAME TO thing`,
			`SELECT group_concat(v, ' ') FROM (SELECT v FROM thing ORDER BY v)`, `"one two"`,
		},
		"column renamed": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`,
			`ALTER TABLE item RENAME COLUMN v TO w`,
			`SELECT group_concat(w, ' ') FROM (SELECT w FROM item ORDER BY w)`, `"one two"`,
		},
		"reference renamed": {
			`CREATE TABLE book (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, book INTEGER REFERENCES book (id))`,
			`INSERT INTO book (id, v) VALUES (7, 'seven'); INSERT INTO item (id, v, book) VALUES (1, 'one', 7), (2, 'two', NULL)`,
			`ALTER TABLE item RENAME COLUMN book TO volume`,
			`SELECT group_concat(x, ' ') FROM (SELECT item.v || coalesce(book.v, '') AS x FROM item LEFT JOIN book ON book.id = item.volume ORDER BY 1)`, `"oneseven two"`,
		},
		"check": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`, `INSERT INTO item (id, v) VALUES (1, 'one'), (2, ' two ')`,
			rebuildAs("item", "id INTEGER PRIMARY KEY, v TEXT CHECK (v = trim(v))", "id, v", "id, trim(v)"),
			`SELECT group_concat(v, ' ') FROM (SELECT v FROM item ORDER BY v)`, `"one two"`,
		},
		"type changed in place": {
			`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, n TEXT)`, `INSERT INTO item (id, v, n) VALUES (1, 'one', '1'), (2, 'two', NULL)`,
			`ALTER TABLE item ADD COLUMN m INTEGER; UPDATE item SET m = CAST(n AS INTEGER) WHERE n IS NOT NULL; ALTER TABLE item DROP COLUMN n; ALTER TABLE item RENAME COLUMN m TO n`,
			`SELECT group_concat(v || coalesce(n, ''), ' ') FROM (SELECT * FROM item ORDER BY v)`, `"one1 two"`,
		},
	} {
		{
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if name == "not null" {
					c.rows = `INSERT INTO item (id, v) VALUES (1, 'one'), (2, NULL)`
				}
				f := newFleet(t, c.schema)
				a, b := f.device("a"), f.device("b")
				a.exec(c.rows)
				rounds(2, a, b)
				if _, err := b.db.DB.Exec(c.upgrade); err != nil {
					t.Fatalf("the upgrade fails: %v", err)
				}
				rounds(2, b, a)
				if got := b.value(c.show); got != c.want {
					t.Errorf("upgraded on b, and it has %s\n\tb: %s\n\ta: %s", got, b.troubles(), a.troubles())
				}
				if n := a.value(`SELECT count(*) FROM item`); n != "2" {
					t.Errorf("upgraded on b, and a has %s rows\n\t%s", n, a.troubles())
				}
				if _, err := a.db.DB.Exec(c.upgrade); err != nil {
					t.Fatalf("the upgrade fails: %v", err)
				}
				rounds(2, a, b)
				for name, d := range map[string]*device{"a": a, "b": b} {
					if got := d.value(c.show); got != c.want {
						t.Errorf("upgraded on both, and %s has %s\n\t%s", name, got, d.troubles())
					}
				}
				same(t, a, b)
			})
		}
	}
}

// A column is renamed on one device, where somebody then edits it, and later on the other one.
// Renaming is no edit.
func TestARenamedColumnThatIsEditedElsewhere(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	const rename = `ALTER TABLE item RENAME COLUMN v TO w`
	b.exec(rename)
	rounds(2, b, a)
	later()
	b.exec(`UPDATE item SET w = 'edited' WHERE id = 1`)
	rounds(2, b, a)
	later()
	a.exec(rename)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT group_concat(w, ' ') FROM (SELECT w FROM item ORDER BY id)`); got != `"edited two"` {
		t.Errorf("b has %s; a %s; b %s", got, a.troubles(), b.troubles())
	}
}

// An upgrade adds a column and fills it; between one device and the other somebody has edited it.
// What is lost is kept.
func TestAColumnThatEveryUpgradeFills(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	const upgrade = `ALTER TABLE item ADD COLUMN x TEXT; UPDATE item SET x = upper(v)`
	b.exec(upgrade)
	rounds(2, b, a)
	later()
	b.exec(`UPDATE item SET x = 'by hand' WHERE id = 1`)
	rounds(2, b, a)
	later()
	a.exec(upgrade)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT x FROM item WHERE id = 1`); got != `"by hand"` && !strings.Contains(a.troubles()+b.troubles(), "by hand") {
		t.Errorf("x is %s, and what the user wrote is gone; a %s; b %s", got, a.troubles(), b.troubles())
	}
}

// A device skips a release: a column goes and comes back within one upgrade. Nobody has emptied
// what the others have there.
func TestAColumnThatGoesAndComesBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, x TEXT, v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (v, x) VALUES ('one', 'x')`)
	rounds(2, a, b)
	b.exec(`ALTER TABLE item DROP COLUMN x; ALTER TABLE item ADD COLUMN x TEXT`)
	rounds(1, b)
	b.exec(`UPDATE item SET v = 'edited'`)
	rounds(2, b, a)
	same(t, a, b)
	if got := a.value(`SELECT v || coalesce(x, ' nothing') FROM item`); got != `"editedx"` {
		t.Errorf("a has %s", got)
	}
}

// A column is spelled otherwise.
func TestAColumnThatIsSpelledOtherwise(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, Title TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (Title) VALUES ('one'), ('two')`)
	rounds(2, a, b)
	const rename = `ALTER TABLE item RENAME COLUMN Title TO title`
	b.exec(rename)
	rounds(2, b, a)
	a.exec(`UPDATE item SET Title = 'of a' WHERE id = 1`)
	rounds(1, a)
	b.exec(`UPDATE item SET title = 'of b' WHERE id = 2`)
	rounds(2, b, a)
	a.exec(rename)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(`SELECT group_concat(title, ' ') FROM (SELECT title FROM item ORDER BY id)`); got != `"of a of b"` {
		t.Errorf("b has %s", got)
	}
}

// A trigger of the newer application derives a column that older devices do not have.
func TestATriggerDerivesAColumnThatOldDevicesLack(t *testing.T) {
	t.Parallel()
	for name, trigger := range map[string]string{
		"insert": `CREATE TRIGGER derive AFTER INSERT ON item BEGIN UPDATE item SET search = lower(NEW.v) WHERE id = NEW.id; END`,
		"both": `CREATE TRIGGER derive AFTER INSERT ON item BEGIN UPDATE item SET search = lower(NEW.v) WHERE id = NEW.id; END;
			CREATE TRIGGER derive2 AFTER UPDATE OF v ON item BEGIN UPDATE item SET search = lower(NEW.v) WHERE id = NEW.id; END`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`)
			old := f.device("old")
			f.schema = `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, search TEXT); ` + trigger
			b := f.device("b")
			rounds(1, old, b)
			old.exec(`INSERT INTO item (v) VALUES ('One')`)
			rounds(2, old, b)
			if got := b.value(`SELECT search FROM item`); got != `"one"` {
				t.Errorf("b finds %s", got)
			}
			if name == "both" {
				old.exec(`UPDATE item SET v = 'Two'`)
				rounds(2, old, b)
				if got := b.value(`SELECT search FROM item`); got != `"two"` {
					t.Errorf("b finds %s after an edit", got)
				}
			}
		})
	}
}

// A download is cut off before a table was read, and the application rebuilds that table: what
// somebody else has edited is not undone by the copy.
func TestARebuildAfterACutBeforeTheTable(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT)`)
	a := f.device("a")
	cut := false
	f.faulty(func(c memory.Call) memory.Fault {
		if cut && c.Op == memory.OpRead && c.Query.Table == "item" {
			return memory.Fault{Before: messages.ErrUnauthorized}
		}
		return memory.Fault{}
	})
	b := f.device("b")
	a.exec(`INSERT INTO item (id, v) VALUES (1, 'one'), (2, 'two')`)
	rounds(2, a, b)
	a.exec(`UPDATE item SET v = 'edited' WHERE id = 1`)
	rounds(1, a)
	cut = true
	b.syncs(messages.ErrUnauthorized)
	cut = false
	b.exec(rebuildItem)
	rounds(2, b, a)
	same(t, a, b)
	if got := a.value(`SELECT v FROM item WHERE id = 1`); got != `"edited"` {
		t.Errorf("a has %s; a %s; b %s", got, a.troubles(), b.troubles())
	}
}

// A table is renamed on one device, then on the other; its children still have their parents,
// also on a device that comes new.
func TestARenamedTableWithChildren(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE part (id INTEGER PRIMARY KEY, v TEXT, item INTEGER NOT NULL REFERENCES item (id))`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (v) VALUES ('one'), ('two'); INSERT INTO part (v, item) VALUES ('p', 1), ('q', 2)`)
	rounds(2, a, b)
	const upgrade = `ALTER TABLE item RENAME TO thing`
	b.exec(upgrade)
	rounds(2, b, a)
	f.schema = `CREATE TABLE thing (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE part (id INTEGER PRIMARY KEY, v TEXT, item INTEGER NOT NULL REFERENCES thing (id))`
	c := f.device("c")
	rounds(2, c)
	if n := c.value(`SELECT count(*) FROM part`); n != "2" {
		t.Errorf("a new device has %s parts: %s", n, c.troubles())
	}
	b.exec(`UPDATE thing SET v = 'edited' WHERE v = 'one'; DELETE FROM part WHERE v = 'q'; DELETE FROM thing WHERE v = 'two'`)
	rounds(1, b)
	a.exec(upgrade)
	rounds(2, a, b, c)
	for name, d := range map[string]*device{"a": a, "b": b, "c": c} {
		if got := d.value(`SELECT group_concat(v, ' ') FROM (SELECT v FROM thing ORDER BY v)`); got != `"edited"` {
			t.Errorf("%s has %s", name, got)
		}
	}
	same(t, a, b, c)
}

// A table that the application has dropped, with deletes that were not uploaded, leaves nothing
// that waits for ever.
func TestADroppedTableWithDeletesThatWait(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE part (id INTEGER PRIMARY KEY, v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (v) VALUES ('one'), ('two'); INSERT INTO part (v) VALUES ('p')`)
	rounds(2, a, b)
	b.exec(`DELETE FROM item WHERE id = 1; DROP TABLE item`)
	rounds(2, b)
	st, err := b.p.Status(t.Context())
	if err != nil || !st.InStep {
		t.Errorf("b is not in step: %+v %v", st, err)
	}
}

// A snapshot is restored, and the newer application that is there rebuilds the table and converts
// what is in it, before the first sync.
func TestAMigrationThatConvertsAfterARestore(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, price INTEGER)`)
	a := f.device("a")
	a.exec(`INSERT INTO item (id, price) VALUES (1, 5), (2, 7)`)
	a.sync()
	c := f.restore("c")
	c.exec(`CREATE TABLE new_item (id INTEGER PRIMARY KEY, price INTEGER); INSERT INTO new_item (id, price) SELECT id, price * 100 FROM item; DROP TABLE item; ALTER TABLE new_item RENAME TO item`)
	rounds(2, c, a)
	same(t, a, c)
	if got := c.value(`SELECT group_concat(price, ' ') FROM (SELECT price FROM item ORDER BY id)`); got != `"500 700"` {
		t.Errorf("c has %s\n\t%s", got, c.troubles())
	}
}

// A row is deleted, and the table renamed before the next sync.
func TestADeleteBeforeTheTableIsRenamed(t *testing.T) {
	t.Parallel()
	a, b := inStep(t)
	const upgrade = `ALTER TABLE item RENAME TO thing`
	a.exec(upgrade)
	rounds(2, a, b)
	later()
	b.exec(`DELETE FROM item WHERE id = 1`)
	b.exec(upgrade)
	rounds(2, b, a)
	same(t, a, b)
	if got := a.value(`SELECT group_concat(v, ' ') FROM thing`); got != `"two"` {
		t.Errorf("a has %s\n\t%s", got, a.troubles())
	}
}

// The keys of parents and children become texts on one device after the other.
func TestKeysOfParentsAndChildrenBecomeTexts(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE book (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT, book INTEGER REFERENCES book (id))`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO book (id, v) VALUES (7, 'seven'); INSERT INTO item (id, v, book) VALUES (1, 'one', 7), (2, 'two', NULL)`)
	b.exec(`INSERT INTO book (id, v) VALUES (7, 'of b'); INSERT INTO item (id, v, book) VALUES (1, 'three', 7)`)
	rounds(2, a, b)
	upgrade := rebuildAs("book", "id TEXT PRIMARY KEY, v TEXT", "id, v", "id, v") + ";" + rebuildAs("item", "id TEXT PRIMARY KEY, v TEXT, book TEXT REFERENCES book (id)", "id, v, book", "id, v, book")
	b.exec(upgrade)
	rounds(2, b, a)
	const show = `SELECT group_concat(x, ' ') FROM (SELECT item.v || coalesce(' ' || book.v, '') AS x FROM item LEFT JOIN book ON book.id = item.book ORDER BY 1)`
	for name, d := range map[string]*device{"a": a, "b": b} {
		if got := d.value(show); got != `"one seven three of b two"` {
			t.Errorf("upgraded on b, and %s has %s\n\t%s", name, got, d.troubles())
		}
	}
	a.exec(upgrade)
	rounds(2, a, b)
	same(t, a, b)
	for name, d := range map[string]*device{"a": a, "b": b} {
		if got := d.value(show); got != `"one seven three of b two"` {
			t.Errorf("upgraded on both, and %s has %s\n\t%s", name, got, d.troubles())
		}
	}
}

// A column of a unique index can be dropped when the index is gone, one that refers to
// another table by rebuilding the table.
func TestAColumnOfAKeyIsDropped(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE box (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE item (id INTEGER PRIMARY KEY, code TEXT, v TEXT, box INTEGER REFERENCES box (id)); CREATE UNIQUE INDEX u ON item (code)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO box (v) VALUES ('box'); INSERT INTO item (code, v, box) VALUES ('c', 'v', 1)`)
	rounds(2, a, b)
	a.exec(`DROP INDEX u`)
	a.sync()
	a.exec(`ALTER TABLE item DROP COLUMN code`)
	a.exec(rebuildAs("item", "id INTEGER PRIMARY KEY, v TEXT", "id, v", "id, v"))
	a.exec(`UPDATE item SET v = 'edited'`)
	rounds(2, a, b)
	if got := b.value(`SELECT count(*) || code || item.v || box.v FROM item JOIN box ON box.id = item.box`); got != `"1ceditedbox"` {
		t.Errorf("the device with the older schema has %s", got)
	}
}
