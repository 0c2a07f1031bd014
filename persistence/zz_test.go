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
	for _, how := range []string{"all", "bi", "born", "au", "bu key", "same", "bi born au bu key same", "bi born au bu key same id server dirty", "bi born au bu key same ai id server dirty","server", "bi born au bu key same server","bi born au bu key same dirty","bi born au bu key same id", "bigcache"} {
		b.Run(strings.ReplaceAll(how," ","_"), func(b *testing.B) {
			db := openTestDB(b, filepath.Join(b.TempDir(), "app.db"))
			db.DB.SetMaxOpenConns(1)
			mustExec(b, db, "PRAGMA journal_mode = WAL", ddl)
			mustAttach(b, db, AttachOptions{})
			if how == "bigcache" { mustExec(b, db, "PRAGMA cache_size=-64000") }
			for _, k := range strings.Fields(how) {
				kind := "TRIGGER "
				if k == "id" || k == "server" || k == "dirty" { kind = "INDEX " }
				if k == "all" || k == "bigcache" { continue }
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
