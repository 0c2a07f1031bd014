package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/klauspost/compress/zstd"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/s3"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// onS3 puts a fleet's snapshots on a real S3 server.
func onS3(t *testing.T, f *fleet, prefix string) {
	t.Helper()
	bucket := servers.S3(t)
	f.store = func() tidemark.SnapshotStore {
		s, err := s3.Open(t.Context(), s3.Config{Bucket: bucket.Bucket, Prefix: prefix, Region: bucket.Region, Endpoint: bucket.Endpoint},
			config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(bucket.AccessKey, bucket.SecretKey, "")))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// backedUp is a store with a whole snapshot, one more whole one, and what changed since
// in two steps; and a file that a restore would replace.
type backedUp struct {
	*fleet
	a    *device
	key  tidemark.Encryption // nil: not encrypted
	path string
	was  map[string][]string // the rows in path
	good messages.Manifest
	all  map[string][]byte
}

func newBackedUp(t *testing.T, f *fleet, key tidemark.Encryption) *backedUp {
	t.Helper()
	s := &backedUp{fleet: f, key: key, path: filepath.Join(f.dir, "mine.db"), all: map[string][]byte{}}
	opts := eager()
	if key != nil {
		opts = append(opts, tidemark.WithEncryption(key))
	}
	s.a = f.device("a", opts...)
	fill(s.a, 1000)
	s.a.sync()
	if err := os.Remove(s.a.path + ".tidemark-pages"); err != nil {
		t.Fatal(err)
	}
	rnd := newRand(5)
	for range 3 {
		s.a.edits(rnd, 2)
		s.a.sync()
	}
	s.good = manifest(t, f.store())
	if n := len(s.good.Current.Parts); n != 2 {
		t.Fatalf("the snapshot has %d parts", n)
	}
	for _, o := range s.good.Current.Chain() {
		s.all[o.Key] = get(t, f.store(), o.Key)
	}
	if err := s.restore(t.Context(), tidemark.RestoreGeneration(s.good.Older[2].Generation)); err != nil {
		t.Fatal(err)
	}
	db := openDB(t, s.path)
	s.was = contents(t.Context(), t, db.DB)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *backedUp) restore(ctx context.Context, opts ...tidemark.RestoreOption) error {
	if s.key != nil {
		opts = append(opts, tidemark.RestoreKey(s.key))
	}
	_, err := tidemark.Restore(ctx, s.path, s.store(), opts...)
	return err
}

// untouched demands that the file at the destination is what it was, and that nothing
// lies beside it but what the next restore goes on with.
func (s *backedUp) untouched(t *testing.T) {
	t.Helper()
	db := openDB(t, s.path)
	defer db.Close()
	for table, rows := range contents(t.Context(), t, db.DB) {
		if !slices.Equal(rows, s.was[table]) {
			t.Fatalf("table %s of the destination has changed", table)
		}
	}
	if got := strings1(t.Context(), t, db.DB, `PRAGMA integrity_check`); got[0] != "ok" {
		t.Fatalf("the destination: %v", got)
	}
	left, err := filepath.Glob(s.path + ".tidemark-tmp*")
	if err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
}

// putBack makes the destination again what it was.
func (s *backedUp) putBack(t *testing.T) {
	t.Helper()
	s.mend(t)
	if err := s.restore(t.Context(), tidemark.RestoreGeneration(s.good.Older[2].Generation)); err != nil {
		t.Fatal(err)
	}
}

// mend puts everything in the store back.
func (s *backedUp) mend(t *testing.T) {
	t.Helper()
	for key, body := range s.all {
		put(t, s.store(), key, body)
	}
	putManifest(t, s.store(), s.good)
}

// forged is the manifest of somebody who may write to the bucket and changes an object:
// sizes and checksums are right again.
func (s *backedUp) forged(i int, body []byte) messages.Manifest {
	m := s.good
	sum := sha256.Sum256(body)
	fix := func(p *messages.Part) { p.Size, p.SHA256 = int64(len(body)), hex.EncodeToString(sum[:]) }
	if i == len(m.Current.Parts) {
		m.Current.Size, m.Current.SHA256 = int64(len(body)), hex.EncodeToString(sum[:])
		return m
	}
	m.Current.Parts = slices.Clone(m.Current.Parts)
	fix(&m.Current.Parts[i])
	return m
}

// A bit that changed or an end that is missing, in any object of a snapshot and any of
// its parts, is noticed, also when the manifest was changed to fit; the file at the
// destination stays, and the older snapshot restores.
func TestDamagedObjects(t *testing.T) {
	key, _ := newKey(t)
	for name, key := range map[string]tidemark.Encryption{"open": nil, "encrypted": key} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, notesSchema)
			onS3(t, f, name)
			s := newBackedUp(t, f, key)
			check := func(what string, want error) {
				t.Helper()
				if err := s.restore(t.Context()); !errors.Is(err, want) {
					t.Errorf("%s: %v", what, err)
				}
				s.untouched(t)
			}
			for i, o := range s.good.Current.Chain() {
				good := s.all[o.Key]
				// age: the version's line, the stanza, its body, the MAC, the payload; zstd: magic
				// number, frame header, our header, blocks, the checksum.
				for _, at := range []int{0, 5, 30, 60, 110, 150, 190, 210, 250, 400, len(good) / 2, len(good) - 20, len(good) - 2} {
					bad := slices.Clone(good)
					bad[at] ^= 4
					put(t, s.store(), o.Key, bad)
					check(fmt.Sprintf("object %d, byte %d", i, at), tidemark.ErrDamaged)
					putManifest(t, s.store(), s.forged(i, bad))
					err := s.restore(t.Context())
					if err == nil && key == nil { // a bit that means nothing, such as the window's
						s.a.holds(s.path)
						s.putBack(t)
					} else if !errors.Is(err, tidemark.ErrDamaged) && !errors.Is(err, tidemark.ErrWrongKey) && !errors.Is(err, tidemark.ErrNotEncrypted) && !errors.Is(err, tidemark.ErrNoKey) {
						t.Errorf("object %d, byte %d, and the manifest says so: %v", i, at, err)
					}
					s.untouched(t)
					putManifest(t, s.store(), s.good)
				}
				for _, n := range []int{0, 1, len(good) / 2, len(good) - 1} {
					put(t, s.store(), o.Key, good[:n])
					check(fmt.Sprintf("object %d cut to %d bytes", i, n), tidemark.ErrDamaged)
					if n > 0 {
						putManifest(t, s.store(), s.forged(i, good[:n]))
						if err := s.restore(t.Context()); err == nil {
							t.Errorf("object %d cut to %d bytes, and the manifest says so: it restores", i, n)
						}
						s.untouched(t)
						putManifest(t, s.store(), s.good)
					}
				}
				put(t, s.store(), o.Key, append(slices.Clone(good), 0))
				check(fmt.Sprintf("object %d with a byte more", i), tidemark.ErrDamaged)
				if err := s.store().Delete(t.Context(), o.Key); err != nil {
					t.Fatal(err)
				}
				check(fmt.Sprintf("object %d is gone", i), tidemark.ErrNotFound)
				put(t, s.store(), o.Key, good)
			}
			put(t, s.store(), s.good.Current.Key, []byte("garbage"))
			if err := s.restore(t.Context(), tidemark.RestoreGeneration(s.good.Older[0].Generation)); err != nil {
				t.Errorf("the older snapshot: %v", err)
			}
			s.mend(t)
			if err := s.restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.a.holds(s.path)
		})
	}
}

// What somebody does who may write to the bucket, and has no key but the same program.
func TestForgedManifests(t *testing.T) {
	key, _ := newKey(t)
	for name, c := range map[string]struct {
		change func(t *testing.T, s *backedUp) messages.Manifest
		want   error
	}{
		"rows that were not seen": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Seen = messages.Vector{}
			for d, n := range s.good.Current.Seen {
				m.Current.Seen[d] = n + 100
			}
			return m
		}, tidemark.ErrDamaged},
		"another scope": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Scope = "somebody else's"
			return m
		}, tidemark.ErrOtherScope},
		"an older snapshot as the newest": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Generation, m.Current.Seen = s.good.Older[1].Generation, s.good.Current.Seen
			return m
		}, tidemark.ErrDamaged},
		"a change left out": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Parts = m.Current.Parts[:1]
			return m
		}, tidemark.ErrDamaged},
		"changes in another order": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			p := m.Current.Parts
			m.Current.Parts = []messages.Part{p[1], p[0]}
			return m
		}, tidemark.ErrDamaged},
		"a change taken twice": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Parts = append(slices.Clone(m.Current.Parts), m.Current.Parts[1])
			return m
		}, tidemark.ErrDamaged},
		"the other whole one below": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Parts = append([]messages.Part{m.Older[2].Chain()[0]}, m.Current.Parts[1:]...)
			return m
		}, tidemark.ErrDamaged},
		"no word of encryption": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Encrypted = false
			return m
		}, tidemark.ErrNotEncrypted},
		"the old format": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current = m.Older[2]
			m.Current.Format, m.Current.Encrypted, m.Current.RawSHA256 = 1, false, ""
			return m
		}, tidemark.ErrNotEncrypted},
		"an object of one's own": {func(t *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			body := packed(t, []byte("SQLite format 3\x00 and whatever somebody likes"))
			put(t, s.store(), messages.SnapshotPrefix+"own", body)
			sum := sha256.Sum256(body)
			m.Current.Parts = nil
			m.Current.Key, m.Current.Size, m.Current.SHA256 = messages.SnapshotPrefix+"own", int64(len(body)), hex.EncodeToString(sum[:])
			return m
		}, tidemark.ErrNotEncrypted},
		"outside of its folder": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Key = "../bob/snapshots/x"
			return m
		}, tidemark.ErrRejected},
		"a part outside of its folder": {func(_ *testing.T, s *backedUp) messages.Manifest {
			m := s.good
			m.Current.Parts = slices.Clone(m.Current.Parts)
			m.Current.Parts[0].Key = messages.SnapshotPrefix + "../../bob"
			return m
		}, tidemark.ErrRejected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, notesSchema)
			onS3(t, f, "forged")
			s := newBackedUp(t, f, key)
			putManifest(t, s.store(), c.change(t, s))
			if err := s.restore(t.Context()); !errors.Is(err, c.want) {
				t.Errorf("restore: %v", err)
			}
			s.untouched(t)
			s.mend(t)
			if err := s.restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.a.holds(s.path)
		})
	}
}

// named is a remote with a scope of its own.
type named struct {
	tidemark.Remote
	scope string
}

func (n named) Scope() string { return n.scope }

// Bob's snapshots in Alice's place are noticed by a restore that knows whose it wants,
// and by the first sync of one that does not; also with one key for both.
func TestSnapshotsOfSomebodyElse(t *testing.T) {
	key, _ := newKey(t)
	for name, key := range map[string]tidemark.Encryption{"open": nil, "encrypted": key} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			of := func(scope string) *backedUp {
				f := newFleet(t, notesSchema)
				onS3(t, f, name+"/"+scope)
				f.remote = func() tidemark.Remote { return named{f.server.Remote(), scope} }
				return newBackedUp(t, f, key)
			}
			alice, bob := of("alice"), of("bob")
			for k, body := range bob.all { // all of it
				put(t, alice.store(), k, body)
			}
			putManifest(t, alice.store(), bob.good)
			if err := alice.restore(t.Context(), tidemark.RestoreScope("alice")); !errors.Is(err, tidemark.ErrOtherScope) {
				t.Errorf("a restore that knows whose: %v", err)
			}
			alice.untouched(t)
			m := bob.good // and the manifest says it is hers
			m.Current.Scope = "alice"
			putManifest(t, alice.store(), m)
			if err := alice.restore(t.Context()); !errors.Is(err, tidemark.ErrRolledBack) {
				t.Errorf("over a file that knows her snapshots: %v", err)
			}
			named := tidemark.RestoreGeneration(m.Current.Generation)
			if err := alice.restore(t.Context(), tidemark.RestoreScope("alice"), named); !errors.Is(err, tidemark.ErrDamaged) {
				t.Errorf("a manifest with her name: %v", err)
			}
			alice.untouched(t)
			putManifest(t, alice.store(), bob.good)
			if err := alice.restore(t.Context(), named); err != nil {
				t.Fatal(err)
			}
			fooled := alice.on(alice.path, openDB(t, alice.path))
			if _, err := fooled.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrOtherScope) {
				t.Errorf("the first sync of one that does not: %v", err)
			}
		})
	}
}

// With another key, or none, nobody restores, and what is there stays.
func TestSnapshotsOfAnotherKey(t *testing.T) {
	t.Parallel()
	key, _ := newKey(t)
	other, _ := newKey(t)
	f := newFleet(t, notesSchema)
	onS3(t, f, "keys")
	s := newBackedUp(t, f, key)
	for want, k := range map[error]tidemark.Encryption{tidemark.ErrWrongKey: other, tidemark.ErrNoKey: nil} {
		s.key = k
		if err := s.restore(t.Context()); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		s.untouched(t)
	}
	s.key = key
	if err := s.restore(t.Context()); err != nil {
		t.Error(err)
	}
}

func packed(t *testing.T, text []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A small object that would fill the disk, or the memory, does not get to it.
func TestBombs(t *testing.T) {
	t.Parallel()
	f := newFleet(t, notesSchema)
	onS3(t, f, "bombs")
	s := newBackedUp(t, f, nil)
	header, err := json.Marshal(func() messages.Header {
		c := s.good.Current
		c.Parts, c.RawSize = nil, 4096
		return c.Header(4096)
	}())
	if err != nil {
		t.Fatal(err)
	}
	head := append([]byte("tidemark snapshot\n"), 0, 0, byte(len(header)>>8), byte(len(header)))
	for name, body := range map[string][]byte{
		"much more than it says": packed(t, slices.Concat(head, header, make([]byte, 20<<20))),
		"a window of 128 MiB":    packed(t, slices.Concat(head, header, make([]byte, 140<<20)), zstd.WithWindowSize(128<<20)),
		"an endless header":      packed(t, append([]byte("tidemark snapshot\n\xff\xff\xff\xff"), make([]byte, 20<<20)...)),
		"a long header":          packed(t, append([]byte("tidemark snapshot\n\x00\xff\xff\xff"), make([]byte, 20<<20)...)),
		"the old format":         packed(t, make([]byte, 20<<20)),
	} {
		m := s.good
		sum := sha256.Sum256(body)
		m.Current.Parts, m.Current.RawSize = nil, 4096
		m.Current.Size, m.Current.SHA256 = int64(len(body)), hex.EncodeToString(sum[:])
		if name == "the old format" {
			m.Current.Format, m.Current.RawSHA256 = 1, ""
		}
		put(t, s.store(), m.Current.Key, body)
		putManifest(t, s.store(), m)
		var most int64
		err := s.restore(t.Context(), tidemark.RestoreProgress(func(p tidemark.Phase, done, _ int64) {
			if p == tidemark.PhaseUnpack {
				most = max(most, done)
			}
		}))
		if !errors.Is(err, tidemark.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if most > 4096 {
			t.Errorf("%s: %d bytes were written of a file of 4096", name, most)
		}
		s.untouched(t)
	}
}

// Somebody puts an older manifest back, or empties the store: the device that knows a
// newer one says so, and puts a snapshot there that is whole again.
func TestAnOlderManifestIsNoticed(t *testing.T) {
	t.Parallel()
	for name, rollBack := range map[string]func(t *testing.T, s *backedUp, older []byte){
		"is older": func(t *testing.T, s *backedUp, older []byte) { put(t, s.store(), messages.ManifestKey, older) },
		"no manifest": func(t *testing.T, s *backedUp, _ []byte) {
			if err := s.store().Delete(t.Context(), messages.ManifestKey); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, notesSchema)
			onS3(t, f, "rollback")
			s := newBackedUp(t, f, nil)
			older := get(t, s.store(), messages.ManifestKey)
			s.a.exec(`UPDATE note SET title = 'newer' WHERE id % 100 = 1`)
			s.a.sync()
			rollBack(t, s, older)
			if name == "is older" {
				want(t, s.a.doctor(s.remote(), s.store()), "older than one that this device knows")
				if _, err := tidemark.Restore(t.Context(), s.a.path, s.store()); !errors.Is(err, tidemark.ErrRolledBack) {
					t.Errorf("a restore over a file that knows better: %v", err)
				}
			}
			s.a.exec(`UPDATE note SET title = 'newest' WHERE id % 100 = 1`)
			r := s.a.sync()
			if r.Snapshot == nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], name) {
				t.Errorf("snapshot %v, warnings %q", r.Snapshot, r.Warnings)
			}
			if n := len(manifest(t, s.store()).Current.Parts); n != 0 {
				t.Errorf("the new snapshot builds on %d objects that may be gone", n)
			}
			if err := s.restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.a.holds(s.path)
			s.a.exec(`UPDATE note SET title = 'and on' WHERE id % 100 = 1`)
			if r := s.a.sync(); len(r.Warnings) != 0 {
				t.Errorf("it warns for ever: %q", r.Warnings)
			}
		})
	}
}

// A database whose file is damaged is not backed up: the snapshot that is there is
// worth more.
func TestADamagedDatabaseIsNotBackedUp(t *testing.T) {
	t.Parallel()
	s := newBackedUp(t, newFleet(t, notesSchema), nil)
	var page, size int64
	if err := s.a.db.DB.QueryRow(`SELECT max(pageno), max(pgsize) FROM dbstat WHERE name = 'note' AND pagetype = 'leaf'`).Scan(&page, &size); err != nil {
		t.Fatal(err)
	}
	s.a.exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	if err := s.a.db.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(s.a.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte{0x55, 0x55, 0x55}, (page-1)*size); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	before := get(t, s.store(), messages.ManifestKey)
	broken := s.on(s.a.path, openDB(t, s.a.path), eager()...)
	broken.exec(`INSERT INTO tag (name) VALUES ('new')`)
	if _, err := broken.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrNotDatabase) {
		t.Errorf("sync: %v", err)
	}
	if !bytes.Equal(get(t, s.store(), messages.ManifestKey), before) {
		t.Error("the manifest names another snapshot")
	}
	if err := s.restore(t.Context()); err != nil {
		t.Errorf("the one that was there: %v", err)
	}
}

// A manifest of a later version is refused with the remedy, by restore and by backup.
func TestALaterFormat(t *testing.T) {
	t.Parallel()
	s := newBackedUp(t, newFleet(t, notesSchema), nil)
	raw := bytes.Replace(get(t, s.store(), messages.ManifestKey), []byte(`"format": 2`), []byte(`"format": 3`), 1)
	put(t, s.store(), messages.ManifestKey, raw)
	if err := s.restore(t.Context()); !errors.Is(err, tidemark.ErrRejected) || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("restore: %v", err)
	}
	s.untouched(t)
	s.a.exec(`UPDATE note SET title = 'newer' WHERE id = 1`)
	if _, err := s.a.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrRejected) || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("sync: %v", err)
	}
}

// A snapshot of the first format, as released programs made them, still restores; and
// the next one is of the second.
func TestTheFirstFormatStillRestores(t *testing.T) {
	t.Parallel()
	s := newBackedUp(t, newFleet(t, notesSchema), nil)
	plain := filepath.Join(s.dir, "plain.db")
	if _, err := tidemark.Restore(t.Context(), plain, s.store()); err != nil {
		t.Fatal(err)
	}
	db := openDB(t, plain)
	if _, err := db.DB.Exec(`UPDATE tidemark_state SET installationId = ''; PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	body := packed(t, file)
	sum := sha256.Sum256(body)
	c := s.good.Current
	old := messages.Manifest{Format: 1, Current: messages.Snapshot{
		Generation: "20250101T000000.000Z-00000000", Key: messages.SnapshotPrefix + "old.db.zst", Size: int64(len(body)), RawSize: int64(len(file)),
		SHA256: hex.EncodeToString(sum[:]), Seen: c.Seen, DownloadedTill: c.DownloadedTill, Device: c.Device, MadeOn: c.MadeOn, Bookkeeping: c.Bookkeeping,
	}}
	put(t, s.store(), old.Current.Key, body)
	putManifest(t, s.store(), old)
	if err := s.restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.a.holds(s.path)
	for _, title := range []string{"newer", "newest"} { // the first sync learns of the snapshot
		s.a.exec(`UPDATE note SET title = ? WHERE id = 1`, title)
		s.a.sync()
	}
	m := manifest(t, s.store())
	if m.Format != 2 || m.Current.Format != 2 || len(m.Older) != 1 || m.Older[0].Format > 1 {
		t.Errorf("the next manifest: %+v", m)
	}
	if _, err := tidemark.Verify(t.Context(), s.store(), tidemark.RestoreGeneration(old.Current.Generation)); err != nil {
		t.Errorf("the old one beside the new one: %v", err)
	}
}
