package persistence

import (
	"testing"
	"path/filepath"
	"strings"
	"errors"
	"os"
)

func BenchmarkZZ(b *testing.B) {
	const ddl = `CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, c INTEGER, d REAL, e TEXT, f TEXT, g INTEGER);`
	for _, how := range []string{"all", "T", "big", "bigT", "bigmem"} {
		b.Run(strings.ReplaceAll(how," ","_"), func(b *testing.B) {
			db := openTestDB(b, filepath.Join(b.TempDir(), "app.db"))
			db.DB.SetMaxOpenConns(1)
			mustExec(b, db, "PRAGMA journal_mode = WAL", ddl)
			mustAttach(b, db, AttachOptions{})
			if strings.HasPrefix(how,"big") { mustExec(b, db, "PRAGMA cache_size=-256000") }; if how == "bigmem" { mustExec(b, db, "PRAGMA temp_store=MEMORY") }; how = strings.TrimPrefix(how, "big"); if how == "" { how = "all" }; if how == "mem" { how = "T" }
			re := func(k, rest string) { n := quote(objectName("t", k)); mustExec(b, db, "DROP INDEX "+n, "CREATE INDEX "+n+" ON t "+rest) }
			if how == "A" { re("id", "(clientId) WHERE clientId IS NOT NULL"); re("server", "(serverId) WHERE serverId IS NOT NULL") }
			if how == "B" { re("dirty", "(clientId) WHERE isDirty = 1 AND clientId IS NOT NULL") }
			if how == "C" { re("dirty", "(isDirty) WHERE isDirty = 1") }
			if how == "D" { mustExec(b, db, "DROP INDEX "+objectName("t","dirty")) }
			if how == "T" { x := queryStrings(b, db, "SELECT sql FROM sqlite_master WHERE name = ?", objectName("t","ai"))[0]
			  y := strings.Replace(x, "lower(hex(randomblob(16)))", "printf('%012x', (julianday('now') - 2440587.5) * 86400000.0) || lower(hex(randomblob(10)))", 1)
			  if x == y { b.Fatal() }
			  mustExec(b, db, "DROP TRIGGER "+objectName("t","ai"), y)
			  how = "all"
			}
			for _, k := range strings.Fields(how) {
				kind := "TRIGGER "
				if k == "id" || k == "server" || k == "dirty" { kind = "INDEX " }
				if k == "all" { continue }
				mustExec(b, db, "DROP "+kind+quote(objectName("t", k)))
			}
			_ = os.Args
			const text = "a text of some forty characters in a row"
			insert := `INSERT INTO t (a, b, c, d, e, f, g) VALUES (?1, ?1, 1, 2.5, ?1, ?1, ?2)`
			b.ResetTimer()
				tx, err := db.DB.Begin()
				if err != nil { b.Fatal(err) }
				stmt, err := tx.Prepare(insert)
				if err != nil { b.Fatal(err) }
				for i := range b.N {
					if _, err := stmt.Exec(text, i+1); err != nil { b.Fatal(err) }
				}
				if err := errors.Join(stmt.Close(), tx.Commit()); err != nil { b.Fatal(err) }
		})
	}
}
