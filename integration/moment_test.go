package integration

import (
	"fmt"
	"testing"
)

// Two people write a row in the same millisecond: two rows. Found by TestCrashes.
func TestRowsOfTheSameMillisecondOnTwoDevices(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE line (id INTEGER PRIMARY KEY, note INTEGER REFERENCES note(id), v TEXT)`)
	a, b := f.device("a"), f.device("b")
	for i, d := range []*device{a, b} {
		d.exec(`INSERT INTO note (id, v) VALUES (?, ?)`, i+1, fmt.Sprint("note ", i))
		d.exec(`INSERT INTO line (note, v) VALUES (?, ?)`, i+1, fmt.Sprint("line of note ", i))
		// As if it had happened, behind the back of the triggers.
		d.exec(`UPDATE tidemark_state SET applying = 1`)
		for _, table := range []string{"note", "line"} {
			d.exec(`UPDATE ` + table + ` SET createdOn = 1700000000000, updatedOn = 1700000000000`)
		}
		d.exec(`UPDATE tidemark_state SET applying = 0`)
	}
	rounds(2, a, b)
	same(t, a, b)
	for _, d := range []*device{a, b} {
		if got := d.value(`SELECT group_concat(x) FROM (SELECT n.v || ': ' || l.v AS x FROM note n JOIN line l ON l.note = n.id ORDER BY 1)`); got != `"note 0: line of note 0,note 1: line of note 1"` {
			t.Errorf("%s has %s", d.path, got)
		}
	}
}
