package tidemark

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
)

// Level says how bad a Finding is.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Warning Level = "warning" // it works, and may not for long, or costs more than it should
	Problem Level = "problem" // something does not work, or will lose data
)

// Finding is what Doctor found out about one thing.
type Finding struct {
	// Check names it, such as "triggers" or "server".
	Check string `json:"check"`
	Level Level  `json:"level"`
	// Text says what is so, Remedy what to do about it; "" when there is nothing.
	Text   string `json:"text"`
	Remedy string `json:"remedy"`
}

// Checkup is what Doctor is to look at beside the database. What is nil is left out.
type Checkup struct {
	Remote Remote
	Store  SnapshotStore
	// Encryption has the key of the snapshots.
	Encryption Encryption
	// Sample is how many documents of each table are looked at, at a read each.
	Sample int
}

// Doctor checks what goes wrong in practice, and says how to mend it. db may be nil. It
// changes nothing in the database and on the server, and leaves nothing in the store. It
// reads the whole database file, and is billed one read for each device, the sample, and
// about ten requests to the store. A check that cannot be made is a Finding too.
func Doctor(ctx context.Context, db *bun.DB, c Checkup) iter.Seq[Finding] {
	return func(yield func(Finding) bool) {
		d := &doctor{ctx: ctx, db: db, remote: c.Remote, store: c.Store, key: c.Encryption, sample: c.Sample, yield: yield}
		for _, check := range []func(){d.file, d.sync, d.server, d.bucket} {
			if check(); d.done {
				return
			}
		}
	}
}

type doctor struct {
	ctx    context.Context //nolint:containedctx // it lives inside one call
	db     *bun.DB
	remote Remote
	store  SnapshotStore
	key    Encryption
	sample int
	yield  func(Finding) bool
	done   bool // nobody listens any more

	exam   persistence.Examination
	health messages.Health // zero where the database is not attached
}

func (d *doctor) say(level Level, check, remedy, format string, args ...any) {
	if !d.done {
		d.done = !d.yield(Finding{check, level, fmt.Sprintf(format, args...), remedy})
	}
}

func (d *doctor) ok(check, format string, args ...any) { d.say(OK, check, "", format, args...) }

func (d *doctor) warn(check, remedy, format string, args ...any) {
	d.say(Warning, check, remedy, format, args...)
}

func (d *doctor) problem(check, remedy, format string, args ...any) {
	d.say(Problem, check, remedy, format, args...)
}

// failed is a check that did not come to its end.
func (d *doctor) failed(check string, err error) {
	remedy := "look at the error; `pipeline sync -v` shows the step in which it happens"
	switch {
	case errors.Is(err, ErrUnavailable):
		remedy = "check the network, the URL and the server; nothing is lost meanwhile, edits wait here"
	case errors.Is(err, ErrUnauthorized):
		remedy = "sign in, or give the account the right that the error names"
	case errors.Is(err, ErrNotFound):
		remedy = "create it, or correct the URL"
	case errors.Is(err, ErrNotDatabase):
		remedy = "restore the newest snapshot beside it (pipeline restore) and keep the damaged file: rows that were not uploaded are only there"
	case errors.Is(err, ErrLocked):
		remedy = "find the program that holds a transaction open, and end it"
	case errors.Is(err, ErrReadOnly):
		remedy = "give this user the right to read and write the file and its folder"
	}
	d.problem(check, remedy, "%v", err)
}

// file looks at the database by itself.
func (d *doctor) file() {
	if d.db == nil {
		return
	}
	var err error
	if d.exam, err = persistence.Examine(d.ctx, d.db); err != nil {
		d.failed("file", err)
		return
	}
	e := d.exam
	d.writable()
	switch e.Journal {
	case "wal":
		d.ok("journal", "write-ahead log")
	case "memory", "off":
		d.problem("journal", "set PRAGMA journal_mode = WAL", "journal mode %q: a crash can damage the file", e.Journal)
	default:
		d.warn("journal", "set PRAGMA journal_mode = WAL, once; `pipeline attach` does it too", "journal mode %q: the application and the sync wait for each other", e.Journal)
	}
	if len(e.Damage) == 0 {
		d.ok("integrity", "SQLite finds nothing wrong")
	} else {
		d.problem("integrity", "stop the application, keep a copy of the file, and restore the newest snapshot (pipeline restore); `REINDEX` mends it when only indexes are named",
			"the file is damaged: %s", strings.Join(e.Damage, "; "))
	}
	d.space()
	if !e.Attached {
		d.problem("attached", "run `pipeline attach`", "the database was never attached: nothing is tracked")
		return
	}
	d.triggers()
	d.references()
}

// writable tries what a sync needs: a transaction, and a file beside the database.
func (d *doctor) writable() {
	conn, err := d.db.DB.Conn(d.ctx)
	if err == nil {
		_, err = conn.ExecContext(d.ctx, "BEGIN IMMEDIATE")
		if err == nil { // a file without rights lets a transaction begin, and refuses only what it writes
			_, err = conn.ExecContext(d.ctx, "CREATE TABLE tidemark_doctor (x)")
		}
		if _, rerr := conn.ExecContext(context.WithoutCancel(d.ctx), "ROLLBACK"); err == nil {
			err = rerr
		}
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		d.failed("file", persistence.Explain(err))
		return
	}
	if d.exam.Path == "" {
		d.warn("file", "open a database file", "the database is in memory: it ends with its program")
		return
	}
	f, err := persistence.Temporary(d.exam.Path)
	if err != nil {
		d.problem("file", "give this user the right to write the folder: SQLite's log, the cycle's lock and snapshots lie there",
			"no file can be made beside the database: %v", err)
		return
	}
	_ = f.Close()
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) { // a sync that begins takes it for a leftover
		d.failed("file", err)
		return
	}
	d.ok("file", "%s, can be written", bytesText(d.exam.Pages*d.exam.PageSize))
}

// space compares what a snapshot needs with what there is.
func (d *doctor) space() {
	size := d.exam.Pages * d.exam.PageSize
	if free := d.exam.FreePages * d.exam.PageSize; free > 16<<20 && d.exam.FreePages > d.exam.Pages/2 {
		d.warn("free pages", "run VACUUM when the application has a pause", "%s of %s are empty pages", bytesText(free), bytesText(size))
	} else {
		d.ok("free pages", "%s", bytesText(free))
	}
	if d.exam.Path == "" {
		return
	}
	if st, err := os.Stat(d.exam.Path + "-wal"); err == nil && st.Size() > max(64<<20, size) {
		d.warn("log", "look for a program that keeps a read transaction open: SQLite cannot empty the log meanwhile", "the write-ahead log has %s", bytesText(st.Size()))
	}
	free, known := freeSpace(filepath.Dir(d.exam.Path))
	need := size + 16<<20
	switch {
	case !known:
	case free < 16<<20:
		d.problem("disk", "free some space", "%s are left on the disk: writing will fail", bytesText(free))
	case free < need:
		d.warn("disk", "free some space", "%s are left on the disk, and a snapshot needs up to %s for a while", bytesText(free), bytesText(need))
	default:
		d.ok("disk", "%s are free", bytesText(free))
	}
}

func (d *doctor) triggers() {
	e := d.exam
	if n := len(e.Missing) + len(e.Altered); n > 0 {
		d.problem("triggers", "run `pipeline attach`, which puts them right; what was edited without them was not noticed: save those rows once more",
			"of our triggers and indexes, missing: %d, changed: %d: %s", len(e.Missing), len(e.Altered), someOf(append(e.Missing, e.Altered...)))
	} else {
		d.ok("triggers", "all there, tables: %d", len(e.Tables))
	}
	if len(e.New) > 0 {
		d.warn("new tables", "the next sync takes them; to leave one out, `pipeline attach --exclude TABLE`", "not tracked yet: %s", someOf(e.New))
	}
}

func (d *doctor) references() {
	if len(d.exam.Dangling) == 0 {
		d.ok("foreign keys", "every reference has its row")
		return
	}
	var parts []string
	for _, x := range d.exam.Dangling {
		refer := "refer"
		if x.Rows == 1 {
			refer = "refers"
		}
		parts = append(parts, fmt.Sprintf("%d of %s (%s) %s to no row of %s, such as the row %s", x.Rows, x.Table, strings.Join(x.Columns, ", "), refer, x.Parent, x.First))
	}
	d.warn("foreign keys", "add the parents, set the columns to NULL, or delete the rows; and let the application set PRAGMA foreign_keys = ON",
		"rows that stay on this device: %s", strings.Join(parts, "; "))
}

// sync looks at how the last cycles went.
func (d *doctor) sync() {
	if !d.exam.Attached {
		return
	}
	local := persistence.View(d.db)
	h, err := local.Health(d.ctx)
	if err != nil {
		d.failed("bookkeeping", err)
		return
	}
	d.health = h
	if h.ForgottenOn != 0 {
		d.problem("scope", "remove this copy with `pipeline forget`, or start over with it: `pipeline attach --reset`",
			"this device was forgotten on %s and syncs no more", time.UnixMilli(h.ForgottenOn).UTC().Format(time.DateOnly))
	}
	cycle, on, err := local.LastCycle(d.ctx)
	if err != nil {
		d.failed("bookkeeping", err)
		return
	}
	failure, failed, err := local.LastFailure(d.ctx)
	if err != nil {
		d.failed("bookkeeping", err)
		return
	}
	switch age := time.Since(time.UnixMilli(on)); {
	case failed:
		d.problem("last sync", "do as it says, and run `pipeline sync` again", "the last one failed, in %s: %s", failure.Stage, failure.Error)
	case cycle == "":
		d.warn("last sync", "run `pipeline sync`, or `pipeline run` as a service", "no sync came to its end yet")
	case age > 24*time.Hour && h.Dirty > 0:
		d.warn("last sync", "run `pipeline sync` and look at its error, or `pipeline run` as a service", "%s ago, and %s here only", ageText(age), counted(h.Dirty, "edit is", "edits are"))
	default:
		d.ok("last sync", "%s ago", ageText(age))
	}
	broken, err := local.StageLetters(d.ctx)
	switch {
	case err != nil:
		d.failed("bookkeeping", err)
	case len(broken) > 0:
		d.problem("failures", "`pipeline failed show ID` has what to report; a newer version may have mended it", "a stage failed by a mistake in a program")
	case h.Dead > 0:
		d.warn("failures", "`pipeline failed` lists them, with the reason and what helps", "%s set aside", counted(h.Dead, "row or document was", "rows or documents were"))
	default:
		d.ok("failures", "none")
	}
	if d.remote == nil && cycle != "" {
		d.clock(time.Duration(h.ClockOffsetMs) * time.Millisecond)
	}
}

// clockLimit is how wrong a clock may be before it is worth a word.
const clockLimit = time.Minute

func (d *doctor) clock(off time.Duration) {
	switch {
	case off > clockLimit || off < -clockLimit:
		way := "behind"
		if off < 0 {
			way, off = "ahead of", -off
		}
		d.warn("clock", "set this machine's clock; edits are stamped with the server's time meanwhile", "%v %s the server's", off.Round(time.Second), way)
	default:
		d.ok("clock", "right, within a minute of the server's")
	}
}

// someOf names the first few.
func someOf(names []string) string {
	const most = 4
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// counted is "1 row" and "2 rows".
func counted[N int | int64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func bytesText(n int64) string {
	switch f := float64(n); {
	case n < 1000:
		return counted(n, "byte", "bytes")
	case f < 1e6:
		return fmt.Sprintf("%.1f kB", f/1e3)
	case f < 1e9:
		return fmt.Sprintf("%.1f MB", f/1e6)
	default:
		return fmt.Sprintf("%.1f GB", f/1e9)
	}
}

func ageText(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "less than a minute"
	case d < 2*time.Hour:
		return counted(int64(d.Minutes()), "minute", "minutes")
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}
