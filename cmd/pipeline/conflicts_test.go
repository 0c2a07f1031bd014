package main

import "testing"

// Whoever looks for a row needs its value, not the name of its key.
func TestARowsNameIsCutBeforeItsValue(t *testing.T) {
	t.Parallel()
	for row, want := range map[string]string{
		"id = 7":                       "id = 7",
		"CustomerId = 1234":            "Cust… = 1234",
		"CustomerId = 12":              "Custom… = 12",
		"k = a value that is too long": "k = a value…",
	} {
		if got := fitRow(row, 12); got != want {
			t.Errorf("%s becomes %q, want %q", row, got, want)
		}
	}
}
