package firestore

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// awkward draws names from the pieces that the escaping is about.
var awkward = rapid.Custom(func(t *rapid.T) string {
	pieces := []string{
		"", "%", "%25", "%2F", "/", "__", "_", ".", "..", "Devices", "stamp", "%73tamp", "tombstone", "createdOn",
		"deleted", "`", `\`, " ", "é", "a", "25", "44", "D",
	}
	name := ""
	var nameSb16 strings.Builder
	for _, p := range rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 4).Draw(t, "pieces") {
		nameSb16.WriteString(p)
	}
	name += nameSb16.String()
	return name
})

func TestEveryColumnNameSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		column := awkward.Draw(t, "column")
		field := fieldName(column)
		if field == "" || isMeta(field) || reserved(field) {
			t.Fatalf("column %q is stored as the field %q", column, field)
		}
		if back, ok := columnName(field); !ok || back != column {
			t.Fatalf("column %q is stored as %q and comes back as %q, %v", column, field, back, ok)
		}
	})
}

func TestForeignFieldNamesAreNoColumns(t *testing.T) {
	for _, field := range []string{"", "%zz", "%2", "%61bc", "%6", "stamp", "uploadedOn", "%7", "%73tam"} {
		if column, ok := columnName(field); ok {
			t.Errorf("field %q is taken for column %q", field, column)
		}
	}
}

func TestDifferentTablesHaveDifferentCollections(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := awkward.Draw(t, "a"), awkward.Draw(t, "b")
		for _, table := range []string{a, b} {
			if c := collectionID(table); !validID(c) || c == devicesCollection {
				t.Fatalf("table %q is stored in %q", table, c)
			}
		}
		if a != b && collectionID(a) == collectionID(b) {
			t.Fatalf("tables %q and %q are both stored in %q", a, b, collectionID(a))
		}
	})
}

func TestStoredNames(t *testing.T) {
	for column, field := range map[string]string{"title": "title", "stamp": "%73tamp", "Stamp": "Stamp", "": "%", "%a": "%25a", "__id__": "%5F_id__", "a%": "a%"} {
		if got := fieldName(column); got != field {
			t.Errorf("column %q is stored as %q, want %q", column, got, field)
		}
	}
	for table, collection := range map[string]string{"notes": "notes", "Devices": "%44evices", "devices": "devices", "a/b": "a%2Fb", "..": "%2E.", "": "%", "100%": "100%25"} {
		if got := collectionID(table); got != collection {
			t.Errorf("table %q is stored as %q, want %q", table, got, collection)
		}
	}
}
