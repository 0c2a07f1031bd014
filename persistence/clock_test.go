package persistence

import (
	"testing"
	"time"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/messages"
)

const year = int64(365 * 24 * 3600 * 1000)

// noteDevice is a device that has never synced.
func noteDevice(t *testing.T) (*bun.DB, *Local) {
	t.Helper()
	db := openTestDB(t, t.TempDir()+"/x.db")
	if _, err := db.Exec(`CREATE TABLE note (id INTEGER PRIMARY KEY, v TEXT)`); err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), db, AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), db, DeviceInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return db, l
}

// check is what a check devices stage records: the server's clock is off by offset ms
// from ours, as far as the network's delay lets us tell.
func check(t *testing.T, l *Local, offset, delay int64) int64 {
	t.Helper()
	now, err := l.Clock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server := now + offset
	if err := l.Checked(t.Context(), server*1000, messages.ClockReading{Asked: now - delay, Answered: now + delay}, nil, nil, []string{"note"}, messages.Step{}); err != nil {
		t.Fatal(err)
	}
	return server
}

func TestStampsOfAWrongClockAreCorrected(t *testing.T) {
	for _, c := range []struct {
		name   string
		checks []int64 // offsets that were found before the edit
		then   int64   // and after it
	}{
		{"years ahead from the beginning", nil, -5 * year},
		{"years behind from the beginning", nil, 5 * year},
		{"jumps ahead", []int64{0}, -5 * year},
		{"falls back", []int64{0}, 50 * year},
		{"is set right", []int64{0, 5 * year}, 0},
		{"is right", []int64{0}, 0},
		{"is off by a known offset", []int64{7 * year}, 7 * year},
	} {
		t.Run(c.name, func(t *testing.T) {
			db, l := noteDevice(t)
			for _, offset := range c.checks {
				check(t, l, offset, 10)
			}
			if _, err := db.Exec(`INSERT INTO note (v) VALUES ('a'), ('b'); DELETE FROM note WHERE v = 'b'`); err != nil {
				t.Fatal(err)
			}
			server := check(t, l, c.then, 10)
			for _, q := range []string{`SELECT updatedOn FROM note`, `SELECT updatedOn FROM tidemark_tombstones`} {
				var on int64
				if err := db.DB.QueryRowContext(t.Context(), q).Scan(&on); err != nil {
					t.Fatal(err)
				}
				if on > server+20 || on < server-time.Minute.Milliseconds() {
					t.Errorf("%s: stamped %d ms from the server's time", q, on-server)
				}
			}
			// And from now on stamps are the server's time.
			if _, err := db.Exec(`UPDATE note SET v = 'c'`); err != nil {
				t.Fatal(err)
			}
			var on, now int64
			if err := db.DB.QueryRowContext(t.Context(), `SELECT updatedOn, `+localClock+` FROM note`).Scan(&on, &now); err != nil {
				t.Fatal(err)
			}
			if off := on - (now + c.then); off > 100 || off < -time.Minute.Milliseconds() {
				t.Errorf("an edit after the check is stamped %d ms from the server's time", off)
			}
		})
	}
}

// An answer that comes a second time says nothing about now.
func TestARepeatedAnswerLeavesTheOffset(t *testing.T) {
	_, l := noteDevice(t)
	server := check(t, l, 0, 10)
	later := messages.ClockReading{Asked: server + 3_600_000, Answered: server + 3_600_100} // an hour has passed here
	if err := l.Checked(t.Context(), server*1000, later, nil, nil, []string{"note"}, messages.Step{}); err != nil {
		t.Fatal(err)
	}
	h, err := l.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.ClockOffsetMs != 0 {
		t.Errorf("a repeated answer set the offset to %d ms", h.ClockOffsetMs)
	}
}

// The network's delay alone is no reason to think the clock wrong.
func TestASlowNetworkLeavesTheOffset(t *testing.T) {
	_, l := noteDevice(t)
	offset := func() (ms int64) {
		h, err := l.Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return h.ClockOffsetMs
	}
	check(t, l, 25_000, 30_000)
	if got := offset(); got != 0 {
		t.Errorf("an answer that may have taken 30 s set the offset to %d ms", got)
	}
	check(t, l, 25_000, 1_000)
	if got := offset(); got < 23_900 || got > 26_100 {
		t.Errorf("a clock that is 25 s behind has the offset %d ms", got)
	}
}

// What was stamped before the clock fell back keeps its time, though nobody had told the
// time yet: else a copy of the file that is synced later would seem to have edited it
// later.
func TestAStampFromBeforeTheClockFellBackStays(t *testing.T) {
	db, l := noteDevice(t)
	const hour = 3_600_000
	if _, err := db.Exec(`INSERT INTO note (v) VALUES ('a'); UPDATE note SET updatedOn = updatedOn + ?`, hour/2); err != nil {
		t.Fatal(err)
	}
	var before, after int64
	if err := db.DB.QueryRowContext(t.Context(), `SELECT updatedOn FROM note`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	check(t, l, hour, 10)
	if err := db.DB.QueryRowContext(t.Context(), `SELECT updatedOn FROM note`).Scan(&after); err != nil {
		t.Fatal(err)
	}
	if after != before {
		t.Errorf("a stamp moved by %d ms", after-before)
	}
}

// A version that everybody may have is stamped somewhat ahead, for its clock was not quite
// right. Its delete stays later when the clock that stamped the delete is corrected.
func TestACorrectedDeleteStaysLaterThanWhatItDeleted(t *testing.T) {
	db, l := noteDevice(t)
	const hour = 3_600_000
	check(t, l, 0, 10)
	if _, err := db.Exec(`INSERT INTO note (v) VALUES ('a'); UPDATE tidemark_state SET applying = 1;
		UPDATE note SET isDirty = 0, serverVersion = 1, serverId = clientId, updatedOn = updatedOn + 40000; UPDATE tidemark_state SET applying = 0`); err != nil {
		t.Fatal(err)
	}
	var version, deleted int64
	if err := db.DB.QueryRowContext(t.Context(), `SELECT updatedOn FROM note`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`UPDATE tidemark_state SET clockOffset = ?; DELETE FROM note`, hour); err != nil { // as a clock that is ahead
		t.Fatal(err)
	}
	check(t, l, 0, 10)
	if err := db.DB.QueryRowContext(t.Context(), `SELECT updatedOn FROM tidemark_tombstones`).Scan(&deleted); err != nil {
		t.Fatal(err)
	}
	if deleted <= version || deleted > version+60_000 {
		t.Errorf("the delete is stamped %d ms after what it deleted", deleted-version)
	}
}

// What was stamped while the clock was a year ahead is no later than the server's now,
// also when the clock has been set right before anybody could tell the time.
func TestAStampFromTheFutureIsCorrected(t *testing.T) {
	for name, c := range map[string]struct{ before, offset int64 }{
		"never checked, the clock is right again":         {-1, 0},
		"never checked, the clock is two minutes behind":  {-1, 120_000},
		"checked before, the clock is right again":        {0, 0},
		"checked before, the clock is two minutes behind": {0, 120_000},
		"checked before, the clock is two minutes ahead":  {0, -120_000},
		"never checked, the clock is two minutes ahead":   {-1, -120_000},
	} {
		t.Run(name, func(t *testing.T) {
			db, l := noteDevice(t)
			if c.before >= 0 {
				check(t, l, c.before, 10)
			}
			if _, err := db.Exec(`INSERT INTO note (v) VALUES ('a'); UPDATE note SET updatedOn = updatedOn + ?`, year); err != nil {
				t.Fatal(err)
			}
			server := check(t, l, c.offset, 10)
			var after int64
			if err := db.DB.QueryRowContext(t.Context(), `SELECT updatedOn FROM note`).Scan(&after); err != nil {
				t.Fatal(err)
			}
			if after > server+wrongBy.Milliseconds() {
				t.Errorf("it is stamped %d days after the server's now", (after-server)/86400000)
			}
		})
	}
}

// A row that was stamped months ago, and that the server has refused since: the clock has
// been found right every day. It falls back by a day: that stamp cannot be one that it
// made since the last check.
func TestAStampFromLongBeforeTheLastCheckStays(t *testing.T) {
	db, l := noteDevice(t)
	const day = 24 * 3_600_000
	if _, err := db.Exec(`INSERT INTO note (v) VALUES ('a'); UPDATE tidemark_state SET applying = 1; UPDATE note SET updatedOn = updatedOn - ?; UPDATE tidemark_state SET applying = 0`, 90*day); err != nil {
		t.Fatal(err)
	}
	check(t, l, 0, 10)
	for behind := range int64(3) {
		stamp := func() (on int64) {
			if err := db.DB.QueryRowContext(t.Context(), `SELECT updatedOn FROM note`).Scan(&on); err != nil {
				t.Fatal(err)
			}
			return on
		}
		before := stamp()
		check(t, l, (behind+1)*day, 10)
		if after := stamp(); after != before {
			t.Errorf("it moved by %d hours", (after-before)/3_600_000)
		}
	}
}
