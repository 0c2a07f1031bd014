package persistence

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	_ "modernc.org/sqlite"
)

// openTestDB opens (or creates) a file with one connection per pragma setting.
func openTestDB(t testing.TB, path string) *bun.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return bun.NewDB(db, sqlitedialect.New())
}

func mustExec(t testing.TB, db *bun.DB, queries ...string) {
	t.Helper()
	for _, q := range queries {
		if _, err := db.DB.ExecContext(context.Background(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

func mustAttach(t testing.TB, db *bun.DB, opts AttachOptions) Attached {
	t.Helper()
	out, err := Attach(context.Background(), db, opts)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func queryStrings(t testing.TB, db *bun.DB, query string, args ...any) []string {
	t.Helper()
	var out []string
	err := eachRow(context.Background(), db.DB, query, func(scan func(...any) error) error {
		var s sql.NullString
		err := scan(&s)
		out = append(out, s.String)
		return err
	}, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return out
}

// pretendSynced makes every row of the tables look acknowledged by the server.
func pretendSynced(t testing.TB, db *bun.DB, tables ...string) {
	t.Helper()
	mustExec(t, db, `UPDATE tidemark_state SET applying = 1`)
	for _, n := range tables {
		mustExec(t, db, `UPDATE `+quote(n)+` SET isDirty = 0, serverId = clientId, serverVersion = 1000`)
	}
	mustExec(t, db, `UPDATE tidemark_state SET applying = 0`)
}

type trackedRow struct {
	label, clientID, serverID, by string
	dirty                         bool
	created, updated, version     int64
}

func trackedRows(t testing.TB, db *bun.DB, table, label string) map[string]trackedRow {
	t.Helper()
	out := map[string]trackedRow{}
	err := eachRow(context.Background(), db.DB, "SELECT "+label+`, coalesce(clientId, ''), coalesce(serverId, ''), coalesce(updatedBy, ''), isDirty,
		coalesce(createdOn, 0), coalesce(updatedOn, 0), coalesce(serverVersion, 0) FROM `+quote(table),
		func(scan func(...any) error) error {
			var r trackedRow
			err := scan(&r.label, &r.clientID, &r.serverID, &r.by, &r.dirty, &r.created, &r.updated, &r.version)
			if _, twice := out[r.clientID]; twice {
				t.Errorf("%s: two rows have the clientId %q", table, r.clientID)
			}
			out[r.clientID] = r
			return err
		})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// story renders what became of the rows: "now=before" with * for dirty, "new" for
// a row that was not there, and tombstones as †before. What must hold of every row
// is checked on the way.
func story(t testing.TB, db *bun.DB, table, label string, before map[string]trackedRow) string {
	t.Helper()
	me := queryStrings(t, db, `SELECT installationId FROM tidemark_state`)[0]
	var out []string
	rows := trackedRows(t, db, table, label)
	for _, id := range slices.Sorted(maps.Keys(rows)) {
		r, old := rows[id], before[id]
		was := "new"
		if old.clientID != "" {
			was = old.label
			if r.serverID != old.serverID || r.version != old.version || r.created != old.created {
				t.Errorf("%s: the row %s is %s still, but not its serverId, serverVersion or createdOn: %+v, before %+v", table, r.label, was, r, old)
			}
			if r.dirty && r.updated <= old.updated && !old.dirty {
				t.Errorf("%s: updatedOn of row %s did not rise: %d, before %d", table, r.label, r.updated, old.updated)
			}
			if !r.dirty && r != old && r.label == old.label {
				t.Errorf("%s: the clean row %s changed: %+v, before %+v", table, r.label, r, old)
			}
		} else if r.serverID != "" || r.version != 0 || r.created == 0 || r.updated == 0 || !r.dirty {
			t.Errorf("%s: the new row %s has %+v", table, r.label, r)
		}
		if len(r.clientID) != 32 || r.by != me {
			t.Errorf("%s: the row %s has clientId %q, updatedBy %q", table, r.label, r.clientID, r.by)
		}
		dirty := ""
		if r.dirty {
			dirty = "*"
		}
		out = append(out, r.label+"="+was+dirty)
	}
	err := eachRow(context.Background(), db.DB, `SELECT clientId, updatedOn, updatedBy, coalesce(serverId, ''), isDirty, coalesce(createdOn, 0), coalesce(serverVersion, 0)
		FROM tidemark_tombstones WHERE tableName = ?`, func(scan func(...any) error) error {
		var d trackedRow
		if err := scan(&d.clientID, &d.updated, &d.by, &d.serverID, &d.dirty, &d.created, &d.version); err != nil {
			return err
		}
		old := before[d.clientID]
		if _, alive := rows[d.clientID]; alive {
			t.Errorf("%s: row %s is alive and has a tombstone", table, old.label)
		}
		if old.clientID != "" && (d.updated <= old.updated || d.by != me || d.serverID != old.serverID || !d.dirty || d.created != old.created || d.version != old.version) {
			t.Errorf("%s: the tombstone %+v of %+v", table, d, old)
		}
		was := "new"
		if old.clientID != "" {
			was = old.label
		}
		out = append(out, "†"+was)
		return nil
	}, table)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// writer runs the application's statements: in this process, or as another.
type writer func(t *testing.T, path, pragmas, statements string) error

func writeHere(t *testing.T, path, pragmas, statements string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), pragmas); err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), statements)
	return err
}

func writeWithShell(t *testing.T, path, pragmas, statements string) error {
	cmd := exec.CommandContext(t.Context(), "sqlite3", "-bail", path)
	cmd.Stdin = strings.NewReader(pragmas + "\n" + statements + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.New(string(out))
	}
	return nil
}

const (
	simple  = `CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT UNIQUE, v); INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, NULL, 3)`
	nocase  = `CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY, v); INSERT INTO t VALUES ('Home', 1), ('Work', 2)`
	pair    = `CREATE TABLE t (a, b, v, PRIMARY KEY (a, b)) WITHOUT ROWID; INSERT INTO t VALUES (1, 'x', 1), (1, 'y', 2), (2, 'x', 3)`
	replace = `CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT UNIQUE ON CONFLICT REPLACE, v); INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)`
	family  = `CREATE TABLE p (id INTEGER PRIMARY KEY, v); INSERT INTO p VALUES (1, 1), (2, 2);
		CREATE TABLE t (id INTEGER PRIMARY KEY, pid INTEGER REFERENCES p (id) ON DELETE %s ON UPDATE CASCADE, v); INSERT INTO t VALUES (10, 1, 1), (11, 1, 2), (12, 2, 3)`
)

var triggerCases = []struct {
	name, ddl, label, do, want string
	foreignKeys                string // "" runs with both
	recursive                  string
	fails                      bool
	check, answer              string // a query more, and its one value
}{
	{name: "insert", ddl: simple, label: "id", do: `INSERT INTO t (k) VALUES ('c')`, want: "1=1 2=2 3=3 4=new*"},
	{name: "insert many", ddl: simple, label: "id", do: `INSERT INTO t (id, k) SELECT id + 10, k || 'x' FROM t`, want: "11=new* 12=new* 13=new* 1=1 2=2 3=3"},
	{name: "update", ddl: simple, label: "id", do: `UPDATE t SET v = 9 WHERE id = 2`, want: "1=1 2=2* 3=3"},
	{name: "update twice", ddl: simple, label: "id", do: `UPDATE t SET v = 9 WHERE id = 2; UPDATE t SET v = 10 WHERE id = 2`, want: "1=1 2=2* 3=3"},
	{name: "primary key changes", ddl: simple, label: "id", do: `UPDATE t SET id = 7 WHERE id = 2`, want: "1=1 3=3 7=2*"},
	{name: "rowid changes", ddl: simple, label: "id", do: `UPDATE OR REPLACE t SET rowid = 1 WHERE id = 2`, want: "1=2* 3=3 †1"},
	{name: "delete", ddl: simple, label: "id", do: `DELETE FROM t WHERE id < 3`, want: "3=3 †1 †2"},
	{name: "delete all", ddl: simple, label: "id", do: `DELETE FROM t`, want: "†1 †2 †3"},
	{name: "delete and insert again", ddl: simple, label: "id", do: `DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 'a', 1, 0, 0, 0, 0, 0, 0, 0)`, want: "1=new* 2=2 3=3 †1"},
	{name: "rolled back", ddl: simple, label: "id", do: `BEGIN; DELETE FROM t; INSERT INTO t (k) VALUES ('z'); ROLLBACK`, want: "1=1 2=2 3=3"},

	{name: "replace by primary key", ddl: simple, label: "id", do: `INSERT OR REPLACE INTO t (id, k, v) VALUES (1, 'z', 9)`, want: "1=1* 2=2 3=3"},
	{name: "replace by unique key", ddl: simple, label: "id", do: `REPLACE INTO t (k, v) VALUES ('b', 9)`, want: "1=1 3=3 4=2*"},
	{name: "replace two rows", ddl: simple, label: "id", do: `REPLACE INTO t (id, k) VALUES (1, 'b')`, want: "1=1* 3=3 †2"},
	{name: "replace nothing", ddl: simple, label: "id", do: `REPLACE INTO t (id, k) VALUES (8, 'new')`, want: "1=1 2=2 3=3 8=new*"},
	{name: "replace many", ddl: simple, label: "id", do: `REPLACE INTO t (id, k) VALUES (1, 'a2'), (2, 'b2'), (9, NULL), (3, 'a2')`, want: "2=2* 3=3* 9=new* †1"},
	{name: "replace the same row twice", ddl: simple, label: "id", do: `REPLACE INTO t (id, k) VALUES (1, 'p'); REPLACE INTO t (id, k) VALUES (1, 'q')`, want: "1=1* 2=2 3=3"},
	{name: "replace from itself with all columns", ddl: simple, label: "id", do: `REPLACE INTO t SELECT * FROM t`, want: "1=1* 2=2* 3=3*"},
	{name: "copy a row with all columns", ddl: simple, label: "id", do: `CREATE TEMP TABLE c AS SELECT * FROM t WHERE id = 1; UPDATE c SET id = 50, k = 'copy'; INSERT INTO t SELECT * FROM c`, want: "1=1 2=2 3=3 50=new*"},
	{name: "replaced, then deleted", ddl: simple, label: "id", do: `REPLACE INTO t (id, k) VALUES (1, 'p'); DELETE FROM t WHERE id = 1`, want: "2=2 3=3 †1"},
	{name: "ignored", ddl: simple, label: "id", do: `INSERT OR IGNORE INTO t (id, k) VALUES (1, 'zz'), (5, 'b'), (6, 'n')`, want: "1=1 2=2 3=3 6=new*"},
	{name: "ignored, deleted, inserted", ddl: simple, label: "id", do: `INSERT OR IGNORE INTO t (id) VALUES (1); DELETE FROM t WHERE id = 1; INSERT INTO t (id, k) VALUES (1, 'a')`, want: "1=new* 2=2 3=3 †1"},
	{name: "upsert", ddl: simple, label: "id", do: `INSERT INTO t (id, k, v) VALUES (1, 'a', 7), (7, 'g', 7) ON CONFLICT (id) DO UPDATE SET v = excluded.v`, want: "1=1* 2=2 3=3 7=new*"},
	{name: "upsert does nothing", ddl: simple, label: "id", do: `INSERT INTO t (k) VALUES ('a') ON CONFLICT DO NOTHING`, want: "1=1 2=2 3=3"},
	{name: "update or replace", ddl: simple, label: "id", do: `UPDATE OR REPLACE t SET k = 'b' WHERE id = 1`, want: "1=1* 3=3 †2"},
	{name: "update or replace the primary key", ddl: simple, label: "id", do: `UPDATE OR REPLACE t SET id = 2, k = 'q' WHERE id = 1`, want: "2=1* 3=3 †2"},
	{name: "update or ignore", ddl: simple, label: "id", do: `UPDATE OR IGNORE t SET k = 'b' WHERE id = 1`, want: "1=1 2=2 3=3"},
	{name: "update or fail", ddl: simple, label: "id", do: `UPDATE OR FAIL t SET k = 'q'`, fails: true, want: "1=1* 2=2 3=3"},
	{name: "update or rollback", ddl: simple, label: "id", do: `BEGIN; UPDATE t SET v = 5; UPDATE OR ROLLBACK t SET k = 'q'`, fails: true, want: "1=1 2=2 3=3"},
	{name: "update fails", ddl: simple, label: "id", do: `UPDATE t SET k = 'q'`, fails: true, want: "1=1 2=2 3=3"},
	{name: "replace in the schema", ddl: replace, label: "id", do: `INSERT INTO t (id, k) VALUES (9, 'a'); UPDATE t SET k = 'b' WHERE id = 3`, want: "3=3* 9=1* †2"},
	{
		name: "a NULL that becomes the default", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT NOT NULL DEFAULT 'd' UNIQUE); INSERT INTO t VALUES (1, 'd')`,
		label: "id", do: `INSERT OR REPLACE INTO t (id, k) VALUES (5, NULL)`, want: "5=1*",
	},

	{
		name: "an ORM writes back every column", ddl: simple, label: "id", want: "1=1* 2=2 3=3",
		do: `UPDATE t SET k = 'a', v = 2, createdOn = 5, updatedOn = 6, updatedBy = '', serverId = NULL, isDirty = 0, clientId = NULL, serverVersion = NULL WHERE id = 1`,
	},
	{
		name: "an application marks rows itself", ddl: simple, label: "id", want: "1=1* 2=2 3=3",
		do: `UPDATE t SET v = 2, updatedOn = updatedOn + 5, isDirty = 1 WHERE id = 1`,
	},
	{name: "somebody else's identity", ddl: simple, label: "id", want: "1=1* 2=2 3=3", do: `UPDATE t SET clientId = (SELECT clientId FROM t WHERE id = 2), serverId = 'x' WHERE id = 1`},
	{
		name: "insert brings identities", ddl: simple, label: "id", want: "1=1 2=2 3=3 8=new*",
		do: `INSERT INTO t (id, clientId, serverId, serverVersion, isDirty, updatedOn) SELECT 8, clientId, serverId, serverVersion, 0, 99999999999999 FROM t WHERE id = 1`,
	},
	{
		name: "insert brings createdOn", ddl: simple, label: "id", want: "1=1 2=2 3=3 8=new*", do: `INSERT INTO t (id, createdOn) VALUES (8, 12345)`,
		check: `SELECT createdOn FROM t WHERE id = 8`, answer: "12345",
	},

	{name: "NOCASE key", ddl: nocase, label: "k", do: `REPLACE INTO t (k, v) VALUES ('HOME', 5)`, want: "HOME=Home* Work=Work"},
	{name: "NOCASE key, update", ddl: nocase, label: "k", do: `UPDATE OR REPLACE t SET k = 'WORK' WHERE k = 'home'`, want: "WORK=Home* †Work"},
	{name: "composite, without rowid", ddl: pair, label: "a || b", do: `REPLACE INTO t (a, b, v) VALUES (1, 'y', 7), (3, 'z', 8)`, want: "1x=1x 1y=1y* 2x=2x 3z=new*"},
	{name: "composite update", ddl: pair, label: "a || b", do: `UPDATE OR REPLACE t SET a = 1 WHERE a = 2; DELETE FROM t WHERE b = 'y'`, want: "1x=2x* †1x †1y"},
	{
		name: "blob and real keys", ddl: `CREATE TABLE t (k PRIMARY KEY, v); INSERT INTO t VALUES (x'00ff', 1), (0.1, 2), ('1', 3), (1, 4)`, label: "quote(k)",
		do: `REPLACE INTO t (k) VALUES (0.1), (x'00ff'), (1.0)`, want: "'1'='1' 0.1=0.1* 1.0=1* X'00FF'=X'00FF'*",
	},
	{name: "no key", ddl: `CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 1), (1, 1)`, label: "rowid", do: `INSERT INTO t (a) VALUES (5); DELETE FROM t WHERE rowid = 1; UPDATE t SET b = 3 WHERE a = 1`, want: "2=2* 3=new* †1"},
	{name: "no key, replaced by rowid", ddl: `CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)`, label: "rowid", do: `REPLACE INTO t (rowid, a) VALUES (2, 7)`, want: "1=1 2=2*"},
	{name: "a column hides the rowid", ddl: `CREATE TABLE t (rowid TEXT, oid TEXT UNIQUE); INSERT INTO t VALUES ('p', 'q'), ('r', 's')`, label: "oid", do: `REPLACE INTO t (rowid, oid) VALUES ('new', 's'); UPDATE t SET oid = 'z' WHERE oid = 'q'`, want: "s=s* z=q*"},
	{
		name: "autoincrement", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t (v) VALUES (1), (2)`, label: "id",
		do: `DELETE FROM t WHERE id = 2; INSERT INTO t (v) VALUES (3); REPLACE INTO t (id, v) VALUES (1, 5)`, want: "1=1* 3=new* †2",
	},
	{name: "rowids are used again", ddl: simple, label: "id", do: `DELETE FROM t WHERE id = 3; INSERT INTO t (v) VALUES (1)`, want: "1=1 2=2 3=new* †3"},
	{name: "strict", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT UNIQUE, x ANY) STRICT; INSERT INTO t VALUES (1, 'a', 1)`, label: "id", do: `REPLACE INTO t (k, x) VALUES ('a', '1')`, want: "2=1*"},
	{
		name: "unique generated column", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, n TEXT, l TEXT AS (lower(n)) STORED UNIQUE); INSERT INTO t (id, n) VALUES (1, 'A'), (2, 'B'), (3, 'C')`, label: "id",
		do: `REPLACE INTO t (n) VALUES ('a'); UPDATE OR REPLACE t SET n = 'c' WHERE id = 2`, want: "2=2* 4=1* †3",
	},
	{
		name: "expression index", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, n TEXT, g); CREATE UNIQUE INDEX i ON t (lower(n), g); INSERT INTO t VALUES (1, 'A', 1), (2, 'B', 1), (3, 'A', 2)`, label: "id",
		do: `REPLACE INTO t (n, g) VALUES ('a', 1); UPDATE OR REPLACE t SET g = 2 WHERE n = 'a'`, want: "2=2 4=1* †3",
	},
	{
		name: "partial index", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, n TEXT, gone INTEGER); CREATE UNIQUE INDEX i ON t (n) WHERE gone = 0; INSERT INTO t VALUES (1, 'A', 0), (2, 'A', 1), (3, 'B', 0)`, label: "id",
		do: `REPLACE INTO t (n, gone) VALUES ('A', 0), ('B', 1); UPDATE OR REPLACE t SET gone = 0 WHERE id = 2`, want: "2=2* 3=3 5=new* †1",
	},
	{
		name: "odd names", ddl: `CREATE TABLE t ("a b" TEXT, "c""d" TEXT, "é'" TEXT, "select" INTEGER, PRIMARY KEY ("a b", "c""d"), UNIQUE ("é'")); INSERT INTO t VALUES ('1', '2', '3', 4), ('5', '6', '7', 8)`, label: `"a b"`,
		do: `REPLACE INTO t ("a b", "c""d", "é'") VALUES ('9', '9', '3'); UPDATE t SET "select" = 1 WHERE "é'" = '7'`, want: "5=5* 9=1*",
	},

	{name: "cascade", ddl: fmt.Sprintf(family, "CASCADE"), foreignKeys: "ON", label: "id", do: `DELETE FROM p WHERE id = 1`, want: "12=12 †10 †11"},
	{name: "no cascade", ddl: fmt.Sprintf(family, "CASCADE"), foreignKeys: "OFF", label: "id", do: `DELETE FROM p WHERE id = 1`, want: "10=10 11=11 12=12"},
	{
		name: "set null", ddl: fmt.Sprintf(family, "SET NULL"), foreignKeys: "ON", label: "id", do: `DELETE FROM p WHERE id = 1`, want: "10=10* 11=11* 12=12",
		check: `SELECT count(*) || ' ' || group_concat(DISTINCT l.parentId = d.clientId) FROM tidemark_left l, tidemark_tombstones d WHERE d.tableName = 'p' AND l.tableName = 't'`, answer: "2 1",
	},
	{name: "the parent's key changes", ddl: fmt.Sprintf(family, "CASCADE"), foreignKeys: "ON", label: "id || '/' || pid", do: `UPDATE p SET id = 5 WHERE id = 1`, want: "10/5=10/1* 11/5=11/1* 12/2=12/2"},
	{
		name: "the parent is replaced, children cascade", ddl: fmt.Sprintf(family, "CASCADE"), foreignKeys: "ON", label: "id", do: `REPLACE INTO p (id, v) VALUES (1, 9)`, want: "12=12 †10 †11",
		check: `SELECT count(*) FROM tidemark_tombstones WHERE tableName = 'p'`, answer: "0",
	},
	{
		name: "a row leaves its parent, which is deleted", ddl: fmt.Sprintf(family, "RESTRICT"), label: "id", do: `UPDATE t SET v = 0; UPDATE t SET pid = 2 WHERE pid = 1; DELETE FROM p WHERE id = 1`, want: "10=10* 11=11* 12=12*",
		check: `SELECT count(*) FROM tidemark_left l JOIN tidemark_tombstones d ON d.clientId = l.parentId AND d.tableName = l.parentTable`, answer: "2",
	},
	{
		name: "the parent is deleted, then left", ddl: fmt.Sprintf(family, "NO ACTION"), foreignKeys: "OFF", label: "id", do: `DELETE FROM p WHERE id = 1; UPDATE t SET pid = NULL WHERE pid = 1`, want: "10=10* 11=11* 12=12",
		check: `SELECT count(*) FROM tidemark_left l JOIN tidemark_tombstones d ON d.clientId = l.parentId AND d.tableName = l.parentTable`, answer: "2",
	},
	{
		name: "a replaced row leaves its parent", ddl: fmt.Sprintf(family, "RESTRICT"), recursive: "OFF", label: "id", do: `REPLACE INTO t (id, pid) VALUES (10, 2); DELETE FROM t WHERE id = 11; DELETE FROM p WHERE id = 1`, want: "10=10* 12=12 †11",
		check: `SELECT count(*) FROM tidemark_left l JOIN tidemark_tombstones d ON d.clientId = l.parentId AND d.tableName = l.parentTable JOIN t ON t.clientId = l.clientId`, answer: "1",
	},
	{
		name: "a row that goes with a replaced one leaves its parent", ddl: twoParents, label: "id", do: `REPLACE INTO t (id, k, pid) VALUES (11, 'a', 2); DELETE FROM p WHERE id = 1`, want: "11=11* †10",
		check: leftDead, answer: "t p",
	},
	{
		name: "a row that an update replaces leaves its parent", ddl: twoParents, label: "id", do: `UPDATE OR REPLACE t SET k = 'a' WHERE id = 11; DELETE FROM p WHERE id = 1`, want: "11=11* †10",
		check: leftDead, answer: "t p",
	},
	{
		name: "a deleted row leaves the parent it had and the one it got", ddl: twoParents, label: "id", do: `UPDATE t SET pid = 2 WHERE id = 10; DELETE FROM t WHERE id = 10; DELETE FROM p WHERE id = 1`, want: "11=11 †10",
		check: leftDead, answer: "t p",
	},
	{
		name: "an upsert leaves nothing", ddl: fmt.Sprintf(family, "RESTRICT"), foreignKeys: "OFF", label: "id", do: `INSERT INTO t (id, pid) VALUES (10, 2) ON CONFLICT DO NOTHING; DELETE FROM p WHERE id = 1`, want: "10=10 11=11 12=12",
		check: `SELECT count(*) FROM tidemark_left WHERE parentId NOT IN ('', '?')`, answer: "0",
	},
	{
		name: "a tree is cut", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, up INTEGER REFERENCES t ON DELETE CASCADE); INSERT INTO t VALUES (1, NULL), (2, 1), (3, 2), (4, NULL)`, foreignKeys: "ON", label: "id",
		do: `DELETE FROM t WHERE id = 1`, want: "4=4 †1 †2 †3",
	},

	{
		name: "modified at", ddl: simple + `; CREATE TRIGGER m AFTER UPDATE OF v ON t BEGIN UPDATE t SET k = 'm' || NEW.id WHERE id = NEW.id; END`, label: "id",
		do: `UPDATE t SET v = 4 WHERE id = 2; INSERT INTO t (id, v) VALUES (9, 9)`, want: "1=1 2=2* 3=3 9=new*",
	},
	{
		name: "modified at, on any update", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, v, m INTEGER); INSERT INTO t VALUES (1, 1, 1), (2, 2, 1);
		CREATE TRIGGER m AFTER UPDATE ON t WHEN NEW.m IS OLD.m BEGIN UPDATE t SET m = coalesce(m, 0) + 1 WHERE id = NEW.id; END`, label: "id",
		do: `UPDATE t SET v = 4 WHERE id = 2; INSERT INTO t (id, v) VALUES (9, 9); REPLACE INTO t (id, v) VALUES (1, 3)`, want: "1=1* 2=2* 9=new*",
	},
	{
		name: "a counter in another table", ddl: simple + `; CREATE TABLE n (c INTEGER); INSERT INTO n VALUES (0); CREATE TRIGGER i AFTER INSERT ON t BEGIN UPDATE n SET c = c + 1; END`, label: "id",
		do: `INSERT INTO t (v) VALUES (1), (2)`, want: "1=1 2=2 3=3 4=new* 5=new*", check: `SELECT c FROM n WHERE isDirty = 1`, answer: "2",
	},
	{
		name: "replace in a trigger", ddl: simple + `; CREATE TABLE src (x); CREATE TRIGGER i AFTER INSERT ON src BEGIN REPLACE INTO t (id, k) VALUES (NEW.x, 'from ' || NEW.x); END`, label: "id",
		do: `INSERT INTO src (x) VALUES (2), (6)`, want: "1=1 2=2* 3=3 6=new*",
	},
	{name: "a trigger moves the others aside", ddl: `CREATE TABLE t (id INTEGER PRIMARY KEY, pos INTEGER UNIQUE); INSERT INTO t VALUES (1, 1), (2, 2);
		CREATE TRIGGER i BEFORE INSERT ON t WHEN NEW.id = 9 BEGIN UPDATE t SET pos = pos + 100 WHERE pos > 1; END`, label: "id", do: `REPLACE INTO t (id, pos) VALUES (9, 1)`, want: "2=2* 9=1*"},
	{
		name: "a trigger replaces while we replace", ddl: simple + `; CREATE TRIGGER i BEFORE INSERT ON t WHEN NEW.id = 1 BEGIN REPLACE INTO t (id, k) VALUES (3, 'b'); END`, label: "id",
		do: `REPLACE INTO t (id, k) VALUES (1, 'z')`, want: "1=1* 3=3* †2",
	},
	{
		name: "a view in front", ddl: simple + `; CREATE VIEW w AS SELECT id, v FROM t; CREATE TRIGGER wi INSTEAD OF UPDATE ON w BEGIN UPDATE t SET v = NEW.v WHERE id = OLD.id; END`, label: "id",
		do: `UPDATE w SET v = 0 WHERE id = 2`, want: "1=1 2=2* 3=3",
	},
	{name: "the engine", ddl: simple, label: "id", do: `BEGIN; UPDATE tidemark_state SET applying = 1; UPDATE t SET v = 9; UPDATE tidemark_state SET applying = 0; COMMIT`, want: "1=1 2=2 3=3"},
}

const (
	twoParents = `CREATE TABLE p (id INTEGER PRIMARY KEY, v); CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT UNIQUE, pid INTEGER REFERENCES p);
		INSERT INTO p (id) VALUES (1), (2); INSERT INTO t (id, k, pid) VALUES (10, 'a', 1), (11, 'b', 2)`
	// leftDead are the deleted parents that deleted rows have left.
	leftDead = `SELECT l.tableName || ' ' || l.parentTable FROM tidemark_left l JOIN tidemark_tombstones d ON d.clientId = l.parentId AND d.tableName = l.parentTable
		JOIN tidemark_tombstones x ON x.clientId = l.clientId AND x.tableName = l.tableName`
)

func TestTriggersTrackEveryWrite(t *testing.T) {
	t.Parallel()
	writers := map[string]writer{"here": writeHere}
	if _, err := exec.LookPath("sqlite3"); err == nil {
		writers["shell"] = writeWithShell
	} else {
		t.Log("the sqlite3 shell is not installed: statements run in this process only")
	}
	for _, c := range triggerCases {
		for how, write := range writers {
			for _, fk := range []string{"OFF", "ON"} {
				for _, rec := range []string{"OFF", "ON"} {
					if c.foreignKeys != "" && c.foreignKeys != fk || c.recursive != "" && c.recursive != rec {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/foreign_keys=%s/recursive_triggers=%s", c.name, how, fk, rec), func(t *testing.T) {
						t.Parallel()
						path := filepath.Join(t.TempDir(), "app.db")
						db := openTestDB(t, path)
						mustExec(t, db, c.ddl)
						tables := mustAttach(t, db, AttachOptions{}).Tables
						pretendSynced(t, db, tables...)
						before := trackedRows(t, db, "t", c.label)
						// Cautious programs distrust what a schema calls.
						pragmas := "PRAGMA busy_timeout = 5000; PRAGMA trusted_schema = OFF; PRAGMA foreign_keys = " + fk + "; PRAGMA recursive_triggers = " + rec + ";"
						do := strings.ReplaceAll(c.do, ", 0, 0, 0, 0, 0, 0, 0)", ", NULL, NULL, NULL, NULL, 1, NULL, NULL)")
						if err := write(t, path, pragmas, do); (err != nil) != c.fails {
							t.Fatalf("%s: %v", do, err)
						}
						if got := story(t, db, "t", c.label, before); got != c.want {
							t.Errorf("%s\n got %s\nwant %s", do, got, c.want)
						}
						if c.check != "" {
							if got := queryStrings(t, db, c.check); !slices.Equal(got, []string{c.answer}) {
								t.Errorf("%s: got %q, want %q", c.check, got, c.answer)
							}
						}
					})
				}
			}
		}
	}
}

// TestTriggerLookupsSeek: a note costs the application an index seek, never a scan.
func TestTriggerLookupsSeek(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, readTestdata(t, "difficult.sql"))
	mustAttach(t, db, AttachOptions{})
	schema, err := LoadSchema(t.Context(), db.DB)
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`\b(NEW|OLD)\.("([^"]|"")*"|\w+)`)
	for _, table := range schema.Tables {
		for _, o := range table.triggers(watch{calledBack: true, reacts: true}) {
			body := o.sql[strings.Index(o.sql, "BEGIN\n")+6 : strings.LastIndex(o.sql, "END")]
			for s := range strings.SplitSeq(strings.TrimSpace(body), ";\n") {
				s = row.ReplaceAllString(strings.TrimSuffix(s, ";"), "(SELECT 'x')")
				s = strings.ReplaceAll(s, "RAISE(IGNORE)", "1") // which may stand in a trigger only
				plan := strings.Join(queryPlan(t, db, s), "\n") + "\n"
				scans := strings.Count(plan, "SCAN ") - strings.Count(plan, "SCAN CONSTANT ROW") - strings.Count(plan, "SCAN tidemark_state") - strings.Count(plan, "SCAN (subquery-")
				partial := strings.Contains(plan, "SEARCH tidemark_replaced USING PRIMARY KEY (tableName=?)\n") && !strings.Contains(s, "EXISTS (SELECT 1 FROM tidemark_replaced WHERE tableName = ")
				if scans > 0 || partial {
					t.Errorf("table %q: %s\n%s", table.Name, s, plan)
				}
			}
		}
	}
}

func queryPlan(t *testing.T, db *bun.DB, statement string) []string {
	t.Helper()
	var out []string
	err := eachRow(t.Context(), db.DB, "EXPLAIN QUERY PLAN "+statement, func(scan func(...any) error) error {
		var id, parent, unused int
		var detail string
		err := scan(&id, &parent, &unused, &detail)
		out = append(out, detail)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return out
}

// TestUpdatedOnFollowsTheServersClock also shows that stamps never go back.
func TestUpdatedOnFollowsTheServersClock(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, simple)
	mustAttach(t, db, AttachOptions{})
	const hour = 3_600_000
	mustExec(t, db, `UPDATE tidemark_state SET clockOffset = 1000 * 3600000`, `UPDATE t SET v = 1 WHERE id = 1`,
		`UPDATE tidemark_state SET clockOffset = 0`, `UPDATE t SET v = 2 WHERE id = 1`, `DELETE FROM t WHERE id = 1`, `INSERT INTO t (id) VALUES (8)`)
	var gone, fresh, other int64
	if err := db.DB.QueryRowContext(t.Context(), `SELECT (SELECT updatedOn FROM tidemark_tombstones), (SELECT updatedOn FROM t WHERE id = 8), (SELECT updatedOn FROM t WHERE id = 2)`).Scan(&gone, &fresh, &other); err != nil {
		t.Fatal(err)
	}
	if gone < fresh+999*hour || fresh > other+hour || fresh < other {
		t.Errorf("deleted at %d, inserted at %d, attached at %d", gone, fresh, other)
	}
}

// BenchmarkTriggers compares what a row costs the application with and without
// Attach, alone in its transaction and among a hundred, and what it costs the
// engine, whose writes the triggers let pass.
func BenchmarkTriggers(b *testing.B) {
	const (
		ddl    = `CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, c INTEGER, d REAL, e TEXT, f TEXT, g INTEGER)`
		text   = "a text of some forty characters in a row"
		insert = `INSERT INTO t (a, b, c, d, e, f, g) VALUES (?1, ?1, 1, 2.5, ?1, ?1, ?2)`
		update = `UPDATE t SET a = ?1, c = c + 1 WHERE id = ?2`
	)
	run := func(b *testing.B, db *bun.DB, query string, n, batch int) {
		b.Helper()
		for i := 0; i < n; {
			tx, err := db.DB.BeginTx(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			stmt, err := tx.PrepareContext(b.Context(), query)
			if err != nil {
				b.Fatal(err)
			}
			for end := min(n, i+batch); i < end; i++ {
				if _, err := stmt.ExecContext(b.Context(), text, i+1); err != nil {
					b.Fatal(err)
				}
			}
			if err := errors.Join(stmt.Close(), tx.Commit()); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, batch := range []int{1, 100} {
		for _, query := range []string{insert, update} {
			for _, how := range []string{"plain", "attached", "engine"} {
				b.Run(fmt.Sprintf("%s/%d/%s", strings.Fields(query)[0], batch, how), func(b *testing.B) {
					db := openTestDB(b, filepath.Join(b.TempDir(), "app.db"))
					db.SetMaxOpenConns(1)
					mustExec(b, db, "PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL", ddl)
					if how != "plain" {
						mustAttach(b, db, AttachOptions{})
					}
					if query == update {
						run(b, db, insert, b.N, 1000)
					}
					if how == "engine" {
						mustExec(b, db, `UPDATE tidemark_state SET applying = 1`)
					}
					b.ResetTimer()
					run(b, db, query, b.N, batch)
				})
			}
		}
	}
}
