package integration

import (
	"testing"
)

// Each of these was a bug once; the simulation found them.

// A deletes a tag and makes another of the same name, B gives the deleted one a
// child: the two are merged, whichever lives on.
func TestADeletedRowComesBackWhereItsKeyIsTaken(t *testing.T) {
	f := newFleet(t, `CREATE TABLE tag (name TEXT PRIMARY KEY, v TEXT);
CREATE TABLE item (id INTEGER PRIMARY KEY, tag TEXT REFERENCES tag(name), v TEXT)`)
	a, b := f.device("a"), f.device("b")
	a.exec(`INSERT INTO tag (name) VALUES ('1'), ('2'), ('3'), ('4'), ('5'), ('6'), ('7'), ('8')`) // ids are random: some live on, some do not
	rounds(1, a, b)
	a.exec(`DELETE FROM tag`)
	a.exec(`INSERT INTO tag (name, v) VALUES ('1', 'new'), ('2', 'new'), ('3', 'new'), ('4', 'new'), ('5', 'new'), ('6', 'new'), ('7', 'new'), ('8', 'new')`)
	b.exec(`INSERT INTO item (tag) SELECT name FROM tag`)
	for range 3 {
		for _, d := range []*device{a, b} {
			if r := d.sync(); r.Total().Dead > 0 {
				t.Errorf("%d rows were set aside: %v", r.Total().Dead, r.Tables)
			}
		}
	}
	same(t, a, b)
	if got := a.value(`SELECT count(*) FROM item JOIN tag ON tag.name = item.tag`); got != "8" {
		t.Errorf("%s items have their tag", got)
	}
}
