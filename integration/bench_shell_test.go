package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/age"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
)

// spent is the time of one thing that was done several times, by the clock and by all
// cores together.
type spent struct {
	wall, cores []time.Duration
	begun       time.Time
	before      time.Duration
}

func (s *spent) measure(b *testing.B, fn func() error) {
	b.Helper()
	s.start(b)
	timed(b, fn)
	s.stop(b)
}

// against reports how much of a reference's speed there is.
func (s *spent) against(b *testing.B, ref spent, name string) {
	b.Helper()
	b.ReportMetric(median(ref.wall).Seconds()/median(s.wall).Seconds(), name)
	b.ReportMetric(median(ref.cores).Seconds()/median(s.cores).Seconds(), name+"-cpu")
}

// coresUsed is the processor time of this process and of those it has waited for.
func coresUsed(b *testing.B) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

// shell runs commands in a folder, one after the other, until one fails.
func shell(ctx context.Context, dir string, commands ...string) error {
	for _, command := range commands {
		c := exec.CommandContext(ctx, "sh", "-c", command)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", command, err, out)
		}
	}
	return nil
}

func programs(b *testing.B, names ...string) {
	b.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			b.Fatalf("the program %s is missing: apt-get install sqlite3 zstd age", name)
		}
	}
}

// A whole snapshot beside sqlite3 and zstd -3, and a restore from an S3 server beside a
// download and zstd -d, by turns in one run; encrypted, the shell pipes through age. A
// snapshot has its file checked (quick_check); the shell does the same in
// checked-ratio. A restore checks every row and every index: that comes after
// restore-ratio, and is shown apart.
func BenchmarkSnapshot(b *testing.B) {
	programs(b, "sqlite3", "zstd", "age")
	db := snapshotDatabase(b, snapshotRows)
	for _, what := range []string{"open", "encrypted"} {
		b.Run(what, func(b *testing.B) {
			local, err := persistence.Open(b.Context(), db, persistence.DeviceInfo{})
			if err != nil {
				b.Fatal(err)
			}
			path, err := local.Path(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			var key persistence.Encryption
			pack, unpack := `zstd -q -3 plain.db -o packed`, `zstd -q -d again -o again.db`
			if what == "encrypted" {
				file, recipient, err := age.Generate()
				if err != nil {
					b.Fatal(err)
				}
				if key, err = age.New(age.Config{Identities: []string{file}}); err != nil {
					b.Fatal(err)
				}
				id := filepath.Join(b.TempDir(), "key.txt")
				if err := os.WriteFile(id, []byte(file), 0o600); err != nil {
					b.Fatal(err)
				}
				pack, unpack = `zstd -q -3 -c plain.db | age -r `+recipient+` -o packed`, `age -d -i '`+id+`' again | zstd -q -d -o again.db`
			}
			vacuum := `sqlite3 '` + path + `' "VACUUM INTO 'plain.db'"`
			local.ForSnapshots("", key)
			var raw, rawChecked, made, rawRestore, unpacked spent
			var checks []time.Duration
			var size int64
			for b.Loop() {
				dir := b.TempDir()
				raw.measure(b, func() error { return shell(b.Context(), dir, vacuum, pack) })
				if err := shell(b.Context(), dir, "rm plain.db packed"); err != nil {
					b.Fatal(err)
				}
				s := &snapshots{local: local, dir: dir}
				_ = os.Remove(path + ".tidemark-pages")
				made.measure(b, func() error { _, err := s.take(b.Context()); return err })
				rawChecked.measure(b, func() error { return shell(b.Context(), dir, vacuum, `sqlite3 plain.db 'PRAGMA quick_check'`, pack) })
				bucket := servers.S3(b)
				plainURL := offer(b, bucket, "packed", filepath.Join(dir, "packed"))
				store := publish(b, bucket, s)
				rawRestore.measure(b, func() error {
					if err := download(b.Context(), plainURL, filepath.Join(dir, "again")); err != nil {
						return err
					}
					return shell(b.Context(), dir, unpack)
				})
				opts := []tidemark.RestoreOption{tidemark.RestoreProgress(func(phase tidemark.Phase, done, _ int64) {
					if phase == tidemark.PhaseCheck && done == 0 {
						unpacked.stop(b)
					}
				})}
				if key != nil {
					opts = append(opts, tidemark.RestoreKey(key))
				}
				unpacked.start(b)
				all := timed(b, func() error {
					_, err := tidemark.Restore(b.Context(), filepath.Join(dir, "restored.db"), store, opts...)
					return err
				})
				checks = append(checks, all-unpacked.wall[len(unpacked.wall)-1])
				size = s.current.RawSize
				if err := os.RemoveAll(dir); err != nil {
					b.Fatal(err)
				}
			}
			made.against(b, raw, "snapshot-ratio")
			made.against(b, rawChecked, "checked-ratio")
			unpacked.against(b, rawRestore, "restore-ratio")
			b.ReportMetric(float64(size)/1e6/median(made.wall).Seconds(), "snapshot-MB/s")
			b.ReportMetric(float64(size)/1e6/median(unpacked.wall).Seconds(), "restore-MB/s")
			b.ReportMetric(median(checks).Seconds(), "restore-checks-s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// start and stop measure what ends inside a call.
func (s *spent) start(b *testing.B) {
	b.Helper()
	s.begun, s.before = time.Now(), coresUsed(b)
}

func (s *spent) stop(b *testing.B) {
	b.Helper()
	s.wall, s.cores = append(s.wall, time.Since(s.begun)), append(s.cores, coresUsed(b)-s.before)
}

// offer puts a file into a bucket and returns an address that anybody may read.
func offer(b *testing.B, bucket servers.S3Server, key, path string) string {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := client(bucket).PutObject(b.Context(), &awss3.PutObjectInput{Bucket: &bucket.Bucket, Key: &key, Body: f}); err != nil {
		b.Fatal(err)
	}
	r, err := awss3.NewPresignClient(client(bucket)).PresignGetObject(b.Context(), &awss3.GetObjectInput{Bucket: aws.String(bucket.Bucket), Key: &key})
	if err != nil {
		b.Fatal(err)
	}
	return r.URL
}

func download(ctx context.Context, url, path string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("download: %s", resp.Status)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, resp.Body); err != nil {
		return err
	}
	return f.Close()
}

// publish puts the current snapshot and its manifest into a bucket.
func publish(b *testing.B, bucket servers.S3Server, s *snapshots) tidemark.SnapshotStore {
	b.Helper()
	store, err := openBucket(b.Context(), bucket, 0)
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range s.current.Chain() {
		f, err := os.Open(filepath.Join(s.dir, p.Generation))
		if err != nil {
			b.Fatal(err)
		}
		_, err = store.Put(b.Context(), p.Key, f, messages.Condition{})
		_ = f.Close()
		if err != nil {
			b.Fatal(err)
		}
	}
	putManifest(b, store, messages.Manifest{Format: messages.ManifestFormat, Current: s.current})
	return store
}
