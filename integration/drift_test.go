package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
)

// A device whose table has no column x edits the row that a newer one edits, column x
// too: whoever wins, nobody else has edited x, all devices end with the same row, and
// what was lost is kept.
func TestAConflictWithADeviceThatLacksAColumn(t *testing.T) {
	t.Parallel()
	for _, policy := range []tidemark.Policy{tidemark.LastWriterWins, tidemark.ServerWins, tidemark.ClientWins, tidemark.MergeByField} {
		for _, edit := range []string{"x = 'mine'", "v = 'mine', x = 'mine'"} {
			t.Run(fmt.Sprint(policy, " ", edit), func(t *testing.T) {
				f := newFleet(t, "")
				open := func(name, column string) *device {
					path := filepath.Join(f.dir, name+".db")
					db := openDB(t, path)
					if _, err := db.DB.Exec(`CREATE TABLE item (id INTEGER PRIMARY KEY, v TEXT` + column + `)`); err != nil {
						t.Fatal(err)
					}
					if _, err := tidemark.Attach(t.Context(), db, tidemark.Table{Name: "item", Policy: policy}); err != nil {
						t.Fatal(err)
					}
					return f.on(path, db)
				}
				old, a, b := open("old", ""), open("a", ", x TEXT"), open("b", ", x TEXT")
				old.exec(`INSERT INTO item (v) VALUES ('first')`)
				rounds(1, old, a)
				a.exec(`UPDATE item SET ` + edit)
				old.exec(`UPDATE item SET v = 'theirs'`)
				rounds(1, old)
				rounds(2, a, b, old)
				same(t, a, b)
				if a.value(`SELECT v FROM item`) != old.value(`SELECT v FROM item`) {
					t.Error("the old device has another row")
				}
				if x := a.value(`SELECT x FROM item`); x != `"mine"` {
					t.Errorf("of the edit that nobody else made, %s is left", x)
				}
				if kept := a.value(`SELECT count(*) FROM tidemark_conflicts WHERE CAST(localVersion AS TEXT) LIKE '%mine%'`); policy != tidemark.ClientWins && edit != "x = 'mine'" && kept == "0" {
					t.Error("what was lost is not kept")
				}
				for _, d := range []*device{a, b, old} {
					if r := d.sync(); r.Total().Uploaded+r.Total().Downloaded > 0 {
						t.Errorf("it does not come to rest: %+v", r.Total())
					}
				}
			})
		}
	}
}
