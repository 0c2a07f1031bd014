package persistence

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// Errors of Restore that a caller can act on.
var (
	// ErrUnsynced: the destination holds rows that no other device has.
	ErrUnsynced = errors.New("there are rows that were never synced")
	// errNotUploaded is ErrUnsynced of a file that has rows which no sync of it uploads.
	errNotUploaded = fmt.Errorf("%w", ErrUnsynced)
	// ErrDamaged: the snapshot is not what its maker uploaded.
	ErrDamaged = messages.ErrDamaged
	// ErrRolledBack: the newest snapshot in the store is older than one that the file
	// here knows.
	ErrRolledBack = errors.New("somebody put an older manifest back, or it is another store: compare `pipeline snapshots` with another device, and name the snapshot that you want all the same (--at)")
	// ErrNewer: the snapshot was made by a newer version.
	ErrNewer = errors.New("the snapshot was made by a newer tidemark: upgrade this program")
)

// Opener opens a database file with the embedder's SQLite driver.
type Opener func(path string) (*sql.DB, error)

// The phases of a restore, in their order.
const (
	PhaseDownload = "download"
	PhaseUnpack   = "unpack"
	PhaseCheck    = "check"
	PhaseInstall  = "install"
)

// Restoration brings a downloaded snapshot back.
type Restoration struct {
	Snapshot messages.Snapshot
	// Objects are the files of the snapshot's objects, in their order.
	Objects    []string
	Open       Opener
	Encryption Encryption // nil: the snapshot is not to be encrypted
	// Scope, unless empty, is the one that the rows have to be of.
	Scope string
	// Keep, unless empty, is the name that a file gets which is at the destination and has
	// what no other device has; without it such a file is a refusal.
	Keep string
	// Store is the one that the snapshot is in, "" when it does not tell.
	Store string
	// Tell, unless nil, hears how far it is: bytes of the file while it is unpacked.
	Tell func(phase string, done, total int64)
}

func (r Restoration) tell(phase string, done, total int64) {
	if r.Tell != nil {
		r.Tell(phase, done, total)
	}
}

// Acceptable refuses a snapshot by what its manifest says, before it is downloaded.
func (r Restoration) Acceptable() error {
	s := r.Snapshot
	switch {
	case s.Format > messages.ManifestFormat || s.Bookkeeping > formatVersion:
		return ErrNewer
	case s.Encrypted && r.Encryption == nil:
		return ErrNoKey
	case !s.Encrypted && r.Encryption != nil:
		return fmt.Errorf("snapshot %s: %w", s.Generation, ErrNotEncrypted)
	case r.Scope != "" && s.Scope != "" && r.Scope != s.Scope:
		return fmt.Errorf("snapshot %s: %w: check the store's URL", s.Generation, messages.OtherScope(s.Scope, r.Scope))
	}
	return nil
}

// Install puts the snapshot in place of the file at path: everything is checked on a
// temporary copy beside it, which then takes the destination's name in one step.
// Until then nothing at the destination is touched.
func (r Restoration) Install(ctx context.Context, path string) (in Installed, err error) {
	if err := r.Acceptable(); err != nil {
		return in, err
	}
	if _, _, err := r.destination(ctx, path); err != nil {
		return in, err
	}
	dir, err := tempBeside(path)
	if err != nil {
		return in, fmt.Errorf("make room beside %s: %w", path, explain(err))
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tmp := filepath.Join(dir, "restored.db")
	if err := r.unpack(ctx, tmp); err != nil {
		return in, err
	}
	r.tell(PhaseCheck, 0, 1)
	if in, err = r.inspect(ctx, tmp, path); err != nil {
		return in, err
	}
	r.tell(PhaseInstall, 0, 1)
	if err := syncFile(tmp); err != nil {
		return in, fmt.Errorf("write the restored file: %w", explain(err))
	}
	if in.Unsynced, in.NotUploaded, err = r.destination(ctx, path); err != nil { // somebody may have written meanwhile
		return in, err
	}
	// The old file's journal would be replayed into the new one.
	if err := retire(ctx, path, r.Open); err != nil {
		return in, err
	}
	if in.Unsynced || in.ConflictsLeft > 0 {
		if err := keep(path, r.Keep); err != nil {
			return in, err
		}
		in.Kept = r.Keep
	}
	if err := os.Rename(tmp, path); err != nil {
		return in, fmt.Errorf("put the restored file in place: %w", err)
	}
	_ = os.Remove(path + pagesSuffix) // it was the old file's
	return in, syncDir(filepath.Dir(path))
}

// Installed is what Install did.
type Installed struct {
	// ID is the new installation id, Kept the name of the file that was there, if it was
	// kept.
	ID, Kept string
	// Unsynced: it was kept for rows that no other device has. NotUploaded: some of them do
	// not go up when it is synced.
	Unsynced, NotUploaded bool
	// Conflicts counts those of that file that were carried over, ConflictsLeft those that
	// are of another scope and stay in it.
	Conflicts, ConflictsLeft int64
}

// destination reports whether the file at path has to be kept, and whether it has rows
// that no sync of it uploads.
func (r Restoration) destination(ctx context.Context, path string) (keep, notUploaded bool, err error) {
	err = CheckDestination(ctx, path, r.Open)
	if r.Keep != "" && errors.Is(err, ErrUnsynced) {
		return true, errors.Is(err, errNotUploaded), nil
	}
	return false, false, err
}

// keep gives a file a second name: at every moment one of them is there.
func keep(path, name string) error {
	err := os.Link(path, name)
	if err != nil && !errors.Is(err, os.ErrExist) {
		err = os.Rename(path, name) // not every disk has links
	}
	if err != nil {
		return fmt.Errorf("keep the old file as %s: %w", name, err)
	}
	return nil
}

// Verify unpacks and checks the snapshot in a folder, and leaves nothing there.
func (r Restoration) Verify(ctx context.Context, dir string) (err error) {
	if err := r.Acceptable(); err != nil {
		return err
	}
	tmp := filepath.Join(dir, "verified.db")
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			if rerr := os.Remove(tmp + suffix); !errors.Is(rerr, os.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	if err := r.unpack(ctx, tmp); err != nil {
		return err
	}
	r.tell(PhaseCheck, 0, 1)
	_, err = r.inspect(ctx, tmp, "")
	return err
}

// CheckDestination refuses a destination whose rows would be lost: one with unsynced
// rows, and any other file.
func CheckDestination(ctx context.Context, path string, open Opener) (err error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return messages.Saying(err, "there is no folder %s: create it first", filepath.Dir(path))
			}
			return fmt.Errorf("the folder of %s: %w", path, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: choose another path", path)
	}
	if st.Size() == 0 {
		return nil
	}
	db, err := open(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, explain(err))
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if table := rebuiltTable(ctx, db); table != "" {
		return messages.Saying(ErrUnsynced, "its table %q was rebuilt, and what was changed in it since is not known: sync the file first, or move it away", table)
	}
	schema, err := LoadSchema(ctx, db)
	if errors.Is(err, ErrNotAttached) {
		all, rerr := Reflect(ctx, db)
		if rerr == nil && len(all.Tables) == 0 {
			return nil
		}
		return messages.Saying(errNotUploaded, "it is a database that was never synced: move it away first")
	}
	if err != nil {
		return fmt.Errorf("look into %s: %w", path, err)
	}
	dirty := int64(0)
	for _, t := range schema.Tables {
		var n int64
		if err := db.QueryRowContext(ctx, `SELECT count(*) FROM `+quote(t.Name)+` WHERE isDirty = 1`).Scan(&n); err != nil {
			return fmt.Errorf("look into %s: %w", path, explain(err))
		}
		dirty += n
	}
	var n int64
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM tidemark_tombstones WHERE isDirty = 1 AND tableName IN (SELECT tableName FROM tidemark_tables WHERE excluded = 0)`).Scan(&n); err != nil {
		return fmt.Errorf("look into %s: %w", path, explain(err))
	}
	all, err := Reflect(ctx, db)
	if err != nil {
		return fmt.Errorf("look into %s: %w", path, err)
	}
	for _, t := range all.Tables {
		var some bool
		if schema.Table(t.Name) != nil {
			continue
		}
		if err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM `+quote(t.Name)+`)`).Scan(&some); err != nil {
			return fmt.Errorf("look into %s: %w", path, explain(err))
		}
		if some {
			return messages.Saying(errNotUploaded, "its table %q is excluded from sync and has rows, which would be lost: move the file away first", t.Name)
		}
	}
	if dirty += n; dirty == 0 {
		return nil
	}
	var held int64 // what the last upload had to leave behind
	if err := db.QueryRowContext(ctx, `SELECT heldRows FROM tidemark_state`).Scan(&held); err != nil {
		return fmt.Errorf("look into %s: %w", path, explain(err))
	}
	switch {
	case held >= dirty:
		return messages.Saying(errNotUploaded, "it has changes that the server does not take (%d): `pipeline failed` lists them, with what helps; or move it away", dirty)
	case held > 0:
		return messages.Saying(errNotUploaded, "it has changes that were not uploaded (%d): sync it first, or move it away; the server did not take %d of them, see `pipeline failed`", dirty, held)
	}
	return messages.Saying(ErrUnsynced, "it has changes that were not uploaded (%d): sync it first, or move it away", dirty)
}

// rebuiltTable names an attached table that has lost our triggers, "" when there is none.
func rebuiltTable(ctx context.Context, db queryer) string {
	var table string
	_ = db.QueryRowContext(ctx, `SELECT t.tableName FROM tidemark_tables AS t JOIN sqlite_master AS m ON m.type = 'table' AND m.name = t.tableName WHERE t.excluded = 0
		AND NOT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = t.tableName COLLATE NOCASE AND name LIKE 'tidemark\_%' ESCAPE '\')`).
		Scan(&table) // none, or it was never attached, which others say
	return table
}

// CheckNewest fails with ErrRolledBack when the file at path knows of a snapshot that
// newest, the newest one in the store, does not cover, and with ErrOtherScope when its rows
// are of another scope.
func CheckNewest(ctx context.Context, path string, newest messages.Snapshot, open Opener) (err error) {
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		return nil // there is nothing that could know
	}
	db, err := open(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, explain(err))
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var scope string
	if err := db.QueryRowContext(ctx, `SELECT scope FROM tidemark_state`).Scan(&scope); err == nil && scope != "" && newest.Scope != "" && scope != newest.Scope {
		theirs, ours := messages.TwoScopes(newest.Scope, scope)
		return messages.Saying(ErrOtherScope, "the snapshots in the store are of %s, and this database is of %s: check the store's URL, or name the snapshot that you want all the same (--at)", theirs, ours)
	}
	return KnowsOf(ctx, db, newest)
}

// KnowsOf fails with ErrRolledBack when the database knows of a snapshot that newest
// does not cover.
func KnowsOf(ctx context.Context, db queryer, newest messages.Snapshot) error {
	var generation, raw string
	var seen messages.Vector
	if err := db.QueryRowContext(ctx, `SELECT generation, backedUp FROM tidemark_state`).Scan(&generation, &raw); err != nil {
		return nil //nolint:nilerr // it is no database of ours, which others say
	}
	if err := json.Unmarshal([]byte(raw), &seen); err != nil {
		return fmt.Errorf("the bookkeeping is damaged: %w", err)
	}
	if generation != "" && !newest.Seen.Covers(seen) {
		return fmt.Errorf("the newest snapshot in the store, %s, is older than %s, which this database knows: %w", newest.Generation, generation, ErrRolledBack)
	}
	return nil
}

// inspect checks an unpacked file and, when it is to take the place of the one at over,
// gives it an identity of its own, and that one's conflicts.
func (r Restoration) inspect(ctx context.Context, tmp, over string) (in Installed, err error) {
	snap := r.Snapshot
	db, err := r.Open(tmp)
	if err != nil {
		return in, fmt.Errorf("open the restored file: %w", err)
	}
	db.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := harmless(ctx, db); err != nil {
		return in, fmt.Errorf("snapshot %s: %w", snap.Generation, err)
	}
	var verdict string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&verdict); err != nil || verdict != "ok" {
		return in, fmt.Errorf("snapshot %s fails SQLite's integrity check (%s); restore an older one: %w", snap.Generation, verdict, errors.Join(ErrDamaged, explain(err)))
	}
	var version int
	var owner, scope string
	if err := db.QueryRowContext(ctx, `SELECT formatVersion, installationId, scope FROM tidemark_state`).Scan(&version, &owner, &scope); err != nil {
		return in, fmt.Errorf("snapshot %s is not one of tidemark's: %w", snap.Generation, errors.Join(ErrDamaged, explain(err)))
	}
	if version > formatVersion {
		return in, ErrNewer
	}
	var dangling int64
	err = eachRow(ctx, db, `PRAGMA foreign_key_check`, func(func(...any) error) error { dangling++; return nil })
	if err != nil && !mismatch(err) {
		return in, fmt.Errorf("check the foreign keys of snapshot %s: %w", snap.Generation, explain(err))
	}
	if dangling > snap.Dangling {
		return in, fmt.Errorf("snapshot %s has %d rows whose parent is missing, its manifest says %d; restore an older one: %w", snap.Generation, dangling, snap.Dangling, ErrDamaged)
	}
	switch {
	case owner != "":
		return in, fmt.Errorf("snapshot %s still carries its maker's identity; restore another one: %w", snap.Generation, ErrDamaged)
	case snap.Format >= 2 && scope != snap.Scope:
		return in, fmt.Errorf("snapshot %s holds a database of another scope than it says: %w", snap.Generation, ErrDamaged)
	case r.Scope != "" && scope != "" && scope != r.Scope:
		return in, fmt.Errorf("snapshot %s: %w: check the store's URL", snap.Generation, messages.OtherScope(scope, r.Scope))
	case over == "":
		return in, nil
	}
	if err := createBookkeeping(ctx, db); err != nil { // an older version may have made it
		return in, explain(err)
	}
	in.ID = newID()
	seen, err := json.Marshal(snap.Seen)
	if err != nil {
		return in, err
	}
	if _, err := db.ExecContext(ctx, `UPDATE tidemark_state SET installationId = ?, seq = 0, recordVersion = 0, recordTables = '{}', registeredOn = 0, applying = 0,
		backedUp = ?, backedUpOn = ?, generation = ?, maker = ?, changedRows = 0, store = ?`, in.ID, string(seen), snap.MadeOn, snap.Generation, snap.Device, r.Store); err != nil {
		return in, explain(err)
	}
	if in.Conflicts, in.ConflictsLeft, err = r.carry(ctx, db, over); err != nil {
		return in, fmt.Errorf("carry the conflicts of %s over: %w", over, err)
	}
	if err := drain(ctx, db, `PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		return in, explain(err)
	}
	return in, nil
}

// harmless refuses a database in which something of somebody else's would run when we
// look into our own tables: views in their place, triggers on them, columns that are
// computed. The application's own schema is its own: it may call functions that its
// driver brings.
func harmless(ctx context.Context, db *sql.DB) error {
	if err := drain(ctx, db, `PRAGMA cell_size_check = ON`); err != nil {
		return explain(err)
	}
	// What SQLite has understood of the schema, and not what its table says of it.
	var strange string
	err := db.QueryRowContext(ctx, `SELECT coalesce(max(l.name || ' ' || coalesce(x.name, '')), '') FROM pragma_table_list AS l LEFT JOIN pragma_table_xinfo(l.name) AS x ON x.hidden <> 0
		WHERE l.schema = 'main' AND l.name LIKE 'tidemark\_%' ESCAPE '\' AND (l.type <> 'table' OR x.name IS NOT NULL)`).Scan(&strange)
	if err == nil {
		err = eachRow(ctx, db, `SELECT sql FROM sqlite_master WHERE type = 'trigger'`, func(scan func(...any) error) error {
			var sql string
			err := scan(&sql)
			if table := triggered(sql); strings.HasPrefix(fold(table), "tidemark_") {
				strange = "a trigger on " + table
			}
			return err
		})
	}
	switch {
	case err != nil:
		return fmt.Errorf("look into its schema: %w", errors.Join(ErrDamaged, explain(err)))
	case strange != "":
		return fmt.Errorf("%q is none of tidemark's and would run something: %w", strange, ErrDamaged)
	}
	return nil
}

// triggered is the table of a trigger.
func triggered(sql string) string {
	toks := tokens(sql)
	for i, t := range toks {
		if !t.is("ON") {
			continue
		}
		rest := toks[i+1:]
		if len(rest) > 2 && rest[1].is(".") {
			rest = rest[2:]
		}
		if len(rest) > 0 {
			return strings.Trim(rest[0].text, "'") // SQLite takes a literal for a name, too
		}
	}
	return ""
}

// retire empties the journal of a file that is about to be replaced, and fails when
// another program has it open.
func retire(ctx context.Context, path string, open Opener) (err error) {
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		return nil //nolint:nilerr // there is nothing to retire
	}
	db, err := open(path)
	if err != nil {
		return explain(err)
	}
	db.SetMaxOpenConns(1)
	var mode string
	err = db.QueryRowContext(ctx, `PRAGMA journal_mode = DELETE`).Scan(&mode) // needs the file for itself, and removes the journal
	err = errors.Join(explain(err), db.Close())
	if errors.Is(err, ErrNotDatabase) {
		return err
	}
	if err != nil && !errors.Is(err, ErrLocked) {
		return messages.Saying(ErrLocked, "%s is in use, or cannot be written: close the programs that have it open and try again: %w", path, err)
	}
	if err != nil || !strings.EqualFold(mode, "delete") {
		return messages.Saying(ErrLocked, "%s is in use: close the programs that have it open and try again", path)
	}
	return nil
}

// syncFile puts on disk what was written to a file, by whatever program. SQLite has it
// closed: no lock is lost.
func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync() // not every system can
	return d.Close()
}
