package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/integration/servers"
)

const networkSchema = `CREATE TABLE album (id INTEGER PRIMARY KEY, title TEXT, n INTEGER NOT NULL DEFAULT 0);
CREATE TABLE photo (id INTEGER PRIMARY KEY, album INTEGER NOT NULL REFERENCES album(id), note TEXT, image BLOB);`

// silence is how long a hasty device bears none of a server's answer.
const silence = time.Second

// network is two devices behind bad lines to both servers.
type network struct {
	t      *testing.T
	f      *fleet
	lines  map[string]*toxiproxy.Proxy // by the server they lead to
	direct tidemark.Remote             // the server itself
	a, b   *device                     // patient: a busy machine is no silence to them
	hasty  []*device                   // the same databases
	n      int
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	cfg := firestore.Config{Emulator: servers.Firestore(t), Project: servers.Project(t), Scope: "users/alice"}
	bucket := servers.S3(t)
	n := &network{t: t, f: newFleet(t, networkSchema), direct: openFirestore(t, cfg)}
	host := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	line := func(name, to string) *toxiproxy.Proxy {
		p := toxiproxy.NewProxy(host, name, "127.0.0.1:0", to)
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Stop)
		return p
	}
	n.lines = map[string]*toxiproxy.Proxy{
		"firestore": line("firestore", cfg.Emulator),
		"s3":        line("s3", strings.TrimPrefix(bucket.Endpoint, "http://")),
	}
	cfg.Emulator = n.lines["firestore"].Listen
	bucket.Endpoint = "http://" + n.lines["s3"].Listen
	n.f.server = nil
	var timeout time.Duration
	n.f.remote = func() tidemark.Remote {
		cfg := cfg
		cfg.Timeout = timeout
		return openFirestore(t, cfg)
	}
	n.f.store = func() tidemark.SnapshotStore {
		s, err := openBucket(t.Context(), bucket, timeout)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	backups, now := tidemark.WithBackup(1, time.Hour, 2), tidemark.WithTakeover(0)
	n.a, n.b = n.f.device("a", backups, now), n.f.device("b", backups, now)
	timeout = silence
	for _, d := range []*device{n.a, n.b} {
		n.hasty = append(n.hasty, n.f.on(d.path, d.db, backups, now, tidemark.WithRetries(1, 100*time.Millisecond)))
	}
	timeout = 0
	return n
}

// edit changes something of everything on a device.
func (n *network) edit(d *device) {
	n.t.Helper()
	n.n++
	who := fmt.Sprintf("%s, time %d", d.path[len(d.path)-4:], n.n)
	tx, err := d.db.DB.BeginTx(n.t.Context(), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // after the commit there is nothing to roll back
	exec := func(query string, args ...any) {
		if _, err := tx.ExecContext(n.t.Context(), query, args...); err != nil {
			n.t.Fatalf("%s: %v", query, err)
		}
	}
	image := make([]byte, 3000) // noise: the snapshot is not to shrink to nothing
	rnd := rand.NewChaCha8([32]byte{byte(n.n)})
	exec(`INSERT INTO album (title) VALUES (?)`, who)
	for range 70 {
		_, _ = rnd.Read(image) // never fails
		exec(`INSERT INTO photo (album, note, image) SELECT max(id), ?, ? FROM album`, who, image)
	}
	exec(`UPDATE album SET n = n + 1, title = title || ?`, " seen by "+who)
	exec(`DELETE FROM photo WHERE id % 7 = ?`, n.n%7)
	if err := tx.Commit(); err != nil {
		n.t.Fatal(err)
	}
}

// limit is far more than any number of retries may take: whoever gets here hangs.
const limit = 3 * time.Minute

// try syncs a device over whatever line there is. Only one failure is allowed: that
// the server is unavailable.
func (n *network) try(d *device) error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), limit)
	defer cancel()
	_, err := d.p.Sync(ctx)
	switch {
	case ctx.Err() != nil:
		n.t.Fatalf("sync hangs: %v", err)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		n.t.Errorf("sync takes its own deadline for the caller's: %v", err)
	case err != nil && !errors.Is(err, tidemark.ErrUnavailable):
		n.t.Errorf("sync failed with %v, want ErrUnavailable", err)
	}
	return err
}

// TestBadLines syncs two devices over lines that are slow, break, or swallow
// everything, and then over good ones.
func TestBadLines(t *testing.T) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // one of the toxics has a logger of its own
	const both, dead = "firestore s3", true
	for _, c := range []struct {
		name, servers, stream string
		toxic                 string // of toxiproxy: type and attributes
		dead                  bool   // nothing can get through
	}{
		{"latency", both, "downstream", `"type": "latency", "attributes": {"latency": 80, "jitter": 60}`, !dead},
		{"slow", both, "upstream", `"type": "bandwidth", "attributes": {"rate": 800}`, !dead}, // kB/s
		{"reset at once", both, "downstream", `"type": "reset_peer", "attributes": {"timeout": 0}`, dead},
		{"reset of requests", both, "upstream", `"type": "reset_peer", "attributes": {"timeout": 5}`, dead},
		{"cut off in an answer", both, "downstream", `"type": "limit_data", "attributes": {"bytes": 3000}`, !dead},
		{"cut off in a long answer", both, "downstream", `"type": "limit_data", "attributes": {"bytes": 100000}`, !dead},
		{"cut off in a request", both, "upstream", `"type": "limit_data", "attributes": {"bytes": 3000}`, !dead},
		{"cut off in a long request", both, "upstream", `"type": "limit_data", "attributes": {"bytes": 100000}`, !dead},
		{"requests in a black hole", both, "upstream", `"type": "timeout", "attributes": {"timeout": 0}`, dead},
		{"answers in a black hole", both, "downstream", `"type": "timeout", "attributes": {"timeout": 0}`, dead},
		{"s3 in a black hole", "s3", "downstream", `"type": "timeout", "attributes": {"timeout": 0}`, !dead},
		{"s3 cut off", "s3", "upstream", `"type": "limit_data", "attributes": {"bytes": 20000}`, !dead},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			n := newNetwork(t)
			n.edit(n.a)
			n.a.sync()
			n.b.sync()
			n.edit(n.a)
			n.edit(n.b)

			for server := range strings.FieldsSeq(c.servers) {
				toxic := fmt.Sprintf(`{"name": "toxic", "stream": %q, %s}`, c.stream, c.toxic)
				if _, err := n.lines[server].Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
					t.Fatal(err)
				}
			}
			var failed []error
			for range 2 {
				for _, d := range n.hasty {
					err := n.try(d)
					if err != nil {
						failed = append(failed, err)
					}
					if err == nil && c.dead {
						t.Error("a sync succeeded though nothing can get through")
					}
					if st, err := d.p.Status(t.Context()); err != nil || c.servers == "s3" && st.Dirty > 0 {
						t.Errorf("a backup that fails keeps %d rows from going up (%v)", st.Dirty, err)
					}
				}
				n.edit(n.b)
			}
			for server := range strings.FieldsSeq(c.servers) {
				if err := n.lines[server].Toxics.RemoveToxic(t.Context(), "toxic"); err != nil {
					t.Fatal(err)
				}
			}
			if len(failed) > 0 {
				t.Logf("%d of 4 failed, such as: %v", len(failed), failed[0])
			}

			// The line is good again, and so is everybody who had to do with it. (That a
			// busy machine looks like a line that is not is no failure.)
			for _, d := range n.hasty {
				err := n.try(d)
				for range 10 {
					if err != nil {
						err = n.try(d)
					}
				}
				if err != nil {
					t.Fatalf("the line is good again, and yet: %v", err)
				}
			}
			rounds(2, n.a, n.b)
			fresh := n.f.restore("fresh")
			fresh.sync()
			same(t, n.a, n.b, fresh)
			// Each edit made an album, and has seen all that were there.
			if got := n.a.value(`SELECT count(*) FROM album`); got != strconv.Itoa(n.n) {
				t.Errorf("%s albums of %d", got, n.n)
			}
			oneDocumentARow(t, n.direct, n.a)
		})
	}
}
