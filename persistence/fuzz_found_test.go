package persistence

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/messages"
)

// arrival is a database with a schema, to which documents come.
func arrival(t *testing.T, schema string, opts AttachOptions) (*bun.DB, *Local) {
	t.Helper()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db")+"?_pragma=foreign_keys(1)")
	mustExec(t, db, schema)
	mustAttach(t, db, opts)
	l, err := Open(t.Context(), db, DeviceInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return db, l
}

// arrive applies a page of one table and settles.
func arrive(t *testing.T, l *Local, table string, docs ...messages.Document) {
	t.Helper()
	for i := range docs {
		docs[i].Table, docs[i].UpdatedBy = table, "other"
		if docs[i].UpdateTime == 0 {
			docs[i].UpdateTime = int64(i + 1)
		}
	}
	if _, err := l.Apply(t.Context(), table, docs, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Settle(t.Context(), nil, nil, messages.Step{}); err != nil {
		t.Fatal(err)
	}
}

type fields = map[string]any

func wants(t *testing.T, db *bun.DB, query string, want ...string) {
	t.Helper()
	if got := queryStrings(t, db, query); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%s: %q, want %q", query, got, want)
	}
}

const (
	lettersOf = `SELECT documentId FROM tidemark_dead_letters WHERE handler = 'download' AND reason <> '' ORDER BY 1`
	waitingOf = `SELECT documentId FROM tidemark_inbox WHERE kind = 'waiting' ORDER BY 1`
)

// Each of these was found by FuzzDocuments.

func TestARefusalInAnyWords(t *testing.T) {
	words := []string{"malformed", "no such table: t", "database is locked", "interrupted", "disk I/O error", "database or disk is full"}
	var schema strings.Builder
	schema.WriteString(`CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT CONSTRAINT malformed CHECK (v <> 'x')); CREATE TRIGGER no BEFORE INSERT ON t BEGIN SELECT CASE NEW.v `)
	docs := []messages.Document{{ID: "check", Fields: fields{"v": "x"}}}
	for i, w := range words {
		fmt.Fprintf(&schema, "WHEN '%d' THEN RAISE (ABORT, '%s') ", i, w)
		docs = append(docs, messages.Document{ID: strconv.Itoa(i), Fields: fields{"v": strconv.Itoa(i)}})
	}
	schema.WriteString("END; END")
	db, l := arrival(t, schema.String(), AttachOptions{})
	arrive(t, l, "t", append(docs, messages.Document{ID: "good", Fields: fields{"v": "good"}})...)
	wants(t, db, `SELECT clientId FROM t`, "good")
	wants(t, db, lettersOf, "0", "1", "2", "3", "4", "5", "check")
}

func TestConstraintsDeclaredOnConflict(t *testing.T) {
	for _, how := range []string{"REPLACE", "IGNORE", "ROLLBACK", "FAIL"} {
		t.Run(how, func(t *testing.T) {
			db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT UNIQUE
				ON  CONFLICT `+how+`, v)`, AttachOptions{Options: map[string]TableOptions{"t": {Unique: SetAside}}})
			arrive(t, l, "t", messages.Document{ID: "a", Fields: fields{"k": "one"}}, messages.Document{ID: "b", Fields: fields{"k": "one"}}, messages.Document{ID: "c", Fields: fields{"k": "two"}})
			wants(t, db, `SELECT clientId FROM t ORDER BY 1`, "a", "c")
			wants(t, db, lettersOf, "b")
		})
	}
}

func TestATriggerThatIgnores(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE child (id INTEGER PRIMARY KEY, t REFERENCES t (id));
		CREATE TRIGGER no BEFORE INSERT ON t WHEN NEW.v = 'no' BEGIN SELECT RAISE (IGNORE); END;
		CREATE TRIGGER never BEFORE UPDATE OF v ON t WHEN NEW.v = 'no' BEGIN SELECT RAISE (IGNORE); END`, AttachOptions{})
	arrive(t, l, "t", messages.Document{ID: "a", Fields: fields{"v": "no"}}, messages.Document{ID: "b", Fields: fields{"v": "yes"}})
	arrive(t, l, "child", messages.Document{ID: "x", Fields: fields{"t": "a"}})
	arrive(t, l, "t", messages.Document{ID: "b", UpdateTime: 9, Fields: fields{"v": "no"}})
	wants(t, db, `SELECT clientId || v || serverVersion FROM t`, "byes2")
	wants(t, db, lettersOf, "a", "b")
	wants(t, db, waitingOf, "x")
}

func TestATriggerThatKeepsARow(t *testing.T) {
	for _, how := range []string{"ABORT, 'this one stays'", "IGNORE", "ROLLBACK, 'this one stays'"} {
		t.Run(how, func(t *testing.T) {
			db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TRIGGER no BEFORE DELETE ON t WHEN OLD.v = 'stays' BEGIN SELECT RAISE (`+how+`); END`, AttachOptions{})
			arrive(t, l, "t", messages.Document{ID: "a", Fields: fields{"v": "stays"}}, messages.Document{ID: "b", Fields: fields{"v": "goes"}})
			arrive(t, l, "t", messages.Document{ID: "a", UpdateTime: 8, Deleted: true}, messages.Document{ID: "b", UpdateTime: 9, Deleted: true})
			wants(t, db, `SELECT clientId FROM t`, "a")
			wants(t, db, lettersOf, "a")
			wants(t, db, `SELECT clientId FROM tidemark_tombstones`, "b")
			wants(t, db, `SELECT count(*) FROM tidemark_inbox`, "0")
		})
	}
}

// The application drops its only trigger in the middle of a cycle: ours still hold what we
// do not announce.
func TestATriggerThatIsDroppedMeanwhile(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE log (v); CREATE TRIGGER watch AFTER INSERT ON t BEGIN INSERT INTO log (v) VALUES (NEW.v); END`, AttachOptions{})
	arrive(t, l, "t", messages.Document{ID: "a"}, messages.Document{ID: "b"})
	mustExec(t, db, `DROP TRIGGER watch`)
	arrive(t, l, "t", messages.Document{ID: "a", UpdateTime: 8, Deleted: true}, messages.Document{ID: "c", UpdateTime: 9})
	wants(t, db, `SELECT clientId FROM t ORDER BY 1`, "b", "c")
	wants(t, db, lettersOf)
}

// The application makes a trigger in the middle of a cycle, its first or one more: ours that
// hold come with it.
func TestATriggerThatComesMeanwhile(t *testing.T) {
	for _, before := range []string{"", "CREATE TRIGGER watch AFTER INSERT ON t BEGIN SELECT 1; END;"} {
		db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE total (v);`+before, AttachOptions{})
		arrive(t, l, "t", messages.Document{ID: "a"})
		arrive(t, l, "total", messages.Document{ID: "kept", Fields: fields{"v": int64(1)}})
		mustExec(t, db, `CREATE TRIGGER total AFTER INSERT ON t BEGIN DELETE FROM total; INSERT INTO total (v) SELECT count(*) FROM t; END`)
		arrive(t, l, "t", messages.Document{ID: "b", UpdateTime: 8}, messages.Document{ID: "a", UpdateTime: 9, Deleted: true})
		wants(t, db, `SELECT clientId FROM total`, "kept")
		wants(t, db, `SELECT clientId FROM t`, "b")
		wants(t, db, lettersOf)
		if stale, err := Stale(t.Context(), db); err != nil || !stale {
			t.Errorf("the next cycle does not attach again: %v", err)
		}
	}
}

// The application makes the triggers of its search index after Attach. A delete that is
// ignored takes nothing out of the index.
func TestASearchIndexOfARowThatStays(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE seen (id); CREATE TABLE list (id INTEGER PRIMARY KEY, v); CREATE TABLE doc (id INTEGER PRIMARY KEY, list INTEGER, v TEXT);
		CREATE TRIGGER cascade AFTER DELETE ON list BEGIN DELETE FROM doc WHERE list = OLD.id; END;`, AttachOptions{Exclude: []string{"seen"}})
	mustExec(t, db, `CREATE TRIGGER bd BEFORE DELETE ON doc BEGIN DELETE FROM seen WHERE id = OLD.id; END; CREATE TRIGGER ai AFTER INSERT ON doc BEGIN INSERT INTO seen VALUES (NEW.id); END`)
	mustAttach(t, db, AttachOptions{})
	version := queryStrings(t, db, `PRAGMA schema_version`)
	mustAttach(t, db, AttachOptions{})
	wants(t, db, `PRAGMA schema_version`, version...)
	arrive(t, l, "list", messages.Document{ID: "l", Fields: fields{"id": int64(1)}})
	arrive(t, l, "doc", messages.Document{ID: "d", Fields: fields{"id": int64(5), "list": int64(1), "v": "x"}})
	wants(t, db, `SELECT id FROM seen`, "5")
	arrive(t, l, "list", messages.Document{ID: "l", UpdateTime: 9, Deleted: true})
	wants(t, db, `SELECT clientId FROM doc`, "d")
	wants(t, db, `SELECT id FROM seen`, "5")
}

// The application replaces a trigger, and drops one, while a page waits for its turn: what
// is suspended comes back as it is now.
func TestATriggerThatIsReplacedMeanwhile(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, v, n DEFAULT 0); CREATE TRIGGER "touch it" AFTER UPDATE ON t BEGIN UPDATE t SET n = 1 WHERE id = NEW.id AND n <> 1; END;
		CREATE TRIGGER gone AFTER UPDATE ON t BEGIN SELECT 1; END`, AttachOptions{})
	p, err := l.planOf(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	const replaced = `CREATE TRIGGER "touch it" AFTER UPDATE OF v ON t BEGIN SELECT 2; END`
	mustExec(t, db, `DROP TRIGGER "touch it"; DROP TRIGGER gone; `+replaced)
	if err := l.write(t.Context(), func(tx *tx) error {
		return tx.suspended(p.onUpdate, func() error { return tx.exec(`UPDATE t SET v = 1`) })
	}); err != nil {
		t.Fatal(err)
	}
	wants(t, db, `SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name NOT LIKE 'tidemark%'`, replaced)
}

// UPDATE OR REPLACE deletes the other row and fires no DELETE trigger; where recursive
// triggers are on it does.
func TestATriggerThatWouldReplaceByAnUpdate(t *testing.T) {
	for _, schema := range []string{"INTEGER UNIQUE", "INTEGER UNIQUE ON CONFLICT REPLACE", "INTEGER PRIMARY KEY"} {
		for _, or := range []string{"", "OR REPLACE"} {
			for _, recursive := range []string{"OFF", "ON"} {
				t.Run(schema+or+recursive, func(t *testing.T) {
					db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE TABLE top (rank `+schema+`, v);
						CREATE TRIGGER born AFTER INSERT ON t BEGIN UPDATE `+or+` top SET rank = 1 WHERE v = NEW.v; END;
						CREATE TRIGGER changed AFTER UPDATE OF v ON t BEGIN UPDATE `+or+` top SET rank = 1 WHERE v = NEW.v; END`, AttachOptions{})
					db.SetMaxOpenConns(1)
					mustExec(t, db, `PRAGMA recursive_triggers = `+recursive)
					arrive(t, l, "top", messages.Document{ID: "one", Fields: fields{"rank": int64(1), "v": "x"}}, messages.Document{ID: "two", Fields: fields{"rank": int64(2), "v": "y"}})
					arrive(t, l, "t", messages.Document{ID: "a", UpdateTime: 8, Fields: fields{"v": "y"}})
					arrive(t, l, "t", messages.Document{ID: "a", UpdateTime: 9, Fields: fields{"v": "z"}})
					arrive(t, l, "t", messages.Document{ID: "a", UpdateTime: 10, Fields: fields{"v": "y"}})
					wants(t, db, `SELECT clientId || rank FROM top ORDER BY 1`, "one1", "two2")
					wants(t, db, `SELECT clientId || v FROM t`, "ay")
					wants(t, db, lettersOf)
				})
			}
		}
	}
}

func TestTheGreatestNumber(t *testing.T) {
	for _, key := range []string{"AUTOINCREMENT", ""} {
		db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY `+key+`, v REFERENCES t (id))`, AttachOptions{})
		arrive(t, l, "t", messages.Document{ID: "a", Fields: fields{"id": int64(math.MaxInt64)}}, messages.Document{ID: "b", Fields: fields{"id": int64(math.MaxInt64)}},
			messages.Document{ID: "c"},
			// rows that refer to each other get their numbers beforehand
			messages.Document{ID: "d", Fields: fields{"id": int64(math.MaxInt64), "v": "e"}}, messages.Document{ID: "e", Fields: fields{"id": int64(math.MaxInt64), "v": "d"}})
		mustExec(t, db, `INSERT INTO t (v) VALUES (NULL)`)
		wants(t, db, `SELECT clientId FROM t WHERE isDirty = 0 ORDER BY 1`, "a", "b", "c", "d", "e")
		wants(t, db, `SELECT "table" FROM pragma_foreign_key_check`)
	}
}

func TestReferencesThatWouldBeLost(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE pair (a INTEGER, b TEXT, v, PRIMARY KEY (a, b)); CREATE TABLE word (name TEXT PRIMARY KEY);
		CREATE TABLE half (id INTEGER PRIMARY KEY, a INTEGER, b TEXT, w TEXT REFERENCES word, FOREIGN KEY (a, b) REFERENCES pair)`, AttachOptions{})
	arrive(t, l, "pair", messages.Document{ID: "p", Fields: fields{"a": int64(1), "b": "x"}}, messages.Document{ID: "null", Fields: fields{"a": nil, "b": "x"}})
	arrive(t, l, "word", messages.Document{ID: "null"})
	arrive(t, l, "half",
		messages.Document{ID: "by id", Fields: fields{"ref:a,b": "p"}},
		messages.Document{ID: "by value", Fields: fields{"a": int64(1), "b": "x"}},
		messages.Document{ID: "half null", Fields: fields{"a": int64(1), "b": nil}},
		messages.Document{ID: "nothing", Fields: fields{"a": int64(2), "b": "x"}},
		messages.Document{ID: "to null", Fields: fields{"ref:a,b": "null"}},
		messages.Document{ID: "to null word", Fields: fields{"w": "null"}})
	arrive(t, l, "half", messages.Document{ID: "half null", UpdateTime: 9, Fields: fields{"b": "y"}})
	wants(t, db, `SELECT clientId || coalesce(a, '-') || coalesce(b, '-') FROM half ORDER BY 1`, "by id1x", "by value1x", "half null1-")
	wants(t, db, lettersOf, "half null", "nothing")
	wants(t, db, waitingOf, "to null", "to null word")
	wants(t, db, `SELECT "table" FROM pragma_foreign_key_check`)
}

func TestHalfACircleWaitsAsItCame(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE person (id INTEGER PRIMARY KEY, home INTEGER REFERENCES house (id), v CHECK (v <> 'bad'));
		CREATE TABLE house (id INTEGER PRIMARY KEY, owner INTEGER REFERENCES person (id))`, AttachOptions{})
	arrive(t, l, "house", messages.Document{ID: "h", Fields: fields{"id": int64(7), "owner": "p", "unknown": "kept"}})
	arrive(t, l, "person", messages.Document{ID: "p", Fields: fields{"home": "h", "v": "bad"}})
	wants(t, db, `SELECT count(*) FROM house`, "0")
	wants(t, db, lettersOf, "p")
	wants(t, db, waitingOf, "h")
	wants(t, db, `SELECT document ->> '$.fields.owner' || (document ->> '$.fields.unknown') || (document ->> '$.updatedBy') FROM tidemark_inbox`, "pkeptother")
	arrive(t, l, "person", messages.Document{ID: "p", UpdateTime: 9, Fields: fields{"home": "h", "v": "good"}})
	wants(t, db, `SELECT h.id || p.v FROM house h JOIN person p ON p.id = h.owner AND p.home = h.id`, "7good")
	wants(t, db, lettersOf)
}

// The key of a row in a circle is made of its parent's, which in documents is an id.
func TestACircleOfKeysMadeOfKeys(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE org (id INTEGER PRIMARY KEY); CREATE TABLE site (id INTEGER PRIMARY KEY, head INTEGER, org INTEGER, FOREIGN KEY (org, head) REFERENCES emp (org, no));
		CREATE TABLE emp (org INTEGER NOT NULL REFERENCES org (id), no INTEGER NOT NULL, boss INTEGER, site INTEGER REFERENCES site (id), PRIMARY KEY (org, no), FOREIGN KEY (org, boss) REFERENCES emp (org, no))`, AttachOptions{})
	arrive(t, l, "org", messages.Document{ID: "o", Fields: fields{"id": int64(7)}})
	arrive(t, l, "site", messages.Document{ID: "s", Fields: fields{"id": int64(5), "org": int64(1), "head": int64(4), "ref:org,head": "h"}})
	arrive(t, l, "emp", messages.Document{ID: "e", Fields: fields{"org": "o", "no": int64(1), "boss": int64(1), "ref:org,boss": "e"}},
		messages.Document{ID: "f", Fields: fields{"org": "o", "no": int64(2), "boss": int64(3), "ref:org,boss": "g"}},
		messages.Document{ID: "g", Fields: fields{"org": "o", "no": int64(3), "boss": int64(2), "ref:org,boss": "f"}},
		messages.Document{ID: "h", Fields: fields{"org": "o", "no": int64(4), "site": "s"}})
	wants(t, db, `SELECT clientId || org || no || coalesce(boss, site) FROM emp ORDER BY 1`, "e711", "f723", "g732", "h745")
	wants(t, db, `SELECT org || head FROM site`, "74")
	wants(t, db, `SELECT "table" FROM pragma_foreign_key_check`)
	wants(t, db, waitingOf)
}

func TestHalfACircleThatCollides(t *testing.T) {
	for _, unique := range []UniquePolicy{Adopt, SetAside} {
		db, l := arrival(t, `CREATE TABLE person (id INTEGER PRIMARY KEY, home INTEGER REFERENCES house (id), v TEXT UNIQUE);
			CREATE TABLE house (id INTEGER PRIMARY KEY, owner INTEGER REFERENCES person (id))`,
			AttachOptions{Options: map[string]TableOptions{"person": {Unique: unique}}})
		arrive(t, l, "person", messages.Document{ID: "a", Fields: fields{"v": "taken"}})
		arrive(t, l, "house", messages.Document{ID: "h", Fields: fields{"owner": "p"}})
		arrive(t, l, "person", messages.Document{ID: "p", Fields: fields{"home": "h", "v": "taken"}})
		wants(t, db, `SELECT "table" FROM pragma_foreign_key_check`)
		wants(t, db, `SELECT clientId FROM person`, "a")
		if unique == Adopt { // p became a, and the house is a's
			wants(t, db, `SELECT h.clientId || p.clientId FROM house h JOIN person p ON p.id = h.owner`, "ha")
		} else {
			wants(t, db, lettersOf, "p")
			wants(t, db, waitingOf, "h")
		}
	}
}

// A row that is merged with its own parent gets its number beforehand. Those of the rows
// beside it stay taken.
func TestANumberBesideARowThatRefersToItself(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE emp (id INTEGER PRIMARY KEY, name TEXT UNIQUE, boss INTEGER REFERENCES emp (id))`, AttachOptions{})
	arrive(t, l, "emp", messages.Document{ID: "z", Fields: fields{"id": int64(1), "name": "other"}}, messages.Document{ID: "b", Fields: fields{"id": int64(2), "name": "kim"}}, messages.Document{ID: "d", Fields: fields{"id": int64(3), "name": "lee"}})
	arrive(t, l, "emp", messages.Document{ID: "a", UpdateTime: 11, Fields: fields{"id": int64(2), "name": "kim", "boss": "b"}}, messages.Document{ID: "c", UpdateTime: 12, Fields: fields{"id": int64(1), "name": "lee"}})
	wants(t, db, `SELECT clientId || name || (boss IS id) FROM emp ORDER BY 1`, "akim1", "clee0", "zother0")
	wants(t, db, lettersOf)
}

func TestSurvivorsThatLeadNowhere(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE t (k TEXT PRIMARY KEY, up TEXT REFERENCES t (k))`, AttachOptions{})
	arrive(t, l, "t", messages.Document{ID: "a", Fields: fields{"k": "one"}}, messages.Document{ID: "child", Fields: fields{"k": "two", "up": "a"}})
	arrive(t, l, "t", messages.Document{ID: "a", UpdateTime: 8, Deleted: true, Survivor: "a"})
	wants(t, db, `SELECT "table" FROM pragma_foreign_key_check`)
	wants(t, db, `SELECT clientId FROM t ORDER BY 1`, "a", "child") // revived for its child
	arrive(t, l, "t", messages.Document{ID: "x", Deleted: true, Survivor: "y"}, messages.Document{ID: "y", Deleted: true, Survivor: "z"}, messages.Document{ID: "z", Deleted: true, Survivor: "x"})
	arrive(t, l, "t", messages.Document{ID: "lost", Fields: fields{"k": "three", "up": "y"}})
	wants(t, db, waitingOf, "lost")
}

func TestAnEmptyBlobIsNotNull(t *testing.T) {
	const schema = `CREATE TABLE t (k BLOB PRIMARY KEY, v); CREATE TABLE child (id INTEGER PRIMARY KEY, t BLOB REFERENCES t (k), u UNIQUE)`
	a, from := arrival(t, schema, AttachOptions{})
	mustExec(t, a, `INSERT INTO t (k, v) VALUES (x'', x'')`, `INSERT INTO child (t, u) VALUES (x'', x'')`)
	var cursor messages.Cursor
	writes, err := from.Dirty(t.Context(), &cursor)
	if err != nil || len(writes) != 2 {
		t.Fatalf("%+v, %v", writes, err)
	}
	b, l := arrival(t, schema, AttachOptions{})
	arrive(t, l, "t", writes[0].Document)
	arrive(t, l, "child", writes[1].Document)
	for _, db := range []*bun.DB{a, b} {
		wants(t, db, `SELECT typeof(k) || typeof(v) || (SELECT typeof(t) || typeof(u) FROM child) FROM t`, "blobblobblobblob")
	}
}

func TestNumbersThatWouldBeAnother(t *testing.T) {
	db, l := arrival(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, r REAL, i INTEGER)`, AttachOptions{})
	arrive(t, l, "t",
		messages.Document{ID: "exact", Fields: fields{"r": int64(1 << 53), "i": 3.0}},
		messages.Document{ID: "lossy", Fields: fields{"r": int64(1<<53 + 1)}},
		messages.Document{ID: "end", Fields: fields{"r": int64(math.MaxInt64)}},
		messages.Document{ID: "least", Fields: fields{"r": int64(math.MinInt64)}},
		messages.Document{ID: "text", Fields: fields{"i": "5\x00"}},
		messages.Document{ID: "\xff", Fields: fields{"i": int64(1)}})
	wants(t, db, `SELECT clientId FROM t ORDER BY 1`, "exact", "least")
	wants(t, db, lettersOf, "end", "lossy", "text", "\xff")
}
