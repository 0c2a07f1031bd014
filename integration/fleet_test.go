package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	_ "modernc.org/sqlite"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
)

// device is one installation: a database file and a pipeline on it.
type device struct {
	t    *testing.T
	path string
	db   *bun.DB
	p    *tidemark.Pipeline
}

// fleet is several devices with one server and one bucket.
type fleet struct {
	t      *testing.T
	dir    string
	server *memory.Server // nil on the real servers
	remote func() tidemark.Remote
	store  func() tidemark.SnapshotStore
	schema string
}

func newFleet(t *testing.T, schema string) *fleet {
	t.Helper()
	server, bucket := memory.NewServer(), memory.NewBucket()
	return &fleet{
		t: t, dir: t.TempDir(), server: server, schema: schema,
		remote: func() tidemark.Remote { return server.Remote() },
		store:  func() tidemark.SnapshotStore { return bucket.Store() },
	}
}

// sqliteOfNow is the driver to open a database with: in a bubble (package synctest),
// where the clock begins in 2000, one that goes by it.
func sqliteOfNow() string {
	if time.Now().Year() < 2020 {
		return "simulation"
	}
	return "sqlite"
}

func openDB(t *testing.T, path string) *bun.DB {
	t.Helper()
	raw, err := sql.Open(sqliteOfNow(), deviceDSN(path))
	if err != nil {
		t.Fatal(err)
	}
	db := bun.NewDB(raw, sqlitedialect.New())
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// device adds a device with the fleet's schema, attached.
func (f *fleet) device(name string, opts ...tidemark.Option) *device {
	f.t.Helper()
	path := filepath.Join(f.dir, name+".db")
	db := openDB(f.t, path)
	if _, err := db.DB.Exec("PRAGMA foreign_keys = OFF;" + f.schema + ";PRAGMA foreign_keys = ON"); err != nil {
		f.t.Fatal(err)
	}
	if _, err := tidemark.Attach(f.t.Context(), db); err != nil {
		f.t.Fatal(err)
	}
	return f.on(path, db, opts...)
}

// on makes a device of a file that is attached already.
func (f *fleet) on(path string, db *bun.DB, opts ...tidemark.Option) *device {
	f.t.Helper()
	p, err := tidemark.New(f.t.Context(), db, f.remote(), f.store(), opts...)
	if err != nil {
		f.t.Fatal(err)
	}
	return &device{f.t, path, db, p}
}

// restore makes a device from the newest snapshot.
func (f *fleet) restore(name string, opts ...tidemark.Option) *device {
	f.t.Helper()
	path := filepath.Join(f.dir, name+".db")
	if _, err := tidemark.Restore(f.t.Context(), path, f.store()); err != nil {
		f.t.Fatal(err)
	}
	return f.on(path, openDB(f.t, path), opts...)
}

func (d *device) exec(query string, args ...any) {
	d.t.Helper()
	if _, err := d.db.DB.ExecContext(d.t.Context(), query, args...); err != nil {
		d.t.Fatalf("%s: %v", query, err)
	}
}

func (d *device) sync() tidemark.Report {
	d.t.Helper()
	r, err := d.p.Sync(d.t.Context())
	if err != nil {
		d.t.Fatalf("sync %s: %v", filepath.Base(d.path), err)
	}
	return r
}

func (d *device) value(query string, args ...any) string {
	d.t.Helper()
	var v any
	if err := d.db.DB.QueryRowContext(d.t.Context(), query, args...).Scan(&v); err != nil {
		d.t.Fatalf("%s: %v", query, err)
	}
	return show(v)
}

func show(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case []byte:
		return fmt.Sprintf("x'%x'", v)
	case string:
		return fmt.Sprintf("%q", v)
	case float64:
		return fmt.Sprintf("%bf", v)
	default:
		return fmt.Sprint(v)
	}
}

// tracked are our columns; they are compared through clientId where they must be.
var tracked = map[string]bool{
	"createdon": true, "updatedon": true, "updatedby": true, "serverid": true, "isdirty": true, "clientid": true, "serverversion": true,
}

// contents reads every row of every attached table: data columns by value, foreign
// keys through the parent's clientId, an INTEGER PRIMARY KEY that is only a local
// number left out. It reads the schema by itself, not through tidemark.
func contents(ctx context.Context, t *testing.T, db *sql.DB) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, table := range strings1(ctx, t, db, `SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'tidemark_%'`) {
		if len(strings1(ctx, t, db, `SELECT name FROM pragma_table_info(?) WHERE name = 'clientId'`, table)) == 0 {
			continue
		}
		type fk struct{ parent, from, to string }
		fks := map[string]fk{}
		rows, err := db.QueryContext(ctx, `SELECT id, "table", "from", coalesce("to", '') FROM pragma_foreign_key_list(?)`, table)
		if err != nil {
			t.Fatal(err)
		}
		byID := map[int][]fk{}
		for rows.Next() {
			var id int
			var x fk
			if err := rows.Scan(&id, &x.parent, &x.from, &x.to); err != nil {
				t.Fatal(err)
			}
			byID[id] = append(byID[id], x)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		for _, xs := range byID {
			if len(xs) == 1 {
				x := xs[0]
				if x.to == "" {
					x.to = strings1(ctx, t, db, `SELECT name FROM pragma_table_info(?) WHERE pk = 1`, x.parent)[0]
				}
				fks[strings.ToLower(x.from)] = x
			}
		}
		alias := ""
		if pk := strings1(ctx, t, db, `SELECT name FROM pragma_table_info(?) WHERE pk > 0`, table); len(pk) == 1 {
			if typ := strings1(ctx, t, db, `SELECT type FROM pragma_table_info(?) WHERE pk > 0`, table); strings.EqualFold(typ[0], "INTEGER") {
				alias = pk[0]
			}
		}
		var exprs, names []string
		for _, c := range strings1(ctx, t, db, `SELECT name FROM pragma_table_info(?) ORDER BY name`, table) {
			if tracked[strings.ToLower(c)] {
				continue
			}
			q := `"` + strings.ReplaceAll(c, `"`, `""`) + `"`
			if x, ok := fks[strings.ToLower(c)]; ok {
				exprs = append(exprs, fmt.Sprintf(`(SELECT p.clientId FROM "%s" p WHERE p."%s" = t.%s)`, strings.ReplaceAll(x.parent, `"`, `""`), strings.ReplaceAll(x.to, `"`, `""`), q))
			} else if c == alias {
				continue
			} else {
				exprs = append(exprs, "+t."+q)
			}
			names = append(names, c)
		}
		exprs = append(exprs, "t.clientId")
		names = append(names, "clientId")
		lines := []string{}
		rows, err = db.QueryContext(ctx, `SELECT `+strings.Join(exprs, ", ")+` FROM "`+strings.ReplaceAll(table, `"`, `""`)+`" t`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			vals := make([]any, len(exprs))
			dest := make([]any, len(exprs))
			for i := range vals {
				dest[i] = &vals[i]
			}
			if err := rows.Scan(dest...); err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for i, v := range vals {
				fmt.Fprintf(&b, "%s=%s ", names[i], show(v))
			}
			lines = append(lines, b.String())
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		sort.Strings(lines)
		out[table] = lines
	}
	return out
}

func strings1(ctx context.Context, t *testing.T, db *sql.DB, query string, args ...any) []string {
	t.Helper()
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// same fails unless all devices hold the same rows, all of them clean and whole.
func same(t *testing.T, devices ...*device) {
	t.Helper()
	first := contents(t.Context(), t, devices[0].db.DB)
	for _, d := range devices {
		if got := strings1(t.Context(), t, d.db.DB, `PRAGMA integrity_check`); len(got) != 1 || got[0] != "ok" {
			t.Errorf("%s: integrity_check: %v", filepath.Base(d.path), got)
		}
		if got := strings1(t.Context(), t, d.db.DB, `SELECT "table" || ' ' || rowid FROM pragma_foreign_key_check`); len(got) > 0 {
			t.Errorf("%s: foreign_key_check: %v", filepath.Base(d.path), got)
		}
		st, err := d.p.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !st.InStep {
			t.Errorf("%s is not in step: %+v", filepath.Base(d.path), st)
		}
		diff(t, filepath.Base(devices[0].path), first, filepath.Base(d.path), contents(t.Context(), t, d.db.DB))
	}
}

func diff(t *testing.T, aName string, a map[string][]string, bName string, b map[string][]string) {
	t.Helper()
	for table := range a {
		in := map[string]int{}
		for _, r := range a[table] {
			in[r]++
		}
		for _, r := range b[table] {
			in[r]--
		}
		n := 0
		for r, c := range in {
			if c != 0 && n < 10 {
				n++
				who := aName
				if c < 0 {
					who = bName
				}
				t.Errorf("table %s: only %s has %s", table, who, r)
			}
		}
	}
	for table := range b {
		if _, ok := a[table]; !ok {
			t.Errorf("only %s has table %s", bName, table)
		}
	}
}

// contentsOfColumns reads every table's data columns as they are.
func contentsOfColumns(t *testing.T, db *sql.DB) map[string][]string {
	t.Helper()
	ctx := t.Context()
	out := map[string][]string{}
	for _, table := range strings1(ctx, t, db, `SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'tidemark_%'`) {
		var cols []string
		for _, c := range strings1(ctx, t, db, `SELECT name FROM pragma_table_info(?)`, table) {
			if !tracked[strings.ToLower(c)] {
				cols = append(cols, `+"`+strings.ReplaceAll(c, `"`, `""`)+`"`)
			}
		}
		rows, err := db.QueryContext(ctx, `SELECT `+strings.Join(cols, ", ")+` FROM "`+strings.ReplaceAll(table, `"`, `""`)+`"`)
		if err != nil {
			t.Fatal(err)
		}
		lines := []string{}
		for rows.Next() {
			vals, dest := make([]any, len(cols)), make([]any, len(cols))
			for i := range vals {
				dest[i] = &vals[i]
			}
			if err := rows.Scan(dest...); err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for i, v := range vals {
				b.WriteString(cols[i] + "=" + show(v) + " ")
			}
			lines = append(lines, b.String())
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		sort.Strings(lines)
		out[table] = lines
	}
	return out
}

// schemaOnly is the application's schema without rows and without anything of
// tidemark's.
func schemaOnly(t *testing.T, db *sql.DB) string {
	t.Helper()
	var b strings.Builder
	for _, table := range strings1(t.Context(), t, db, `SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'tidemark_%' AND name NOT LIKE 'sqlite_%' AND name NOT IN (SELECT name FROM pragma_table_list WHERE type = 'shadow') ORDER BY rowid`) {
		b.WriteString(table + ";\n")
	}
	return b.String()
}

// openWith opens a scratch database with a schema.
func openWith(t *testing.T, schema string) *bun.DB {
	t.Helper()
	db := openDB(t, filepath.Join(t.TempDir(), "scratch.db"))
	if _, err := db.DB.Exec("PRAGMA foreign_keys = OFF;" + schema); err != nil {
		t.Fatal(err)
	}
	return db
}
