package integration

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
)

// chinook copies the Chinook database, which nobody here wrote, into a test's
// folder. It lies beside the repository, not in it.
func chinook(t *testing.T, name string) string {
	t.Helper()
	in, err := os.Open(filepath.Join("..", "..", "shared", "data", "chinook.sqlite"))
	if err != nil {
		t.Skipf("NOT RUN, the Chinook database is missing: put chinook.sqlite into ../shared/data beside the repository")
	}
	defer in.Close()
	path := filepath.Join(t.TempDir(), name+".db")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// Three devices and a real database: A has it, B restores A's snapshot, C starts
// from the bare schema; all edit, C offline for a while, and all end the same.
func TestChinook(t *testing.T) {
	t.Parallel()
	for name, open := range backends {
		t.Run(name, func(t *testing.T) {
			path := chinook(t, "a")
			f := open(t, "")
			ctx := t.Context()
			db := openDB(t, path)
			original, bare := contentsOfColumns(t, db.DB), schemaOnly(t, db.DB)
			if _, err := tidemark.Attach(ctx, db); err != nil {
				t.Fatal(err)
			}
			a := f.on(path, db)
			first := a.sync()
			if n := first.Total().Uploaded; n != 15607 {
				t.Errorf("uploaded %d rows of 15607", n)
			}
			if first.Billed.Reads > 1 || first.Billed.Writes < 15607 || first.Billed.Writes > 15607+40 {
				t.Errorf("the first upload was billed %+v", first.Billed)
			}
			if first.Snapshot == nil {
				t.Fatal("no snapshot")
			}

			b := f.restore("b")
			if r := b.sync(); r.Billed.Reads > 1 || r.Total().Downloaded != 0 {
				t.Errorf("after a fresh snapshot there is nothing to download: %+v %+v", r.Billed, r.Tables)
			}
			same(t, a, b)

			f.schema = bare
			c := f.device("c")
			if r := c.sync(); r.Billed.Reads != 15607+1 || r.Total().Applied != 15607 {
				t.Errorf("a download of everything was billed %+v for %+v", r.Billed, r.Total())
			}
			same(t, a, b, c)
			diff(t, "the original", original, "C", contentsOfColumns(t, c.db.DB))

			// All edit; C is offline and syncs last.
			a.exec(`INSERT INTO Artist (Name) VALUES ('Åse & the "Quotes" 🎸')`)
			a.exec(`INSERT INTO Album (Title, ArtistId) SELECT 'First', ArtistId FROM Artist WHERE Name LIKE 'Åse%'`)
			a.exec(`UPDATE Track SET UnitPrice = 1.29 WHERE GenreId = 1`)
			b.exec(`UPDATE Customer SET Company = NULL, Phone = '' WHERE CustomerId % 2 = 0`)
			b.exec(`INSERT INTO Employee (LastName, FirstName, ReportsTo) VALUES ('New', 'Boss', NULL)`)
			b.exec(`UPDATE Employee SET ReportsTo = (SELECT EmployeeId FROM Employee WHERE LastName = 'New') WHERE ReportsTo IS NULL AND LastName <> 'New'`)
			b.exec(`DELETE FROM PlaylistTrack WHERE PlaylistId = 1 AND TrackId < 500`)
			c.exec(`INSERT INTO Artist (Name) VALUES ('Made offline')`)
			c.exec(`INSERT INTO Album (Title, ArtistId) SELECT 'Offline album', ArtistId FROM Artist WHERE Name = 'Made offline'`)
			c.exec(`DELETE FROM InvoiceLine WHERE InvoiceId = 5`)
			c.exec(`DELETE FROM Invoice WHERE InvoiceId = 5`)
			c.exec(`UPDATE Track SET Milliseconds = Milliseconds + 1 WHERE TrackId BETWEEN 100 AND 200`)
			a.sync()
			b.sync()
			a.sync()
			same(t, a, b)
			for range 2 {
				c.sync()
				a.sync()
				b.sync()
			}
			same(t, a, b, c)
			for q, want := range map[string]string{
				`SELECT count(*) FROM Artist WHERE Name IN ('Made offline', 'Åse & the "Quotes" 🎸')`: "2",
				`SELECT count(*) FROM Invoice`:                              "411",
				`SELECT count(*) FROM Track WHERE UnitPrice = 1.29`:         "1297",
				`SELECT count(*) FROM PlaylistTrack WHERE PlaylistId = 1`:   a.value(`SELECT count(*) FROM PlaylistTrack WHERE PlaylistId = 1 AND TrackId >= 500`),
				`SELECT count(*) FROM Customer WHERE Phone = ''`:            "29",
				`SELECT count(*) FROM Employee WHERE ReportsTo IS NULL`:     "1",
				`SELECT typeof(UnitPrice) FROM Track WHERE UnitPrice > 1.2`: `"real"`,
			} {
				if got := b.value(q); got != want {
					t.Errorf("%s: %s, want %s", q, got, want)
				}
			}
			d := f.restore("d")
			d.sync()
			same(t, a, d)
		})
	}
}
