package integration

import (
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
)

// What the application's triggers do in synced tables while documents are applied has
// arrived from the device where they first fired, or will.

// A total that a trigger writes with INSERT OR REPLACE, which deletes the row in silence.
func TestATriggerThatReplacesARow(t *testing.T) {
	t.Parallel()
	for _, write := range []string{
		`INSERT OR REPLACE INTO total (day, v) SELECT day, sum(v) FROM sale WHERE day = NEW.day`,
		`DELETE FROM total WHERE day = NEW.day; INSERT INTO total (day, v) SELECT day, sum(v) FROM sale WHERE day = NEW.day`,
	} {
		t.Run(write[:6], func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE sale (id INTEGER PRIMARY KEY, day TEXT, v INTEGER); CREATE TABLE total (day TEXT PRIMARY KEY, v INTEGER);
CREATE TRIGGER sum AFTER INSERT ON sale BEGIN `+write+`; END`)
			a, b := f.device("a"), f.device("b")
			a.exec(`INSERT INTO sale (day, v) VALUES ('monday', 1), ('monday', 2)`)
			rounds(2, a, b)
			a.exec(`INSERT INTO sale (day, v) VALUES ('monday', 4)`)
			rounds(1, a, b)
			same(t, a, b)
			if got := b.value(`SELECT v FROM total`); got != "7" {
				t.Errorf("the total is %s", got)
			}
			b.exec(`INSERT INTO sale (day, v) VALUES ('monday', 8)`)
			rounds(2, b, a)
			same(t, a, b)
			if got := a.value(`SELECT v FROM total`); got != "15" {
				t.Errorf("the total is %s", got)
			}
		})
	}
}

// The table that a trigger keeps the history in has our columns, too: SELECT * copies
// the identity of the row.
func TestATriggerThatKeepsAHistory(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE history (id INTEGER, v TEXT);
CREATE TRIGGER born AFTER INSERT ON item BEGIN INSERT INTO history SELECT * FROM item WHERE id = NEW.id; END;
CREATE TRIGGER died BEFORE DELETE ON item BEGIN INSERT INTO history SELECT * FROM item WHERE id = OLD.id; END;`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO item (v) VALUES ('one'), ('two')`)
	rounds(2, a, b)
	same(t, a, b)
	b.exec(`DELETE FROM item WHERE v = 'one'`)
	rounds(2, b, a)
	same(t, a, b)
	if got := a.value(`SELECT group_concat(v) FROM (SELECT v FROM history ORDER BY v)`); got != `"one,one,two"` {
		t.Errorf("the history is %s", got)
	}
}

// A trigger keeps the newest two lists. On another device somebody adds to the third
// meanwhile: it stays, and nothing refers to what is not there.
func TestATriggerThatKeepsTheNewest(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE list (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE entry (id INTEGER PRIMARY KEY, list INTEGER NOT NULL REFERENCES list (id) ON DELETE CASCADE, v TEXT);
CREATE TRIGGER keep AFTER INSERT ON list BEGIN DELETE FROM list WHERE v NOT IN (SELECT v FROM list ORDER BY v DESC LIMIT 2); END`)
	a, b := f.device("a"), f.device("b")
	b.exec(`INSERT INTO list (id, v) VALUES (1, '1'), (2, '2'); INSERT INTO entry (list, v) VALUES (1, 'old'), (2, 'old')`)
	rounds(1, b, a)
	a.exec(`INSERT INTO list (id, v) VALUES (3, '3')`)
	b.exec(`INSERT INTO entry (list, v) VALUES (1, 'new')`)
	rounds(3, a, b)
	c := f.device("c")
	rounds(1, c, a, b)
	same(t, a, b, c)
	if got := c.value(`SELECT group_concat(list || v) FROM (SELECT list, v FROM entry ORDER BY list, v)`); got != `"1new,2old"` {
		t.Errorf("there is %s", got)
	}
	a.exec(`INSERT INTO list (id, v) VALUES (4, '4')`) // and now it goes
	rounds(2, a, b, c)
	same(t, a, b, c)
	if got := c.value(`SELECT group_concat(v) FROM (SELECT v FROM list ORDER BY v)`); got != `"3,4"` {
		t.Errorf("there is %s", got)
	}
}

// What is not uploaded yet is not for a trigger to delete because of what others have made.
func TestATriggerAndARowThatIsNotUploaded(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE draft (id INTEGER PRIMARY KEY, who TEXT, v TEXT);
CREATE TRIGGER latest AFTER INSERT ON draft BEGIN DELETE FROM draft WHERE id <> NEW.id; END`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO draft (who, v) VALUES ('a', 'hello')`)
	b.exec(`INSERT INTO draft (who, v) VALUES ('b', 'world')`)
	rounds(2, a, b)
	same(t, a, b)
	if got := a.value(`SELECT group_concat(v) FROM (SELECT v FROM draft ORDER BY v)`); got != `"hello,world"` {
		t.Errorf("there is %s", got)
	}
}

// A trigger keeps the newest three entries of all devices', whose numbers are taken. While
// they arrive it keeps more; the next entry that somebody makes brings them back to three.
func TestATriggerThatKeepsTheNewestOfTwoDevices(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE log (id INTEGER PRIMARY KEY, at INTEGER, msg TEXT);
CREATE TRIGGER keep AFTER INSERT ON log BEGIN DELETE FROM log WHERE id NOT IN (SELECT id FROM log ORDER BY at DESC LIMIT 3); END;`)
	a, b := f.device("a"), f.device("b")
	all := `SELECT group_concat(msg) FROM (SELECT msg FROM log ORDER BY at)`
	a.exec(`INSERT INTO log (id, at, msg) VALUES (1, 1, 'a1'), (2, 2, 'a2')`)
	b.exec(`INSERT INTO log (id, at, msg) VALUES (1, 11, 'b1'), (2, 12, 'b2'), (3, 13, 'b3')`)
	rounds(3, a, b)
	same(t, a, b)
	if got := a.value(all); got != `"a1,a2,b1,b2,b3"` {
		t.Errorf("there is %s", got)
	}
	a.exec(`INSERT INTO log (at, msg) VALUES (21, 'a3')`)
	rounds(2, a, b)
	same(t, a, b)
	if got := b.value(all); got != `"b2,b3,a3"` {
		t.Errorf("there is %s", got)
	}
}

// the account, to put its balance back, the application makes an entry, too, or renames it.
func TestAnEditWhileATriggersWorkIsPutBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string][2]string{
		"entry":  {`INSERT INTO entry (account, v) SELECT id, 2 FROM account`, "17"},
		"rename": {`UPDATE account SET name = 'savings'`, "15"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, `CREATE TABLE account (id INTEGER PRIMARY KEY, name TEXT, balance INTEGER NOT NULL DEFAULT 0); CREATE TABLE entry (id INTEGER PRIMARY KEY, account INTEGER NOT NULL REFERENCES account (id), v INTEGER);
CREATE TRIGGER sum AFTER INSERT ON entry BEGIN UPDATE account SET balance = balance + NEW.v WHERE id = NEW.account; END`)
			a := f.device("a")
			var b *device
			armed := false
			server := f.server
			f.remote = func() tidemark.Remote {
				r := server.Remote()
				r.Fault = func(c2 memory.Call) memory.Fault {
					if c2.Op != memory.OpDocuments || !armed {
						return memory.Fault{}
					}
					armed = false
					return memory.Fault{Then: func() { b.exec(c[0]) }}
				}
				return r
			}
			b = f.device("b")
			a.exec(`INSERT INTO account (id, name) VALUES (1, 'cash'); INSERT INTO entry (account, v) VALUES (1, 10)`)
			rounds(2, a, b)
			a.exec(`INSERT INTO entry (account, v) VALUES (1, 5)`)
			a.sync()
			armed = true
			b.sync()
			if armed { // nothing was asked for: it happens afterwards
				armed = false
				b.exec(c[0])
			}
			rounds(2, a, b)
			same(t, a, b)
			for _, d := range []*device{a, b} {
				if got := d.value(`SELECT balance FROM account`); got != c[1] {
					t.Errorf("the balance is %s, want %s", got, c[1])
				}
			}
		})
	}
}
