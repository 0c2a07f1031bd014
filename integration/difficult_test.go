package integration

import (
	"os"
	"path/filepath"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
)

// Every shape of table and value that real databases have goes to another device
// and back, by every adapter.
func TestDifficultSchema(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("..", "persistence", "testdata", "difficult.sql"))
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range backends {
		t.Run(name, func(t *testing.T) {
			f := open(t, string(raw))
			a := f.device("a")
			original := contentsOfColumns(t, a.db.DB)
			r := a.sync()
			if r.Tables["book"].Dead != 1 {
				t.Errorf("the row that refers to nothing was not set aside: %+v", r.Tables["book"])
			}
			// Its parent turns up, and it goes.
			a.exec(`INSERT INTO shelf VALUES ('cellar', 9, 'C9', 1, 1, '', NULL, 1, NULL, NULL)`)
			if r := a.sync(); r.Tables["book"].Uploaded != 1 {
				t.Errorf("the row that got its parent did not go up: %+v", r.Tables)
			}
			same(t, a)

			// B has the same schema and nothing in it.
			bare := openDB(t, filepath.Join(f.dir, "b.db"))
			if _, err := bare.DB.Exec(schemaOnly(t, openWith(t, f.schema).DB)); err != nil {
				t.Fatal(err)
			}
			if _, err := tidemark.Attach(t.Context(), bare); err != nil {
				t.Fatal(err)
			}
			b := f.on(filepath.Join(f.dir, "b.db"), bare)
			b.sync()
			same(t, a, b)
			got := contentsOfColumns(t, b.db.DB)
			delete(got, "shelf") // gained a row above
			delete(original, "shelf")
			diff(t, "the original", original, "B", got)

			// C is restored; everybody edits.
			a.sync()
			c := f.restore("c")
			c.sync()
			same(t, a, b, c)
			a.exec(`UPDATE "values" SET t = 'a' || char(0) || 'b', b = zeroblob(0), i = i + 0 WHERE id = 1`)
			a.exec(`UPDATE note SET body = 'changed by a' WHERE rowid = 1`)
			b.exec(`UPDATE shelf SET place = 3 WHERE place = 2`)
			b.exec(`UPDATE shelf SET room = 'south' WHERE place = 1`) // cascades to its books
			b.exec(`UPDATE "group" SET name = name || '!' WHERE name <> ''`)
			b.exec(`DELETE FROM logline WHERE rowid = 1`)
			c.exec(`UPDATE person SET boss = NULL, home = (SELECT max(id) FROM house)`)
			c.exec(`UPDATE "order details ""x""" SET "数量" = "数量" * 2, "it's" = 'it''s'`)
			c.exec(`INSERT INTO person_tag SELECT p.id, t.id, NULL, NULL, NULL, NULL, 1, NULL, NULL FROM person p, tag t WHERE p.name = 'Cyd'`)
			c.exec(`UPDATE email SET gone = 1 - gone WHERE id <> 2`)
			for range 3 {
				a.sync()
				b.sync()
				c.sync()
			}
			same(t, a, b, c)
			for q, want := range map[string]string{
				`SELECT room FROM book WHERE isbn = '978-0'`:                         `"south"`,
				`SELECT count(*) FROM logline`:                                       "1",
				`SELECT count(*) FROM person_tag`:                                    "5",
				`SELECT hex(t) FROM "values" WHERE id = 1`:                           `"610062"`,
				`SELECT modified FROM note WHERE body = 'changed by a'`:              "1",
				`SELECT count(*) FROM note_search WHERE note_search MATCH 'changed'`: "1",
				`SELECT count(*) FROM note_search WHERE note_search MATCH 'quick'`:   "0",
				`SELECT len FROM person WHERE name = 'Ada'`:                          "3",
				`SELECT typeof(b) || length(b) FROM "values" WHERE id = 1`:           `"blob0"`,
			} {
				for _, d := range []*device{a, b, c} {
					if got := d.value(q); got != want {
						t.Errorf("%s: %s: %s, want %s", filepath.Base(d.path), q, got, want)
					}
				}
			}
		})
	}
}
