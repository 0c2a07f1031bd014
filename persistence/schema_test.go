package persistence

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func readTestdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func tableNames(s *Schema) []string {
	var out []string
	for _, t := range s.Tables {
		out = append(out, t.Name)
	}
	return out
}

func TestReflectDifficultSchema(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, readTestdata(t, "difficult.sql"))
	s, err := Reflect(t.Context(), db.DB)
	if err != nil {
		t.Fatal(err)
	}
	got := tableNames(s)
	slices.Sort(got)
	want := []string{"book", "email", "group", "house", "logline", "note", "order details \"x\"", "person", "person_tag", "shelf", "strict_one", "tag", "values"}
	if !slices.Equal(got, want) {
		t.Errorf("tables %q, want %q", got, want)
	}
	if len(s.Warnings) > 0 {
		t.Errorf("warnings %q", s.Warnings)
	}
	place := map[string]int{}
	for i, n := range tableNames(s) {
		place[n] = i
	}
	if place["person_tag"] < place["tag"] || place["person_tag"] < place["person"] || place["book"] < place["shelf"] {
		t.Errorf("children before parents: %q", tableNames(s))
	}
	if d := place["person"] - place["house"]; d != 1 && d != -1 {
		t.Errorf("a cycle is torn apart: %q", tableNames(s))
	}

	type shape struct {
		columns, key, alias, keys string
		fks, uniques              int
	}
	for name, w := range map[string]shape{
		"ORDER details \"x\"": {columns: "id select it's 数量", key: "id", alias: "id", keys: "id", uniques: 1},
		"group":               {columns: "name note", key: "name", keys: "name"},
		"person":              {columns: "id name boss home", key: "id", alias: "id", keys: "id", fks: 2},
		"person_tag":          {columns: "person_id tag_id", key: "person_id tag_id", keys: "person_id tag_id", fks: 2},
		"book":                {columns: "isbn room place", key: "isbn", keys: "rowid", fks: 1},
		"logline":             {columns: "at line", keys: "rowid"},
		"email":               {columns: "id address owner gone", key: "id", alias: "id", keys: "id", uniques: 1},
	} {
		table := s.Table(name)
		if table == nil {
			t.Errorf("no table %q", name)
			continue
		}
		var columns []string
		for _, c := range table.Columns {
			columns = append(columns, c.Name)
		}
		g := shape{strings.Join(columns, " "), strings.Join(table.PrimaryKey, " "), table.RowIDAlias, strings.Join(table.key(), " "), len(table.ForeignKeys), len(table.Uniques)}
		if g != w {
			t.Errorf("table %q is %+v, want %+v", name, g, w)
		}
	}
	if fk := s.Table("book").ForeignKeys[0]; !slices.Equal(fk.ParentColumns, []string{"room", "place"}) || fk.OnDelete != "SET NULL" || fk.OnUpdate != "CASCADE" {
		t.Errorf("the foreign key of book is %+v", fk)
	}
	u := s.Table("email").Uniques[0]
	if !slices.Equal(u.Columns, []string{"owner", ""}) || !u.Partial || u.where != "gone = 0" || u.terms[1].expr != "lower(address)" || u.terms[1].collation != "NOCASE" {
		t.Errorf("the unique index of email is %+v", u)
	}
	for i, a := range []Affinity{AffinityInteger, AffinityInteger, AffinityReal, AffinityText, AffinityBlob, AffinityNumeric, AffinityBlob} {
		if c := s.Table("values").Columns[i]; c.Affinity != a {
			t.Errorf("column %s of type %q has affinity %d, want %d", c.Name, c.Type, c.Affinity, a)
		}
	}
}

func TestReflectForeignKeysThatAreNone(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, `CREATE TABLE p (id INTEGER PRIMARY KEY, code TEXT, other TEXT)`, `CREATE UNIQUE INDEX part ON p (code) WHERE code <> ''`,
		`CREATE TABLE c (a REFERENCES nowhere, b REFERENCES p (code), c REFERENCES p (gone), d REFERENCES P (ID), e REFERENCES p,
			FOREIGN KEY (a, b) REFERENCES p)`,
		`CREATE TABLE deskey (id INTEGER PRIMARY KEY DESC, v)`)
	s, err := Reflect(t.Context(), db.DB)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, fk := range s.Table("c").ForeignKeys {
		got = append(got, fmt.Sprintf("%s>%s.%s", fk.Columns, fk.Parent, fk.ParentColumns))
	}
	slices.Sort(got)
	if want := []string{"[d]>p.[id]", "[e]>p.[id]"}; !slices.Equal(got, want) || len(s.Warnings) != 4 {
		t.Errorf("foreign keys %q, want %q; warnings %q", got, want, s.Warnings)
	}
	if d := s.Table("deskey"); d.RowIDAlias != "" || d.key()[0] != "rowid" {
		t.Errorf("INTEGER PRIMARY KEY DESC is no alias of the rowid, got %q", d.RowIDAlias)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		`CREATE UNIQUE INDEX "a(b" ON [t (] (lower("c,d" || ')') COLLATE NOCASE DESC, e ASC /* , x */, f) -- WHERE no`: `["lower(\"c,d\" || ')')","e","f"] `,
		"CREATE INDEX i ON t (`a``b`, json_extract(x, '$.a,b')) WHERE x IS NOT NULL AND y IN (1, 2)":                   "[\"`a``b`\",\"json_extract(x, '$.a,b')\"] x IS NOT NULL AND y IN (1, 2)",
		`CREATE INDEX i ON t (a COLLATE "my coll", (b + 1)) WHERE (c = 'it''s')`:                                       `["a","(b + 1)"] (c = 'it''s')`,
		`CREATE INDEX unfinished ON t (a, 'b`:                                                                          `null `,
	} {
		terms, where := indexParts(sql)
		if strings.Contains(sql, "unfinished") {
			terms = nil
		}
		b, err := json.Marshal(terms)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(b) + " " + where; got != strings.ReplaceAll(want, `\u0026`, "&") {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
	}
}

func FuzzTokens(f *testing.F) {
	f.Add(`CREATE UNIQUE INDEX i ON t (lower("a"), [b) WHERE c = 'd--' /*`)
	f.Fuzz(func(t *testing.T, sql string) {
		end := 0
		for _, tok := range tokens(sql) {
			if tok.start < end || tok.end <= tok.start || tok.end > len(sql) {
				t.Fatalf("%q: token %+v after %d", sql, tok, end)
			}
			end = tok.end
		}
		indexParts(sql)
	})
}

func BenchmarkLoadSchema(b *testing.B) {
	db := openTestDB(b, filepath.Join(b.TempDir(), "app.db"))
	for i := range 50 {
		mustExec(b, db, fmt.Sprintf(`CREATE TABLE t%d (id INTEGER PRIMARY KEY, a TEXT UNIQUE, b, c, d, e, p INTEGER REFERENCES t%d)`, i, max(i-1, 0)))
	}
	mustAttach(b, db, AttachOptions{})
	for b.Loop() {
		if _, err := LoadSchema(b.Context(), db.DB); err != nil {
			b.Fatal(err)
		}
	}
}
