package persistence

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/uptrace/bun"
)

// contents is everything the application can see of its tables, tracked columns
// left out.
func contents(t *testing.T, db *bun.DB) string {
	t.Helper()
	schema, err := Reflect(t.Context(), db.DB)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, table := range schema.Tables {
		var cols []string
		for _, c := range table.every {
			if !isTracked(c) {
				cols = append(cols, "quote("+quote(c)+") || '/' || typeof("+quote(c)+")")
			}
		}
		if len(cols) == 0 {
			cols = []string{"1"}
		}
		rows := queryStrings(t, db, "SELECT "+strings.Join(cols, " || ', ' || ")+" FROM "+quote(table.Name)+" ORDER BY 1")
		out = append(out, table.Name+":\n"+strings.Join(rows, "\n"))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// ddl is the whole schema.
func ddl(t *testing.T, db *bun.DB) []string {
	t.Helper()
	return queryStrings(t, db, `SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1`)
}

func TestAttachDifficultSchema(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, readTestdata(t, "difficult.sql"))
	before := contents(t, db)
	appTriggers := queryStrings(t, db, `SELECT sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name`)
	id := strings.Repeat("5a", 16)
	out := mustAttach(t, db, AttachOptions{InstallationID: func() string { return id }})

	if after := contents(t, db); after != before {
		t.Errorf("attach changed the application's data\nbefore %s\nafter %s", before, after)
	}
	if got := queryStrings(t, db, `SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name NOT LIKE 'tidemark%' ORDER BY name`); !slices.Equal(got, appTriggers) {
		t.Errorf("attach changed the application's triggers: %q", got)
	}
	if len(out.Tables) != 13 || len(out.New) != 13 || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "note_change") || len(out.Excluded) != 0 {
		t.Errorf("attached %+v", out)
	}
	if len(out.Dangling) != 1 || out.Dangling[0].Table != "book" || out.Dangling[0].Rows != 1 || out.Dangling[0].First != "3" {
		t.Errorf("dangling references %+v", out.Dangling)
	}
	var rows int64
	for _, n := range out.Tables {
		for _, r := range trackedRows(t, db, n, "'row'") {
			rows++
			if len(r.clientID) != 32 || !r.dirty || r.by != id || r.created == 0 || r.created != r.updated || r.serverID != "" {
				t.Errorf("table %q has the row %+v", n, r)
			}
		}
	}
	if rows != out.Rows {
		t.Errorf("%d rows, %d marked", rows, out.Rows)
	}
	if got := queryStrings(t, db, `SELECT tableName FROM tidemark_DownloadedTracker WHERE downloadedTill IS NULL`); len(got) != 13 {
		t.Errorf("to be read whole: %q", got)
	}
	if got := queryStrings(t, db, "PRAGMA journal_mode"); got[0] != "wal" || !out.WAL {
		t.Errorf("journal mode %q, changed: %v", got, out.WAL)
	}
	if got := queryStrings(t, db, `SELECT count(*) FROM note_search WHERE note_search MATCH 'fox'`); got[0] != "1" {
		t.Errorf("the search index finds %s notes", got)
	}
}

func TestAttachAgainChangesNothing(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, readTestdata(t, "difficult.sql"))
	first := mustAttach(t, db, AttachOptions{Exclude: []string{"logline"}})
	pretendSynced(t, db, first.Tables...)
	mustExec(t, db, `UPDATE tidemark_DownloadedTracker SET downloadedTill = 7`)
	state := func() []string {
		return append(queryStrings(t, db, "PRAGMA schema_version"), queryStrings(t, db, `SELECT schemaVersion || installationId FROM tidemark_state
			UNION ALL SELECT tableName || columns || excluded FROM tidemark_tables UNION ALL SELECT tableName || downloadedTill FROM tidemark_DownloadedTracker`)...)
	}
	before := state()
	again := mustAttach(t, db, AttachOptions{})
	if after := state(); !slices.Equal(before, after) {
		t.Errorf("before %q\nafter %q", before, after)
	}
	if again.Rows != 0 || len(again.New)+len(again.Rebuilt)+len(again.Gained)+len(again.Vanished) != 0 || !slices.Equal(again.Excluded, []string{"logline"}) {
		t.Errorf("again: %+v", again)
	}
	if v := queryStrings(t, db, "PRAGMA schema_version"); queryStrings(t, db, `SELECT schemaVersion FROM tidemark_state`)[0] != v[0] {
		t.Errorf("the schema version that was stored is not %s", v)
	}
}

// TestApplicationMigrates: what an application does to its own schema works as if
// we were not there, and the next Attach goes along.
func TestApplicationMigrates(t *testing.T) {
	t.Parallel()
	const start = `CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT);
		CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT UNIQUE, a TEXT, b TEXT, pid INTEGER REFERENCES p (id) ON DELETE SET NULL, gone INTEGER);
		CREATE UNIQUE INDEX live ON t (lower(k)) WHERE gone = 0;
		INSERT INTO p VALUES (1, 'x'); INSERT INTO t VALUES (1, 'a', 'b', 'c', 1, 0), (2, 'b', NULL, NULL, NULL, 0);`
	for _, c := range []struct {
		name, do, then, want   string
		rebuilt, gained, fresh []string
		vanished               []string
		rereads                string // tables to be read whole
		columns                string // that the read is for
		keepsServerIDs         bool
	}{
		{
			name: "add a column", do: `ALTER TABLE t ADD COLUMN n INTEGER; ALTER TABLE t ADD COLUMN m TEXT NOT NULL DEFAULT 'd'`,
			then: `UPDATE tidemark_state SET applying = 1; UPDATE t SET n = 5 WHERE id = 2; UPDATE tidemark_state SET applying = 0`, want: "1=1 2=2*", gained: []string{"t"}, rereads: "t", columns: `["n","m"]`, keepsServerIDs: true,
		},
		{name: "drop a column", do: `ALTER TABLE t DROP COLUMN a`, want: "1=1 2=2", keepsServerIDs: true},
		{name: "rename a column", do: `ALTER TABLE t RENAME COLUMN a TO aa`, want: "1=1* 2=2", gained: []string{"t"}, rereads: "t", columns: `["aa"]`, keepsServerIDs: true},
		{
			name: "rename key columns", do: `ALTER TABLE t RENAME COLUMN k TO "the k"; ALTER TABLE t RENAME COLUMN id TO "the id"; ALTER TABLE t RENAME COLUMN gone TO "is gone"; ALTER TABLE p RENAME COLUMN id TO pk`,
			want: "1=1* 2=2*", gained: []string{"p", "t"}, rereads: "p t", columns: `["pk"]["the id","the k","is gone"]`, keepsServerIDs: true,
		},
		{name: "rename the table", do: `ALTER TABLE t RENAME TO u`, want: "", fresh: []string{"u"}, vanished: []string{"t"}, rereads: "u", columns: "[]"},
		{name: "swap tables", do: `ALTER TABLE t RENAME TO u; ALTER TABLE p RENAME TO t`, want: "", fresh: []string{"t", "u"}, vanished: []string{"p"}, rereads: "t u", columns: "[][]"},
		{name: "a new table", do: `CREATE TABLE "n w" (x); INSERT INTO "n w" VALUES (1)`, want: "1=1 2=2", fresh: []string{"n w"}, rereads: "n w", columns: "[]", keepsServerIDs: true},
		{name: "a backup copy", do: `CREATE TABLE bak AS SELECT * FROM t`, want: "1=1 2=2", fresh: []string{"bak"}, rereads: "bak", columns: "[]", keepsServerIDs: true},
		{
			name: "rebuild the usual way", do: `CREATE TABLE new_p (id INTEGER PRIMARY KEY, name TEXT NOT NULL); INSERT INTO new_p SELECT id, name FROM p; DROP TABLE p; ALTER TABLE new_p RENAME TO p`,
			want: "1=1 2=2", rebuilt: []string{"p"}, rereads: "p", columns: "[]", keepsServerIDs: true,
		},
		{
			name: "rebuild and keep all columns", do: `CREATE TABLE new_t AS SELECT * FROM t; DROP TABLE t; ALTER TABLE new_t RENAME TO t`,
			want: "dirty, stamps as they were", rebuilt: []string{"t"}, rereads: "t", columns: "[]", keepsServerIDs: true,
		},
		{name: "drop a table", do: `DROP TABLE p`, want: "1=1 2=2", vanished: []string{"p"}, keepsServerIDs: true},
		{name: "new triggers", do: `CREATE TRIGGER m AFTER UPDATE ON t WHEN NEW.b IS OLD.b BEGIN UPDATE t SET b = coalesce(b, '') || '!' WHERE id = NEW.id; END`, want: "1=1 2=2", keepsServerIDs: true},
		{name: "drop our triggers", do: `DROP TRIGGER ` + objectName("t", "ai") + `; DROP INDEX ` + objectName("t", "id"), want: "1=1 2=2", keepsServerIDs: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "app.db")
			db := openTestDB(t, path)
			mustExec(t, db, start)
			mustAttach(t, db, AttachOptions{})
			pretendSynced(t, db, "p", "t")
			mustExec(t, db, `UPDATE tidemark_DownloadedTracker SET downloadedTill = 7`)
			before := trackedRows(t, db, "t", "id")
			if err := writeHere(t, path, "PRAGMA foreign_keys = OFF", c.do); err != nil {
				t.Fatalf("the application's migration failed: %v", err)
			}
			if c.then != "" {
				mustExec(t, db, c.then)
			}
			out := mustAttach(t, db, AttachOptions{})
			for _, l := range [][2][]string{{out.Rebuilt, c.rebuilt}, {out.Gained, c.gained}, {out.New, c.fresh}, {out.Vanished, c.vanished}} {
				if slices.Sort(l[0]); !slices.Equal(l[0], l[1]) {
					t.Errorf("rebuilt %q, gained %q, new %q, vanished %q", out.Rebuilt, out.Gained, out.New, out.Vanished)
				}
			}
			if c.want == "dirty, stamps as they were" {
				for id, r := range trackedRows(t, db, "t", "id") {
					if old := before[id]; !r.dirty || r.updated != old.updated || r.serverID != old.serverID {
						t.Errorf("row %+v, before %+v", r, old)
					}
				}
			} else if c.want != "" {
				if got := story(t, db, "t", "rowid", before); got != c.want {
					t.Errorf("rows %s, want %s", got, c.want)
				}
			}
			if got := strings.Join(queryStrings(t, db, `SELECT tableName FROM tidemark_DownloadedTracker WHERE downloadedTill IS NULL ORDER BY 1`), " "); got != c.rereads {
				t.Errorf("to be read whole: %q, want %q", got, c.rereads)
			}
			if got := strings.Join(queryStrings(t, db, `SELECT gained FROM tidemark_DownloadedTracker WHERE downloadedTill IS NULL ORDER BY tableName`), ""); got != c.columns {
				t.Errorf("for the columns %s, want %s", got, c.columns)
			}
			if c.fresh != nil && !c.keepsServerIDs {
				if got := queryStrings(t, db, `SELECT count(*) FROM u WHERE serverId IS NOT NULL OR serverVersion IS NOT NULL OR isDirty <> 1`); got[0] != "0" {
					t.Error("a table under a new name still has documents")
				}
			}
			// All is tracked again, whatever happened.
			for _, n := range out.Tables {
				pretendSynced(t, db, n)
				mustExec(t, db, `UPDATE `+quote(n)+` SET updatedOn = updatedOn`)
				if got := queryStrings(t, db, `SELECT count(*) FROM `+quote(n)+` WHERE isDirty = 0 OR clientId IS NULL`); got[0] != "0" {
					t.Errorf("table %q: %s rows are not tracked", n, got[0])
				}
			}
			v := queryStrings(t, db, "PRAGMA schema_version")
			if again := mustAttach(t, db, AttachOptions{}); again.Rows > 0 || !slices.Equal(v, queryStrings(t, db, "PRAGMA schema_version")) {
				t.Errorf("once more: %+v", again)
			}
		})
	}
}

func TestAttachChoosesTables(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, `CREATE TABLE a (x); CREATE TABLE b (x); CREATE TABLE c (id INTEGER PRIMARY KEY, a REFERENCES P); CREATE TABLE P (id INTEGER PRIMARY KEY);
		CREATE TABLE android_metadata (locale TEXT); INSERT INTO a VALUES (1)`)
	check := func(o AttachOptions, tables, excluded string) {
		t.Helper()
		out := mustAttach(t, db, o)
		slices.Sort(out.Tables)
		slices.Sort(out.Excluded)
		if strings.Join(out.Tables, " ") != tables || strings.Join(out.Excluded, " ") != excluded {
			t.Errorf("%+v: tables %q, excluded %q", o, out.Tables, out.Excluded)
		}
		s, err := LoadSchema(t.Context(), db.DB)
		if err != nil {
			t.Fatal(err)
		}
		got := tableNames(s)
		if slices.Sort(got); strings.Join(got, " ") != tables {
			t.Errorf("%+v: loaded %q", o, got)
		}
		if c := s.Table("C"); c != nil && (len(c.ForeignKeys) == 1) != strings.Contains(tables, "P") {
			t.Errorf("%+v: foreign keys of c: %v", o, c.ForeignKeys)
		}
	}
	check(AttachOptions{}, "P a b c", "android_metadata")
	check(AttachOptions{Exclude: []string{"A", "p"}}, "b c", "P a android_metadata")
	if got := queryStrings(t, db, `SELECT count(*) FROM sqlite_master WHERE tbl_name = 'a' AND name LIKE 'tidemark%'`); got[0] != "0" {
		t.Errorf("%s triggers and indexes left on an excluded table", got[0])
	}
	check(AttachOptions{}, "b c", "P a android_metadata")
	check(AttachOptions{Only: []string{"a", "b"}}, "a b", "P android_metadata c")
	check(AttachOptions{}, "a b", "P android_metadata c")
	check(AttachOptions{Only: []string{"a", "b", "android_metadata"}}, "a android_metadata b", "P c")
	for _, o := range []AttachOptions{{Exclude: []string{"typo"}}, {Only: []string{"typo"}}, {Only: []string{"a"}, Exclude: []string{"A"}}} {
		if _, err := Attach(t.Context(), db, o); err == nil {
			t.Errorf("%+v is no error", o)
		}
	}
}

func TestAttachAdoptsColumns(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, `CREATE TABLE t (id INTEGER PRIMARY KEY, CreatedOn INTEGER, updatedon BIGINT, isDirty BOOLEAN CHECK (isDirty IN (0, 1)), serverid TEXT);
		INSERT INTO t VALUES (1, 1500000000000, 1600000000000, 0, NULL), (2, NULL, -5, NULL, NULL), (3, 9000000000000000, 0, 1, NULL)`)
	out := mustAttach(t, db, AttachOptions{})
	if len(out.Warnings) != 4 {
		t.Errorf("warnings %q", out.Warnings)
	}
	got := queryStrings(t, db, `SELECT createdOn = 1500000000000 AND updatedOn = 1600000000000 AND isDirty FROM t WHERE id = 1
		UNION ALL SELECT min(createdOn) > 1600000000000 AND max(createdOn) < 8000000000000 AND min(updatedOn) > 1600000000000 AND min(isDirty) FROM t WHERE id > 1`)
	if !slices.Equal(got, []string{"1", "1"}) {
		t.Errorf("the stamps were not adopted as they should: %q", queryStrings(t, db, `SELECT id || ' ' || createdOn || ' ' || updatedOn || ' ' || isDirty FROM t`))
	}
	pretendSynced(t, db, "t")
	before := trackedRows(t, db, "t", "id")
	mustExec(t, db, `UPDATE t SET id = 9 WHERE id = 2`, `INSERT OR REPLACE INTO t (id) VALUES (1)`, `DELETE FROM t WHERE id = 3`)
	if got := story(t, db, "t", "id", before); got != "1=1* 9=2* †3" {
		t.Errorf("got %s", got)
	}
}

func TestAttachRefusesAndChangesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ ddl, want string }{
		{`CREATE TABLE t (id INTEGER PRIMARY KEY, createdOn TEXT)`, `"createdOn"`},
		{`CREATE TABLE t (id INTEGER PRIMARY KEY, isdirty TEXT)`, `"isdirty"`},
		{`CREATE TABLE t (id INTEGER PRIMARY KEY, updatedOn INTEGER); INSERT INTO t VALUES (1, '2024-01-01')`, "values of the application"},
		{`CREATE TABLE t (id INTEGER PRIMARY KEY, updatedBy TEXT); INSERT INTO t VALUES (1, 'alice')`, "values of the application"},
		{`CREATE TABLE t (id INTEGER PRIMARY KEY, serverId TEXT, clientId TEXT); INSERT INTO t VALUES (1, 'abc', NULL)`, "values of the application"},
		{`CREATE TABLE t (clientId TEXT PRIMARY KEY)`, "part of a key"},
		{`CREATE TABLE t (rowid, oid, _rowid_)`, "rowid"},
		{`CREATE TABLE "New" (id INTEGER PRIMARY KEY)`, "New"},
		{`CREATE TABLE t (x); INSERT INTO t VALUES (1); CREATE TRIGGER frozen BEFORE UPDATE ON t BEGIN SELECT RAISE(ABORT, 'append only'); END`, "UPDATE OF"},
	} {
		t.Run(c.ddl, func(t *testing.T) {
			t.Parallel()
			db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
			mustExec(t, db, `CREATE TABLE another (x); INSERT INTO another VALUES (1)`, c.ddl)
			before, data := ddl(t, db), contents(t, db)
			_, err := Attach(t.Context(), db, AttachOptions{})
			if got := queryStrings(t, db, "PRAGMA journal_mode"); got[0] != "delete" {
				t.Errorf("journal mode %q", got)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "exclude") {
				t.Errorf("error %v", err)
			}
			if after := ddl(t, db); !slices.Equal(before, after) || contents(t, db) != data {
				t.Errorf("it left\n%s", strings.Join(after, "\n"))
			}
			for _, n := range []string{"t", "New"} { // the remedy works
				if out, err := Attach(t.Context(), db, AttachOptions{Exclude: []string{n}}); err == nil && !slices.Equal(out.Tables, []string{"another"}) {
					t.Errorf("with %s excluded: %+v", n, out)
				} else if err == nil {
					return
				}
			}
			t.Error("excluding the table does not help")
		})
	}
}

// TestAttachSparesModifiedAt: filling our columns is no edit.
func TestAttachSparesModifiedAt(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, `CREATE TABLE t (id INTEGER PRIMARY KEY, v, modified INTEGER DEFAULT 0); CREATE TABLE audit (line TEXT); INSERT INTO t (v) VALUES (1), (2);
		CREATE TRIGGER m AFTER UPDATE ON t WHEN NEW.modified IS OLD.modified BEGIN UPDATE t SET modified = modified + 1 WHERE id = NEW.id; END;
		CREATE TRIGGER a AFTER UPDATE ON t BEGIN INSERT INTO audit (line) VALUES ('changed ' || NEW.id); END`)
	mustAttach(t, db, AttachOptions{})
	mustExec(t, db, `ALTER TABLE t ADD COLUMN w`, `UPDATE tidemark_state SET applying = 1`, `DROP TRIGGER m`, `DROP TRIGGER a`, `UPDATE t SET w = 1`, `UPDATE tidemark_state SET applying = 0`)
	mustAttach(t, db, AttachOptions{})
	if got := queryStrings(t, db, `SELECT (SELECT sum(modified) FROM t) || ' ' || (SELECT count(*) FROM audit)`); got[0] != "0 0" {
		t.Errorf("modified and audited: %s", got[0])
	}
}

func TestSweepFindsStrays(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, simple)
	mustAttach(t, db, AttachOptions{})
	pretendSynced(t, db, "t")
	before := trackedRows(t, db, "t", "id")
	mustExec(t, db, `UPDATE tidemark_state SET applying = 1`, `INSERT INTO t (id) VALUES (7)`, `UPDATE tidemark_state SET applying = 0`, `INSERT OR IGNORE INTO t (id) VALUES (1)`)
	schema, err := LoadSchema(t.Context(), db.DB)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{1, 0} {
		mustExec(t, db, `UPDATE tidemark_state SET applying = 1`)
		n, err := sweep(t.Context(), db.DB, schema.Table("t"))
		if err != nil || n != want {
			t.Errorf("swept %d rows: %v", n, err)
		}
		mustExec(t, db, `UPDATE tidemark_state SET applying = 0`)
	}
	if got := story(t, db, "t", "id", before); got != "1=1 2=2 3=3 7=new*" {
		t.Errorf("got %s", got)
	}
	if got := queryStrings(t, db, `SELECT count(*) FROM tidemark_replaced`); got[0] != "0" {
		t.Errorf("%s notes left", got[0])
	}
	plan := queryPlan(t, db, `UPDATE t SET clientId = 'x' WHERE isDirty = 1 AND clientId IS NULL`)
	if !strings.Contains(plan[0], objectName("t", "dirty")) {
		t.Errorf("strays are found by %q", plan)
	}
}

// TestWritesOfAnotherProcessWhileWeAttach: none is lost, none fails.
func TestWritesOfAnotherProcessWhileWeAttach(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Log("the sqlite3 shell is not installed: nothing is tested here")
		return
	}
	path := filepath.Join(t.TempDir(), "app.db")
	db := openTestDB(t, path)
	mustExec(t, db, `PRAGMA journal_mode = WAL`, `CREATE TABLE t (id INTEGER PRIMARY KEY, v)`,
		`INSERT INTO t (v) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i FROM n`)
	var script strings.Builder
	script.WriteString(".timeout 20000\n")
	for i := range 200 {
		fmt.Fprintf(&script, "INSERT INTO t (v) VALUES (%d);\nUPDATE t SET v = 'new' WHERE id = %d;\nDELETE FROM t WHERE id = %d;\n", i, i+1, i+1000)
	}
	cmd := exec.CommandContext(t.Context(), "sqlite3", "-bail", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	half := script.Len() / 2
	half += strings.Index(script.String()[half:], "\n") + 1
	if _, err := io.WriteString(in, script.String()[:half]); err != nil {
		t.Fatal(err)
	}
	mustAttach(t, db, AttachOptions{})
	if _, err := io.WriteString(in, script.String()[half:]); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the other process failed: %v %s", err, said.String())
	}
	rows := trackedRows(t, db, "t", "id")
	for _, r := range rows {
		if len(r.clientID) != 32 || !r.dirty {
			t.Errorf("not tracked: %+v", r)
		}
	}
	if len(rows) != 3000 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestAttachChinook(t *testing.T) {
	t.Parallel()
	sample := filepath.Join("..", "..", "shared", "data", "chinook.sqlite")
	b, err := os.ReadFile(sample)
	if err != nil {
		t.Log("the Chinook sample database is not here: nothing is tested")
		return
	}
	path := filepath.Join(t.TempDir(), "chinook.sqlite")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	db := openTestDB(t, path)
	before := contents(t, db)
	out := mustAttach(t, db, AttachOptions{})
	if len(out.Tables) != 11 || out.Rows != 15607 || len(out.Dangling) != 0 || len(out.Warnings) != 0 {
		t.Errorf("attached %+v", out)
	}
	if contents(t, db) != before {
		t.Error("attach changed the data")
	}
	if i, j := slices.Index(out.Tables, "Artist"), slices.Index(out.Tables, "Album"); i > j {
		t.Errorf("albums come before artists: %q", out.Tables)
	}
	if got := queryStrings(t, db, "PRAGMA integrity_check"); !slices.Equal(got, []string{"ok"}) {
		t.Errorf("integrity: %q", got)
	}
}

func TestAttachInMemory(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, ":memory:")
	db.SetMaxOpenConns(1)
	mustExec(t, db, simple)
	if out := mustAttach(t, db, AttachOptions{}); out.Rows != 3 || len(out.Warnings) != 0 {
		t.Errorf("attached %+v", out)
	}
}

func TestAttachStopsWithItsContext(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, simple)
	before := ddl(t, db)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Attach(ctx, db, AttachOptions{InstallationID: func() string { cancel(); return newID() }})
	if err == nil || !slices.Equal(before, ddl(t, db)) {
		t.Errorf("error %v, schema %q", err, ddl(t, db))
	}
	mustAttach(t, db, AttachOptions{})
}
