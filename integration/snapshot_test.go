package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/age"
	"github.com/tidemark-sync/tidemark/messages"
)

// eager backs up after every change.
func eager(more ...tidemark.Option) []tidemark.Option {
	return append([]tidemark.Option{tidemark.WithBackup(1, time.Hour, 3), tidemark.WithDailySnapshots(0), tidemark.WithTakeover(0)}, more...)
}

func get(t *testing.T, store tidemark.SnapshotStore, key string) []byte {
	t.Helper()
	body, _, err := store.Get(t.Context(), key, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	raw, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func put(t testing.TB, store tidemark.SnapshotStore, key string, body []byte) {
	t.Helper()
	if _, err := store.Put(t.Context(), key, bytes.NewReader(body), messages.Condition{}); err != nil {
		t.Fatal(err)
	}
}

func manifest(t *testing.T, store tidemark.SnapshotStore) messages.Manifest {
	t.Helper()
	m, err := messages.ParseManifest(get(t, store, messages.ManifestKey))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func putManifest(t testing.TB, store tidemark.SnapshotStore, m messages.Manifest) {
	t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	put(t, store, messages.ManifestKey, raw)
}

func newKey(t *testing.T) (tidemark.Encryption, string) {
	t.Helper()
	file, _, err := age.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return keyOf(t, age.Config{Identities: []string{file}}), file
}

func keyOf(t *testing.T, c age.Config) tidemark.Encryption {
	t.Helper()
	k, err := age.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// holds demands that a restored file has exactly the rows of a device.
func (d *device) holds(path string) {
	d.t.Helper()
	db := openDB(d.t, path)
	defer db.Close()
	want, got := contents(d.t.Context(), d.t, d.db.DB), contents(d.t.Context(), d.t, db.DB)
	for table := range want {
		if !slices.Equal(want[table], got[table]) {
			d.t.Fatalf("table %s of the restored file has %d rows, others than the %d that were there", table, len(got[table]), len(want[table]))
		}
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func text(rnd *rand.Rand) string { return strconv.FormatUint(rnd.Uint64(), 10) }

// edits are a day's work on notes.
func (d *device) edits(rnd *rand.Rand, n int) {
	d.t.Helper()
	for range n {
		switch rnd.IntN(6) {
		case 0, 1:
			d.exec(`INSERT INTO note (notebook, title, body) VALUES (1, ?, ?)`, text(rnd), strings.Repeat("words ", rnd.IntN(900)))
		case 2:
			d.exec(`UPDATE note SET title = ? WHERE id % 50 = ?`, text(rnd), rnd.IntN(50))
		case 3:
			d.exec(`UPDATE note SET body = body || ? WHERE id % 20 = ?`, strings.Repeat("more ", rnd.IntN(300)), rnd.IntN(20))
		case 4:
			d.exec(`DELETE FROM note WHERE id % 60 = ?`, rnd.IntN(60))
		case 5:
			d.exec(`INSERT INTO tag (name, colour) VALUES (?, randomblob(?))`, text(rnd), rnd.IntN(20_000))
		}
	}
}

func fill(d *device, rows int) {
	d.t.Helper()
	d.exec(`INSERT INTO notebook (id, name) VALUES (1, 'home')`)
	d.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO note (notebook, title, body) SELECT 1, 'note ' || i, hex(randomblob(150)) FROM n`, rows)
}

// Whatever is edited between two snapshots, and however the file is laid out, each of
// them restores to the rows that were there; most are only what changed; and nothing
// stays in the bucket that no manifest names.
func TestEverySnapshotOfAChainRestores(t *testing.T) {
	for name, pragma := range map[string]string{
		"plain":           ``,
		"small pages":     `PRAGMA page_size = 512`,
		"large pages":     `PRAGMA page_size = 65536`,
		"shrinking":       `PRAGMA auto_vacuum = FULL`,
		"write-ahead log": `PRAGMA journal_mode = WAL`,
		"encrypted":       ``,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, pragma+";"+notesSchema)
			opts := eager()
			var restoring []tidemark.RestoreOption
			if name == "encrypted" {
				key, _ := newKey(t)
				opts, restoring = append(opts, tidemark.WithEncryption(key)), append(restoring, tidemark.RestoreKey(key))
			}
			a := f.device("a", opts...)
			fill(a, 1500)
			rnd := newRand(3)
			changes, most := 0, 0
			var before []string
			for i := range 12 {
				if i > 0 {
					a.edits(rnd, 1+rnd.IntN(6))
				}
				if r := a.sync(); r.Snapshot == nil {
					t.Fatal("no snapshot")
				}
				m := manifest(t, f.store())
				if n := len(m.Current.Parts); n > 0 {
					changes++
					most = max(most, n)
				}
				path := filepath.Join(f.dir, fmt.Sprintf("restored-%d.db", i))
				if _, err := tidemark.Restore(t.Context(), path, f.store(), restoring...); err != nil {
					t.Fatalf("snapshot %d, of %d parts: %v", i, len(m.Current.Parts), err)
				}
				a.holds(path)
				var named []string
				for _, s := range m.Snapshots() {
					for _, p := range s.Chain() {
						named = append(named, p.Key)
					}
				}
				for _, r := range m.Retired { // a restore may still be reading them
					named = append(named, r.Key)
				}
				slices.Sort(named)
				objects, err := f.store().List(t.Context(), messages.SnapshotPrefix)
				if err != nil {
					t.Fatal(err)
				}
				var there []string
				for _, o := range objects {
					there = append(there, o.Key)
				}
				if !slices.Equal(there, slices.Compact(named)) {
					t.Fatalf("in the bucket: %q\nnamed: %q", there, named)
				}
				before = append(before, m.Current.Generation)
			}
			if changes < 5 || most < 2 {
				t.Errorf("%d of 12 snapshots were changes, at most %d in a row", changes, most)
			}
			// The older ones that are kept restore too.
			for _, g := range before[len(before)-3:] {
				path := filepath.Join(f.dir, g+".db")
				if _, err := tidemark.Restore(t.Context(), path, f.store(), append(restoring, tidemark.RestoreGeneration(g))...); err != nil {
					t.Errorf("an older snapshot: %v", err)
				}
			}
		})
	}
}

// A restore never has to read more than so many objects, nor much more than a whole
// snapshot.
func TestAChainEnds(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a", eager()...)
	fill(a, 2000)
	most, whole := 0, 0
	for i := range 24 {
		a.exec(`UPDATE note SET title = ? WHERE id = 7`, strconv.Itoa(i))
		a.sync()
		s := manifest(t, f.store()).Current
		most = max(most, len(s.Parts))
		if len(s.Parts) == 0 {
			whole++
		}
		if s.Download() > s.Chain()[0].Size*3/2 {
			t.Errorf("a restore reads %d bytes, a whole snapshot has %d", s.Download(), s.Chain()[0].Size)
		}
	}
	if most < 10 || most > 20 || whole != 2 {
		t.Errorf("at most %d changes in a row, %d whole ones of 24", most, whole)
	}
	path := filepath.Join(f.dir, "restored.db")
	if _, err := tidemark.Restore(t.Context(), path, f.store()); err != nil {
		t.Fatal(err)
	}
	a.holds(path)
}

// What makes changes useless, or unreadable for who has the key, is followed by a
// whole snapshot.
func TestAWholeSnapshotFollows(t *testing.T) {
	t.Parallel()
	old, oldFile := newKey(t)
	for name, c := range map[string]struct {
		do   func(f *fleet, a *device) *device
		open func() tidemark.Encryption
	}{
		"a vacuum": {do: func(_ *fleet, a *device) *device {
			a.exec(`DELETE FROM note WHERE id % 2 = 0`)
			a.exec(`VACUUM`)
			return a
		}},
		"a lost list of pages": {do: func(_ *fleet, a *device) *device {
			if err := os.Remove(a.path + ".tidemark-pages"); err != nil {
				a.t.Fatal(err)
			}
			return a
		}},
		"a damaged list of pages": {do: func(_ *fleet, a *device) *device {
			raw, err := os.ReadFile(a.path + ".tidemark-pages")
			if err != nil {
				a.t.Fatal(err)
			}
			raw[len(raw)/2] ^= 1
			if err := os.WriteFile(a.path+".tidemark-pages", raw, 0o600); err != nil {
				a.t.Fatal(err)
			}
			return a
		}},
		"a key where there was none": {do: func(f *fleet, a *device) *device {
			return f.on(a.path, a.db, eager(tidemark.WithEncryption(old))...)
		}, open: func() tidemark.Encryption { return old }},
		"another device": {do: func(f *fleet, a *device) *device {
			b := f.restore("b", eager()...)
			return b
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, notesSchema)
			a := f.device("a", eager()...)
			fill(a, 1000)
			a.sync()
			a.exec(`UPDATE note SET title = 'changed' WHERE id = 5`)
			a.sync()
			if n := len(manifest(t, f.store()).Current.Parts); n != 1 {
				t.Fatalf("a small change made a snapshot of %d parts", n)
			}
			d := c.do(f, a)
			d.exec(`UPDATE note SET title = 'again' WHERE id = 5`)
			if r := d.sync(); r.Snapshot == nil {
				t.Fatal("no snapshot")
			}
			if n := len(manifest(t, f.store()).Current.Parts); n != 0 {
				t.Errorf("the snapshot after it builds on %d others", n)
			}
			var opts []tidemark.RestoreOption
			if c.open != nil {
				opts = append(opts, tidemark.RestoreKey(c.open()))
			}
			path := filepath.Join(f.dir, "restored.db")
			if _, err := tidemark.Restore(t.Context(), path, f.store(), opts...); err != nil {
				t.Fatal(err)
			}
			d.holds(path)
		})
	}
	t.Run("another key", func(t *testing.T) {
		f := newFleet(t, notesSchema)
		a := f.device("a", eager(tidemark.WithEncryption(old))...)
		fill(a, 1000)
		a.sync()
		first := manifest(t, f.store()).Current.Generation
		next, nextFile := newKey(t)
		a = f.on(a.path, a.db, eager(tidemark.WithEncryption(keyOf(t, age.Config{Identities: []string{nextFile, oldFile}})))...)
		a.exec(`UPDATE note SET title = 'changed' WHERE id = 5`)
		a.sync()
		path := filepath.Join(f.dir, "restored.db")
		if _, err := tidemark.Restore(t.Context(), path, f.store(), tidemark.RestoreKey(old)); !errors.Is(err, tidemark.ErrWrongKey) {
			t.Errorf("the old key: %v", err)
		}
		if _, err := tidemark.Restore(t.Context(), path, f.store(), tidemark.RestoreKey(next)); err != nil {
			t.Fatalf("the new key alone: %v", err)
		}
		a.holds(path)
		if _, err := tidemark.Verify(t.Context(), f.store(), tidemark.RestoreKey(old), tidemark.RestoreGeneration(first)); err != nil {
			t.Errorf("the old snapshot with the old key: %v", err)
		}
	})
}

// What was deleted before a snapshot does not travel in the free pages of its file.
func TestDeletedRowsDoNotTravel(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	a := f.device("a", eager()...)
	fill(a, 500)
	a.exec(`INSERT INTO note (notebook, title, body) SELECT 1, 'old', replace(hex(zeroblob(2000)), '00', 'forget me ') FROM note LIMIT 50`)
	a.exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	a.exec(`DELETE FROM note WHERE title = 'old'`)
	a.sync()
	a.exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	path := filepath.Join(f.dir, "restored.db")
	if _, err := tidemark.Restore(t.Context(), path, f.store()); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	live, err := os.ReadFile(a.path)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte(strings.Repeat("forget me ", 100)) // more than a page's own slack holds
	if !bytes.Contains(live, secret) {
		t.Fatal("the test is void: SQLite has overwritten the rows itself")
	}
	if bytes.Contains(raw, secret) {
		t.Error("deleted rows are in the restored file")
	}
}
