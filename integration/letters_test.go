package integration

import (
	"os"
	"strings"
	"testing"

	tidemark "github.com/tidemark-sync/tidemark"
)

// A letter outlives the program that wrote it: those of the first version are replayed,
// and one of a version that nobody knows yet says so and stays.
func TestLettersOfTheFirstVersionAreReplayed(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, body BLOB, rank REAL, big INTEGER, none TEXT)`)
	a := f.device("a")
	a.sync()
	raw, err := os.ReadFile("testdata/letters-1.sql")
	if err != nil {
		t.Fatal(err)
	}
	a.exec(string(raw))
	const readable = `00112233445566778899aabbccddeeff`
	var ids []int64
	for _, l := range a.failed(tidemark.DeadLetterFilter{}) {
		if l.DocumentID == readable {
			ids = append(ids, l.ID)
		}
	}
	if got := a.replay(tidemark.DeadLetterFilter{IDs: ids}, false); got != "note applied" {
		t.Fatalf("replay: %s", got)
	}
	if got := a.value(`SELECT title || '|' || hex(body) || '|' || rank || '|' || big || '|' || (none IS NULL) || '|' || updatedOn FROM note WHERE clientId = ?`, readable); got != `"old|00FF|0.1|9223372036854775807|1|1700000000500"` {
		t.Errorf("the row is %s", got)
	}
	err = tidemark.ReplayDeadLetters(t.Context(), a.db, tidemark.DeadLetterFilter{}, false, func(tidemark.Replayed) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("a letter of version 99: %v", err)
	}
	if left := a.failed(tidemark.DeadLetterFilter{}); len(left) != 1 {
		t.Errorf("letters: %+v", left)
	}
}
