package integration

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

var (
	crashKills = flag.Int("kills", 20, "how often TestCrashes kills a syncing process")
	crashSeed  = flag.Uint64("crashseed", 0, "the seed of TestCrashes; 0 draws one")
)

// crashes is one run of TestCrashes.
type crashes struct {
	t      *testing.T
	rnd    *rand.Rand
	job    crashJob
	phases map[string]int // kills by the last line that the child said
	cycles int            // that came to their end in a child
	lost   int            // cycles that the server made unavailable
}

// TestCrashes kills a process that syncs the Chinook database, again and again and
// at any moment, while another program writes the same file and a second device
// edits and syncs. Then all sync in peace, and nothing is lost or doubled.
func TestCrashes(t *testing.T) {
	t.Parallel()
	path := chinook(t, "a")
	c := &crashes{t: t, phases: map[string]int{}}
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay the same plan with: go test ./integration -run TestCrashes -kills %d -crashseed %d", *crashKills, seed)
	c.rnd = rand.New(rand.NewPCG(seed, 1))
	c.job = crashJob{
		Path:      path,
		Firestore: firestore.Config{Emulator: servers.Firestore(t), Project: servers.Project(t), Scope: "users/alice"},
		Bucket:    servers.S3(t),
	}
	f := newFleet(t, "")
	f.server = nil
	f.remote = func() tidemark.Remote { return openFirestore(t, c.job.Firestore) }
	f.store = func() tidemark.SnapshotStore {
		s, err := openBucket(t.Context(), c.job.Bucket, 0)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}

	db := openDB(t, path)
	addScans(t, db.DB)
	original := contentsOfColumns(t, db.DB)
	f.schema = schemaOnly(t, db.DB)
	b := f.device("b", tidemark.WithBackup(1<<40, time.Hour, 2)) // A is Big Brother: its snapshots are killed

	// A program that writes A's file, and B, which edits and syncs.
	wa, wb := newWriter("a", db.DB, seed), newWriter("b", openDB(t, b.path).DB, seed)
	started := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var errA, errB, errSync error
	wg.Go(func() { errA = wa.run(ctx, 20*time.Millisecond) })
	wg.Go(func() { errB = wb.run(ctx, 50*time.Millisecond) })
	wg.Go(func() { errSync = syncUntil(ctx, b, 200*time.Millisecond) })
	for i := range *crashKills {
		c.live(c.plan(i))
		if t.Failed() {
			break
		}
	}
	stop()
	wg.Wait()
	if err := errors.Join(errA, errB, errSync); err != nil {
		t.Fatal(err)
	}
	took := time.Since(started)

	// Peace.
	if _, err := tidemark.Attach(t.Context(), db); err != nil { // if none lived to do it
		t.Fatal(err)
	}
	a := f.on(path, db, crashBackups, tidemark.WithTakeover(0))
	for range 2 {
		a.sync()
		b.sync()
	}
	a.sync()
	fresh := f.device("fresh")
	fresh.sync()
	restored := f.restore("restored")
	restored.sync()
	same(t, a, b, fresh, restored)
	for _, d := range []*device{a, b, fresh, restored} {
		wa.check(t, d)
		wb.check(t, d)
	}
	kept(t, original, contentsOfColumns(t, db.DB))
	oneDocumentARow(t, f.remote(), a)
	c.nothingLeft(f.store())

	var phases strings.Builder
	for _, p := range slices.Sorted(maps.Keys(c.phases)) {
		fmt.Fprintf(&phases, "\n%5d  after %q", c.phases[p], p)
	}
	t.Logf("%d kills in %.0f s, %d cycles ended, %d found the server unavailable; rows changed meanwhile: %d by the program beside it, %d on the second device. Killed%s",
		*crashKills, took.Seconds(), c.cycles, c.lost, wa.changes, wb.changes, phases.String())
}

func openFirestore(t *testing.T, cfg firestore.Config) *firestore.Remote {
	t.Helper()
	r, err := firestore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// addScans makes the snapshot larger than one part of an upload: noise does not
// compress.
func addScans(t *testing.T, db *sql.DB) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), `CREATE TABLE Scan (ScanId INTEGER PRIMARY KEY, AlbumId INTEGER REFERENCES Album (AlbumId), Image BLOB)`); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		image := make([]byte, 900<<10)
		rnd := rand.NewChaCha8([32]byte{byte(i)})
		_, _ = rnd.Read(image) // never fails
		if _, err := db.ExecContext(t.Context(), `INSERT INTO Scan (AlbumId, Image) VALUES (?, ?)`, i+1, image); err != nil {
			t.Fatal(err)
		}
	}
}

// syncUntil syncs one device until ctx ends.
func syncUntil(ctx context.Context, d *device, pace time.Duration) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		// A cycle that has begun may end: stopping is not what is tested here.
		if _, err := d.p.Sync(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, tidemark.ErrUnavailable) {
			return fmt.Errorf("sync beside the crashes: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// plan is when to kill: so long after the child was started or, when line is set,
// so long after it has said that line for the nth time. With hold the child stands
// still there.
type plan struct {
	line  string
	nth   int
	after time.Duration
	hold  bool
}

// Lines worth being killed at, those twice that matter most. A snapshot is made only
// once everything is up.
var (
	uploads = []string{sayAttached, sayCheck, sayRead, sayApplied, sayCommit, sayCommit, sayAcknowledged, sayAcknowledged}
	backups = []string{saySnapshot, sayStored, sayStored, sayManifest, sayReplaced, sayReplaced}
)

func (c *crashes) plan(i int) plan {
	// Squared, so that most are soon and some late.
	soon := func(most time.Duration) time.Duration {
		x := c.rnd.Float64()
		return time.Duration(x * x * float64(most))
	}
	early, first := max(2, *crashKills/40), max(5, *crashKills/20)
	var p plan
	switch x := c.rnd.IntN(10); {
	case i < early: // it is not attached
		return plan{line: sayAttach, nth: 1, after: soon(500 * time.Millisecond)}
	case i == first: // the first snapshot is the only one that goes up in parts
		return plan{line: sayStreaming, nth: 1, hold: true}
	case x < 3:
		return plan{after: soon(2 * time.Second)}
	case x < 6 || i < first: // its first upload has not come to its end
		p = plan{line: uploads[c.rnd.IntN(len(uploads))], nth: 1 + c.rnd.IntN(2)}
	default:
		p = plan{line: backups[c.rnd.IntN(len(backups))], nth: 1}
	}
	if p.hold = c.rnd.IntN(2) == 0; !p.hold {
		p.after = soon(30 * time.Millisecond)
	}
	return p
}

// patient is how long a child may stand still before it counts as hanging.
const patient = 4 * time.Minute

// live starts a child, kills it as planned, and notes where it was.
func (c *crashes) live(p plan) {
	c.t.Helper()
	job := c.job
	if p.hold {
		job.Hold, job.HoldAt = p.line, p.nth
	}
	raw, err := json.Marshal(job)
	if err != nil {
		c.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), crashVariable+"="+string(raw))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	in, err := cmd.StdinPipe() // it ends when this process does
	if err != nil {
		c.t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()

	last, said, cycles, killed := "start", 0, 0, false
	idle := time.NewTimer(patient)
	defer idle.Stop()
	var due <-chan time.Time
	if p.line == "" {
		due = time.After(p.after)
	}
	kill := func() {
		due, killed = nil, true
		_ = cmd.Process.Kill() // an error means that it has ended: then there is a line about it
	}
	for open := true; open; {
		select {
		case line, ok := <-lines:
			if open = ok; !ok {
				break
			}
			last = line
			idle.Reset(patient)
			switch {
			case strings.HasPrefix(line, sayFailed):
				c.t.Errorf("the child failed: %s", line)
			case line == sayCycle:
				c.cycles++
				cycles++
			case line == sayUnavailable:
				c.lost++
			}
			if line == p.line {
				if said++; said == p.nth {
					due = time.After(p.after)
				}
			}
			if cycles == 2 && !killed { // what it waits for does not come
				kill()
			}
		case <-due:
			kill()
		case <-idle.C:
			c.t.Errorf("the child says nothing for %v after %q", patient, last)
			kill()
		}
	}
	err = cmd.Wait()
	if !killed {
		c.t.Errorf("the child ended by itself after %q: %v\n%s", last, err, stderr.String())
		return
	}
	c.phases[last]++
}

// kept fails unless every row that was there at the start still is, but for what
// the writers edit.
func kept(t *testing.T, original, now map[string][]string) {
	t.Helper()
	for table, rows := range original {
		if table == "Employee" {
			continue
		}
		have := map[string]bool{}
		for _, r := range now[table] {
			have[r] = true
		}
		missing := 0
		for _, r := range rows {
			if !have[r] {
				missing++
			}
		}
		if missing > 0 {
			t.Errorf("table %s lost or changed %d of %d rows that nobody touched", table, missing, len(rows))
		}
	}
}

// oneDocumentARow compares the server's documents with the rows.
func oneDocumentARow(t *testing.T, r tidemark.Remote, d *device) {
	t.Helper()
	list, err := r.Devices(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for table := range contentsOfColumns(t, d.db.DB) {
		rows := map[string]bool{}
		for _, id := range strings1(t.Context(), t, d.db.DB, `SELECT clientId FROM "`+table+`"`) {
			rows[id] = true
		}
		n := 0
		_, err := r.Read(t.Context(), messages.Query{Table: table, ReadTime: list.ReadTime}, func(doc messages.Document) error {
			if doc.Deleted && rows[doc.ID] {
				t.Errorf("%s has the row of a document that is deleted: %s", table, doc.ID)
			}
			if !doc.Deleted {
				n++
				if !rows[doc.ID] {
					t.Errorf("%s has a document without a row: %s %v", table, doc.ID, doc.Fields)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n != len(rows) {
			t.Errorf("%s has %d rows and %d documents", table, len(rows), n)
		}
	}
}

// nothingLeft looks for what the dead left behind, beside the database and in the
// bucket.
func (c *crashes) nothingLeft(store tidemark.SnapshotStore) {
	c.t.Helper()
	ctx := c.t.Context()
	beside, err := filepath.Glob(filepath.Join(filepath.Dir(c.job.Path), "*"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range beside {
		if rest := strings.TrimPrefix(f, c.job.Path); !slices.Contains([]string{"", "-wal", "-shm", ".tidemark-lock", ".tidemark-pages"}, rest) {
			c.t.Errorf("left beside the database: %s", filepath.Base(f))
		}
	}
	m, _, err := stages.ReadManifest(ctx, store, &messages.StoreUse{})
	if err != nil {
		c.t.Fatal(err)
	}
	named := map[string]bool{}
	for _, s := range m.Snapshots() {
		for _, key := range s.Objects() {
			named[key] = true
		}
	}
	for _, r := range m.Retired {
		named[r.Key] = true
	}
	list, err := store.List(ctx, messages.SnapshotPrefix)
	if err != nil {
		c.t.Fatal(err)
	}
	orphans := 0
	for _, o := range list {
		if !named[o.Key] {
			orphans++
		}
		delete(named, o.Key)
	}
	for key := range named {
		c.t.Errorf("the manifest names %s, which is not there", key)
	}
	b := c.job.Bucket
	client := awss3.New(awss3.Options{
		BaseEndpoint: aws.String(b.Endpoint), Region: b.Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(b.AccessKey, b.SecretKey, ""),
	})
	uploads, err := client.ListMultipartUploads(ctx, &awss3.ListMultipartUploadsInput{Bucket: &b.Bucket})
	if err != nil {
		c.t.Fatal(err)
	}
	if n := orphans + len(uploads.Uploads); n > *crashKills {
		c.t.Errorf("%d kills left %d objects and uploads behind", *crashKills, n)
	}
	c.t.Logf("in the bucket: %d snapshots' objects; %d of them orphans, which go with the sweep once a day, and %d unfinished uploads, which go by the bucket's lifecycle rule",
		len(list), orphans, len(uploads.Uploads))
}
