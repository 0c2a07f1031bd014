package integration

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/adapters/s3"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// crashVariable holds the job of a test binary that was started to be killed.
const crashVariable = "TIDEMARK_TEST_CRASH_JOB"

// crashJob is what the child is told.
type crashJob struct {
	Path      string
	Firestore firestore.Config
	Bucket    servers.S3Server
	Hold      string // stand still at this line…
	HoldAt    int    // …when it is said for this time, and wait to be killed; 0 never
}

// What the child says, a line each, before or after it does it.
const (
	sayAttach       = "attach"
	sayAttached     = "attached"
	sayCheck        = "check devices"
	sayRead         = "read a table"
	sayApplied      = "read to the end" // of a query: the rows of its last page are not settled
	sayCommit       = "commit sent"
	sayAcknowledged = "commit acknowledged" // by the server; not noted in the database
	sayRefused      = "commit refused"
	saySnapshot     = "snapshot copied" // in the folder beside the database; not uploaded
	sayStreaming    = "snapshot half uploaded"
	sayStored       = "snapshot stored" // no manifest names it
	sayManifest     = "manifest sent"
	sayReplaced     = "manifest replaced" // not noted in the database
	sayCycle        = "cycle ended"
	sayUnavailable  = "cycle unavailable"
	sayFailed       = "cycle failed: " // and why
)

// crashChild attaches and syncs for ever. It ends when it is killed, when the
// process that started it ends, or with a failure that is none of the network's.
func crashChild(raw string) int {
	c := &child{}
	if err := json.Unmarshal([]byte(raw), &c.job); err != nil {
		c.say(sayFailed + err.Error())
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := c.run(ctx); err != nil && ctx.Err() == nil {
		c.say(sayFailed + strings.ReplaceAll(err.Error(), "\n", " / "))
		return 1
	}
	return 0
}

type child struct {
	job  crashJob
	mu   sync.Mutex
	said int // how often the line to hold at was said
}

// say writes a line and, when it is the one to hold at, never returns; nor does
// then any other goroutine that has something to say.
func (c *child) say(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = io.WriteString(os.Stdout, line+"\n")
	if c.job.HoldAt > 0 && line == c.job.Hold {
		if c.said++; c.said == c.job.HoldAt {
			select {}
		}
	}
}

func (c *child) run(ctx context.Context) error {
	raw, err := sql.Open("sqlite", deviceDSN(c.job.Path))
	if err != nil {
		return err
	}
	defer raw.Close()
	db := bun.NewDB(raw, sqlitedialect.New())
	c.say(sayAttach)
	if _, err := tidemark.Attach(ctx, db); err != nil {
		return err
	}
	c.say(sayAttached)
	remote, err := firestore.Open(ctx, c.job.Firestore)
	if err != nil {
		return err
	}
	defer remote.Close()
	store, err := openBucket(ctx, c.job.Bucket, 0)
	if err != nil {
		return err
	}
	p, err := tidemark.New(ctx, db, sayingRemote{remote, c}, sayingStore{store, c}, crashBackups, tidemark.WithTakeover(0))
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		switch _, err := p.Sync(ctx); {
		case err == nil:
			c.say(sayCycle)
		case errors.Is(err, tidemark.ErrUnavailable):
			c.say(sayUnavailable)
		default:
			return err
		}
	}
	return nil
}

// crashBackups makes snapshots often enough to be killed in.
var crashBackups = tidemark.WithBackup(5, time.Hour, 2)

// openBucket opens a store that bears silence for so long; 0 for as long as usual.
func openBucket(ctx context.Context, b servers.S3Server, silence time.Duration) (*s3.Store, error) {
	return s3.Open(ctx, s3.Config{Bucket: b.Bucket, Prefix: "alice", Region: b.Region, Endpoint: b.Endpoint, Timeout: silence},
		config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(b.AccessKey, b.SecretKey, "")))
}

type sayingRemote struct {
	tidemark.Remote
	c *child
}

func (r sayingRemote) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	r.c.say(sayCheck)
	return r.Remote.Devices(ctx, since)
}

func (r sayingRemote) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	r.c.say(sayRead)
	n, err := r.Remote.Read(ctx, q, yield)
	r.c.say(sayApplied)
	return n, err
}

func (r sayingRemote) Commit(ctx context.Context, m messages.Commit) (messages.Committed, error) {
	r.c.say(sayCommit)
	done, err := r.Remote.Commit(ctx, m)
	if err == nil {
		r.c.say(sayAcknowledged)
	} else {
		r.c.say(sayRefused)
	}
	return done, err
}

type sayingStore struct {
	tidemark.SnapshotStore
	c *child
}

func (s sayingStore) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	before, after := saySnapshot, sayStored
	switch {
	case key == messages.ManifestKey:
		before, after = sayManifest, sayReplaced
	case strings.HasPrefix(key, messages.SnapshotPrefix):
		body = &halfway{r: body, say: func() { s.c.say(sayStreaming) }}
	default: // the store is being tried
		return s.SnapshotStore.Put(ctx, key, body, cond)
	}
	s.c.say(before)
	o, err := s.SnapshotStore.Put(ctx, key, body, cond)
	if err == nil {
		s.c.say(after)
	}
	return o, err
}

// halfway speaks once, when more than a part of an upload was read: the first part
// is then on the server.
type halfway struct {
	r    io.Reader
	n    int
	say  func()
	said bool
}

func (h *halfway) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if h.n += n; h.n > 8<<20 && !h.said {
		h.said = true
		h.say()
	}
	return n, err
}

// deviceDSN is how every program of these tests opens a database.
func deviceDSN(path string) string {
	escaped := strings.NewReplacer("%", "%25", "?", "%3F", "#", "%23").Replace(path)
	return fmt.Sprintf("file:%s?_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)", escaped)
}
