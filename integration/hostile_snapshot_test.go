package integration

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// forgery is what somebody needs who may write to the bucket: a database as a snapshot
// holds it, and the manifest's entry for it.
type forgery struct {
	file []byte
	snap messages.Snapshot
}

var forged = sync.OnceValues(func() (f forgery, err error) {
	dir, err := os.MkdirTemp("", "tidemark-forged")
	if err != nil {
		return f, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()
	raw, err := sql.Open("sqlite", deviceDSN(filepath.Join(dir, "a.db")))
	if err != nil {
		return f, err
	}
	db := bun.NewDB(raw, sqlitedialect.New())
	defer db.Close()
	if _, err = raw.ExecContext(ctx, "PRAGMA page_size = 1024;"+parentAndChild+`INSERT INTO book (title) VALUES ('one'); INSERT INTO page (book, text) VALUES (1, 'p')`); err != nil {
		return f, err
	}
	if _, err := tidemark.Attach(ctx, db); err != nil {
		return f, err
	}
	bucket := memory.NewBucket()
	p, err := tidemark.New(ctx, db, memory.NewServer().Remote(), bucket.Store())
	if err != nil {
		return f, err
	}
	if _, err := p.Sync(ctx); err != nil {
		return f, err
	}
	body, _, err := bucket.Store().Get(ctx, messages.ManifestKey, 0)
	if err != nil {
		return f, err
	}
	manifest, err := io.ReadAll(body)
	if err != nil {
		return f, err
	}
	m, err := messages.ParseManifest(manifest)
	if err != nil {
		return f, err
	}
	f.snap = m.Current
	// A restored file, made nobody's again, is what the snapshot holds.
	path := filepath.Join(dir, "b.db")
	if _, err := tidemark.Restore(ctx, path, bucket.Store()); err != nil {
		return f, err
	}
	restored, err := sql.Open("sqlite", deviceDSN(path))
	if err != nil {
		return f, err
	}
	_, err = restored.ExecContext(ctx, `PRAGMA journal_mode = DELETE; UPDATE tidemark_state SET installationId = ''`)
	if err = errors.Join(err, restored.Close()); err != nil {
		return f, err
	}
	f.file, err = os.ReadFile(path)
	return f, err
})

// put makes a database the newest snapshot of a store, with everything that says so in
// order.
func (f forgery) put(t *testing.T, store tidemark.SnapshotStore, file []byte) {
	t.Helper()
	sum := sha256.Sum256(file)
	snap := f.snap
	snap.Parts, snap.RawSize, snap.RawSHA256 = nil, int64(len(file)), hex.EncodeToString(sum[:])
	header, err := json.Marshal(snap.Header(1024))
	if err != nil {
		t.Fatal(err)
	}
	body := packed(t, slices.Concat([]byte("tidemark snapshot\n"), []byte{0, 0, byte(len(header) >> 8), byte(len(header))}, header, file))
	sum = sha256.Sum256(body)
	snap.Size, snap.SHA256 = int64(len(body)), hex.EncodeToString(sum[:])
	put(t, store, snap.Key, body)
	putManifest(t, store, messages.Manifest{Format: messages.ManifestFormat, Current: snap})
}

// with is the database after statements that its maker runs.
func (f forgery) with(t *testing.T, statements string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "forged.db")
	if err := os.WriteFile(path, f.file, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), statements)
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A database that somebody else made runs nothing while it is restored: tables of ours
// that are views without an end, triggers on them, tables that are code.
func TestASnapshotThatRunsSomething(t *testing.T) {
	f, err := forged()
	if err != nil {
		t.Fatal(err)
	}
	const endless = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS i FROM n`
	for name, c := range map[string]struct {
		statements string
		want       error
	}{
		"as it was": {`SELECT 1`, nil},
		"a view without an end": {`ALTER TABLE tidemark_state RENAME TO x; CREATE VIEW tidemark_state AS SELECT (` + endless + `) AS formatVersion,
			'' AS installationId, '' AS scope, 0 AS applying`, tidemark.ErrDamaged},
		"a trigger without an end": {`CREATE TRIGGER t AFTER UPDATE ON tidemark_state BEGIN INSERT INTO book (title) ` + endless + `; END`, tidemark.ErrDamaged},
		"a trigger that deletes":   {`CREATE TRIGGER t AFTER UPDATE ON tidemark_state BEGIN DELETE FROM book; END`, tidemark.ErrDamaged},
		"a column without an end":  {`ALTER TABLE tidemark_state ADD COLUMN x AS (length(zeroblob(900000000)) + length(hex(zeroblob(400000000))))`, tidemark.ErrDamaged},
		"a trigger that hides": {`CREATE TRIGGER t AFTER UPDATE ON 'tidemark_state' BEGIN DELETE FROM book; END;
			PRAGMA writable_schema = ON; UPDATE sqlite_master SET tbl_name = 'book' WHERE name = 't'`, tidemark.ErrDamaged},
		"a view that hides": {`ALTER TABLE tidemark_state RENAME TO x; CREATE VIEW tidemark_state AS SELECT (` + endless + `) AS formatVersion, '' AS installationId, '' AS scope;
			PRAGMA writable_schema = ON; UPDATE sqlite_master SET name = 'v', tbl_name = 'v' WHERE name = 'tidemark_state'`, tidemark.ErrDamaged},
		"nothing of ours": {`DROP TABLE tidemark_state`, tidemark.ErrDamaged},
		"no state":        {`DELETE FROM tidemark_state`, tidemark.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := f.with(t, c.statements)
			store := memory.NewBucket().Store()
			f.put(t, store, file)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			path := filepath.Join(t.TempDir(), "new.db")
			_, err := tidemark.Restore(ctx, path, store)
			if !errors.Is(err, c.want) || ctx.Err() != nil {
				t.Errorf("restore: %v", err)
			}
			if _, serr := os.Stat(path); (serr == nil) != (c.want == nil) {
				t.Errorf("the restored file: %v", serr)
			}
		})
	}
}

// Whatever bytes the database of a snapshot has, a restore refuses it or installs a file
// that SQLite finds sound; one that is installed can be synced or says why not.
func FuzzHostileSnapshot(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 18, 2, 0, 19, 2, 4, 0, 13})
	for seed := range uint64(8) {
		random := newRand(seed)
		data := make([]byte, 3*(1+random.IntN(8)))
		for i := range data {
			data[i] = byte(random.IntN(256))
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		good, err := forged()
		if err != nil {
			t.Fatal(err)
		}
		file := slices.Clone(good.file)
		for ; len(edits) >= 3; edits = edits[3:] { // where, in 256ths of the first pages, and what
			at := (int(edits[0])<<8 | int(edits[1])) % len(file)
			file[at] = edits[2]
		}
		store := memory.NewBucket().Store()
		good.put(t, store, file)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		path := filepath.Join(t.TempDir(), "new.db")
		_, verr := tidemark.Verify(ctx, store)
		if _, err := tidemark.Restore(ctx, path, store); err != nil {
			if _, serr := os.Stat(path); serr == nil || ctx.Err() != nil {
				t.Errorf("refused (%v), and the file is there: %v", err, serr)
			}
			return
		}
		if verr != nil {
			t.Errorf("restored, and not verified: %v", verr)
		}
		raw, err := sql.Open("sqlite", deviceDSN(path))
		if err != nil {
			t.Fatal(err)
		}
		db := bun.NewDB(raw, sqlitedialect.New())
		defer db.Close()
		var verdict string
		if err := raw.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&verdict); err != nil || verdict != "ok" {
			t.Errorf("what was installed is not sound: %s, %v", verdict, err)
		}
		p, err := tidemark.New(ctx, db, memory.NewServer().Remote(), store)
		if err != nil {
			return // it says why
		}
		if _, err := p.Sync(ctx); err != nil && ctx.Err() != nil {
			t.Errorf("sync: %v", err)
		}
	})
}
