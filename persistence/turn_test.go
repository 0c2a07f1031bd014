package persistence

import (
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Whose turn it is goes by the remote's clock: a device that is years off, and one
// whose owner sets the clock in the middle of it, reckon like everybody else.
func TestTurnsGoByTheRemotesClock(t *testing.T) {
	t.Parallel()
	for name, years := range map[string]int64{"right": 0, "years behind": 7, "years ahead": -7} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
			mustExec(t, db, `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT)`)
			mustAttach(t, db, AttachOptions{})
			l, err := Open(t.Context(), db, DeviceInfo{})
			if err != nil {
				t.Fatal(err)
			}
			remote := time.Now() // what a check in this moment finds out
			off := years * 365 * 24 * 3_600_000
			check := func(after time.Duration) messages.BackupStanding {
				t.Helper()
				// Our clock stands still, as far as a test can tell; the remote's goes on.
				clock := messages.ClockReading{Asked: time.Now().UnixMilli(), Answered: time.Now().UnixMilli()}
				if err := l.Checked(t.Context(), (remote.Add(after).UnixMilli()+off)*1000, clock, nil, nil, nil, messages.Step{}); err != nil {
					t.Fatal(err)
				}
				st, err := l.BackupStanding(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return st
			}
			about := func(what string, ms int64, want time.Duration) {
				t.Helper()
				if got := time.Duration(ms) * time.Millisecond; (got - want).Abs() > time.Minute {
					t.Errorf("%s: %v, want %v", what, got, want)
				}
			}
			check(0)
			if err := l.BackedUp(t.Context(), messages.Snapshot{Generation: "g", Device: "other", Seen: messages.Vector{"other": 1}}); err != nil {
				t.Fatal(err)
			}
			st := check(3 * time.Hour)
			about("known for", st.Now-st.KnownSince, 3*time.Hour)
			about("the time that the remote has", st.Now-off-remote.UnixMilli(), 3*time.Hour)
			if st.DueSince != 0 {
				t.Errorf("it waits since %d", st.DueSince)
			}
			if err := l.AwaitTurn(t.Context()); err != nil {
				t.Fatal(err)
			}
			st = check(5 * time.Hour)
			about("waits for", st.Now-st.DueSince, 2*time.Hour)
			about("known for", st.Now-st.KnownSince, 5*time.Hour)
			// Of another generation nothing of this holds.
			if err := l.BackedUp(t.Context(), messages.Snapshot{Generation: "h", Device: "other", Seen: messages.Vector{"other": 2}}); err != nil {
				t.Fatal(err)
			}
			st = check(6 * time.Hour)
			about("the next known for", st.Now-st.KnownSince, time.Hour)
			if st.DueSince != 0 || st.ChangedBytes != 0 {
				t.Errorf("the next one: %+v", st)
			}
			// A remote that was set back: the times begin anew.
			if st = check(time.Hour); st.KnownSince != st.Now {
				t.Errorf("after the remote's clock was set back it is known since %v from now", time.Duration(st.KnownSince-st.Now)*time.Millisecond)
			}
		})
	}
}

// A snapshot says how many rows each table has, and takes nothing of its maker's
// turn along.
func TestSnapshotCountsItsRows(t *testing.T) {
	t.Parallel()
	db := openTestDB(t, filepath.Join(t.TempDir(), "app.db"))
	mustExec(t, db, `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT); CREATE TABLE "a ""quoted"" one" (id TEXT PRIMARY KEY) WITHOUT ROWID;
		CREATE TABLE left_out (id INTEGER PRIMARY KEY);
		INSERT INTO note (title) VALUES ('a'), ('b'); INSERT INTO left_out VALUES (1)`)
	mustAttach(t, db, AttachOptions{Exclude: []string{"left_out"}})
	l, err := Open(t.Context(), db, DeviceInfo{})
	if err != nil {
		t.Fatal(err)
	}
	snap, body, err := l.Snapshot(t.Context(), "g", time.Now().UnixMilli(), messages.Snapshot{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		t.Error(err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
	if len(snap.Rows) != 2 || snap.Rows["note"] != 2 || snap.Rows[`a "quoted" one`] != 0 {
		t.Errorf("rows: %v", snap.Rows)
	}
}
