package persistence

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/tidemark-sync/tidemark/messages"
)

// Errors of Restore that a caller can act on.
var (
	// ErrUnsynced: the destination holds rows that no other device has.
	ErrUnsynced = errors.New("the destination has rows that were never synced")
	// ErrDamaged: the snapshot is not what its maker uploaded.
	ErrDamaged = errors.New("the snapshot is damaged")
	// ErrNewer: the snapshot was made by a newer version.
	ErrNewer = errors.New("the snapshot was made by a newer tidemark: upgrade this program")
)

// Opener opens a database file with the embedder's SQLite driver.
type Opener func(path string) (*sql.DB, error)

// Install puts a snapshot in place of the file at path: everything is checked on a
// temporary copy beside it, which then takes the destination's name in one step.
// Until then nothing at the destination is touched. It returns the new installation
// id.
func Install(ctx context.Context, path string, open Opener, snap messages.Snapshot, body io.Reader) (id string, err error) {
	if snap.Bookkeeping > formatVersion {
		return "", ErrNewer
	}
	if err := CheckDestination(ctx, path, open); err != nil {
		return "", err
	}
	dir, err := tempBeside(path)
	if err != nil {
		return "", fmt.Errorf("make room beside %s: %w", path, explain(err))
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tmp := filepath.Join(dir, "restored.db")
	if err := unpack(ctx, tmp, snap, body); err != nil {
		return "", err
	}
	if id, err = inspect(ctx, tmp, open, snap); err != nil {
		return "", err
	}
	if err := CheckDestination(ctx, path, open); err != nil { // somebody may have written meanwhile
		return "", err
	}
	// The old file's journal would be replayed into the new one.
	if err := retire(ctx, path, open); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("put the restored file in place: %w", err)
	}
	return id, syncDir(filepath.Dir(path))
}

// CheckDestination refuses a destination whose rows would be lost: one with unsynced
// rows, and any other file.
func CheckDestination(ctx context.Context, path string, open Opener) (err error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return fmt.Errorf("the folder of %s: %w: create it first", path, err)
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
	schema, err := LoadSchema(ctx, db)
	if errors.Is(err, ErrNotAttached) {
		all, rerr := Reflect(ctx, db)
		if rerr == nil && len(all.Tables) == 0 {
			return nil
		}
		return fmt.Errorf("%s is a database that was never synced: move it away first: %w", path, ErrUnsynced)
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
			return fmt.Errorf("table %q of %s is excluded from sync and has rows, which a restore would lose: move the file away first: %w", t.Name, path, ErrUnsynced)
		}
	}
	if dirty += n; dirty > 0 {
		return fmt.Errorf("%s has changes that were not uploaded (%d): sync it first, or move it away: %w", path, dirty, ErrUnsynced)
	}
	return nil
}

// unpack verifies and decompresses the object into a new file.
func unpack(ctx context.Context, tmp string, snap messages.Snapshot, body io.Reader) error {
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the restored file: %w", explain(err))
	}
	defer f.Close()
	sum := sha256.New()
	in := &counted{ctx: ctx, r: io.TeeReader(io.LimitReader(body, snap.Size+1), sum)}
	dec, err := zstd.NewReader(bufio.NewReaderSize(in, 1<<20), zstd.WithDecoderMaxWindow(32<<20), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return err
	}
	defer dec.Close()
	n, err := io.Copy(f, io.LimitReader(dec, snap.RawSize+1))
	switch {
	case in.err != nil && !errors.Is(in.err, io.EOF):
		return fmt.Errorf("download the snapshot: %w", in.err)
	case err != nil && (errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "no space left")):
		return fmt.Errorf("write the restored file: %w", explain(err))
	case err != nil:
		return fmt.Errorf("snapshot %s cannot be decompressed; restore an older one: %w (%w)", snap.Generation, ErrDamaged, err)
	case n != snap.RawSize:
		return fmt.Errorf("snapshot %s holds more or less than its manifest says (%d bytes); restore an older one: %w", snap.Generation, snap.RawSize, ErrDamaged)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("download the snapshot: %w", err)
	}
	if in.n != snap.Size || hex.EncodeToString(sum.Sum(nil)) != snap.SHA256 {
		return fmt.Errorf("snapshot %s has another checksum than its manifest says; restore an older one: %w", snap.Generation, ErrDamaged)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write the restored file: %w", explain(err))
	}
	return f.Close()
}

type counted struct {
	ctx context.Context //nolint:containedctx // lives inside one call
	r   io.Reader
	n   int64
	err error
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		c.err = err
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	return n, err
}

// inspect checks an unpacked file and gives it an identity of its own.
func inspect(ctx context.Context, tmp string, open Opener, snap messages.Snapshot) (id string, err error) {
	db, err := open(tmp)
	if err != nil {
		return "", fmt.Errorf("open the restored file: %w", err)
	}
	db.SetMaxOpenConns(1)
	defer func() { err = errors.Join(err, db.Close()) }()
	var verdict string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&verdict); err != nil || verdict != "ok" {
		return "", fmt.Errorf("snapshot %s fails SQLite's integrity check (%s); restore an older one: %w", snap.Generation, verdict, errors.Join(ErrDamaged, explain(err)))
	}
	var version int
	var owner string
	if err := db.QueryRowContext(ctx, `SELECT formatVersion, installationId FROM tidemark_state`).Scan(&version, &owner); err != nil {
		return "", fmt.Errorf("snapshot %s is not one of tidemark's: %w", snap.Generation, errors.Join(ErrDamaged, explain(err)))
	}
	if version > formatVersion {
		return "", ErrNewer
	}
	var dangling int64
	err = eachRow(ctx, db, `PRAGMA foreign_key_check`, func(func(...any) error) error { dangling++; return nil })
	if err != nil && !strings.Contains(err.Error(), "foreign key mismatch") {
		return "", fmt.Errorf("check the foreign keys of snapshot %s: %w", snap.Generation, explain(err))
	}
	if dangling > snap.Dangling {
		return "", fmt.Errorf("snapshot %s has %d rows whose parent is missing, its manifest says %d; restore an older one: %w", snap.Generation, dangling, snap.Dangling, ErrDamaged)
	}
	id = newID()
	seen, err := json.Marshal(snap.Seen)
	if err != nil {
		return "", err
	}
	if _, err := db.ExecContext(ctx, `UPDATE tidemark_state SET installationId = ?, seq = 0, recordVersion = 0, recordTables = '{}', registeredOn = 0, applying = 0,
		backedUp = ?, backedUpOn = ?, generation = ?, maker = ?, changedRows = 0`, id, string(seen), snap.MadeOn, snap.Generation, snap.Device); err != nil {
		return "", explain(err)
	}
	if owner != "" {
		return "", fmt.Errorf("snapshot %s still carries its maker's identity; restore another one: %w", snap.Generation, ErrDamaged)
	}
	if err := drain(ctx, db, `PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		return "", explain(err)
	}
	return id, nil
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
	err = errors.Join(err, db.Close())
	if err != nil || !strings.EqualFold(mode, "delete") {
		return fmt.Errorf("%s is in use: close the programs that have it open and try again: %w", path, errors.Join(ErrLocked, err))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_ = d.Sync() // not every system can
	return d.Close()
}
