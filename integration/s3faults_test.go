package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/s3"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// line is the way to a server, with what goes wrong on it.
type line struct {
	fault func(step string) func(*http.Request) (*http.Response, error) // nil: nothing
	steps []string
}

func (l *line) RoundTrip(r *http.Request) (*http.Response, error) {
	step := stepOf(r)
	l.steps = append(l.steps, step)
	if l.fault != nil {
		if f := l.fault(step); f != nil {
			return f(r)
		}
	}
	return http.DefaultTransport.RoundTrip(r)
}

// store is a bucket at the other end of the line; it tries again at once.
func (l *line) store(t *testing.T, bucket servers.S3Server) *s3.Store {
	t.Helper()
	s, err := s3.New(client(bucket, func(o *awss3.Options) {
		o.HTTPClient = &http.Client{Transport: l}
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
			o.RateLimiter = noLimit{}
		})
	}), bucket.Bucket, "alice")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func client(bucket servers.S3Server, opts ...func(*awss3.Options)) *awss3.Client {
	return awss3.New(awss3.Options{
		Region: bucket.Region, BaseEndpoint: aws.String(bucket.Endpoint), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(bucket.AccessKey, bucket.SecretKey, ""),
	}, opts...)
}

// stepOf names a request by what it is for.
func stepOf(r *http.Request) string {
	q := r.URL.Query()
	what := "snapshot"
	if strings.HasSuffix(r.URL.Path, messages.ManifestKey) {
		what = "manifest"
	}
	switch {
	case q.Has("uploads") && r.Method == http.MethodGet:
		return "list the uploads"
	case q.Has("uploads"):
		return "begin the upload"
	case q.Has("partNumber"):
		return "part " + q.Get("partNumber")
	case q.Has("uploadId") && r.Method == http.MethodPost:
		return "complete the upload"
	case q.Has("uploadId"):
		return "abort the upload"
	}
	return r.Method + " " + what
}

var errReset = &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET}

// faults are the ways in which one request fails.
var faults = map[string]func(*http.Request) (*http.Response, error){
	"503 Slow Down": func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
		}
		return &http.Response{
			Status: "503 Slow Down", StatusCode: http.StatusServiceUnavailable, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
			Header: http.Header{"Content-Type": {"application/xml"}},
			Body:   io.NopCloser(strings.NewReader("<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")),
		}, nil
	},
	"cut before it is sent": func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, errReset
	},
	"cut in the middle": func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			r = r.Clone(r.Context())
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(r.Body, max(1, r.ContentLength/2)), broken{}), r.Body}
		}
		return lost(r)
	},
	"the answer is lost": lost,
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errReset }

func lost(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	return nil, errReset
}

// A backup of several parts, with every request of it failing in every way: the last
// snapshot still restores, no parts stay in the bucket, and the next cycle backs up.
func TestABackupOnABadLine(t *testing.T) {
	t.Parallel()
	bucket := servers.S3(t)
	l := &line{}
	store := l.store(t, bucket)
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, picture BLOB);`)
	f.store = func() tidemark.SnapshotStore { return (&line{}).store(t, bucket) }
	a := f.onStore(store).device("a", tidemark.WithBackup(1, time.Hour, 2), tidemark.WithRetries(0, time.Second))
	a.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) INSERT INTO note (picture) SELECT randomblob(900000) FROM n`)
	a.sync()
	l.steps = nil
	whole := func() { // without it, only what changed is uploaded, in one part
		if err := os.Remove(a.path + ".tidemark-pages"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	whole()
	a.exec(`INSERT INTO note (title) VALUES ('x')`)
	if a.sync().Snapshot == nil {
		t.Fatal("no snapshot without any fault")
	}
	steps := slices.Clone(l.steps)
	if want := []string{"GET manifest", "begin the upload", "part 1", "part 2", "complete the upload", "PUT manifest"}; !slices.Equal(steps, want) {
		t.Fatalf("a backup is %q, want %q", steps, want)
	}
	n := 0
	for _, step := range steps {
		for name, fault := range faults {
			t.Run(step+"/"+name, func(t *testing.T) {
				n++
				a := &device{t, a.path, a.db, a.p}
				before := generations(t, f)
				whole()
				a.exec(`INSERT INTO note (title) VALUES ('x')`)
				// As often as the client tries; a storm that passes is TestAStormPasses.
				l.fault = func(s string) func(*http.Request) (*http.Response, error) {
					if s == step {
						return fault
					}
					return nil
				}
				if _, err := a.p.Sync(t.Context()); !errors.Is(err, tidemark.ErrUnavailable) {
					t.Errorf("the sync says %v", err)
				}
				l.fault = nil
				if !slices.Contains(generations(t, f), before[0]) {
					t.Errorf("snapshot %s is gone", before[0])
				}
				path := filepath.Join(f.dir, fmt.Sprintf("restored%d.db", n))
				if _, err := tidemark.Restore(t.Context(), path, f.store()); err != nil {
					t.Errorf("restore: %v", err)
				}
				left, err := client(bucket).ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: &bucket.Bucket})
				if err != nil || len(left.Uploads) != 0 {
					t.Errorf("%d uploads stay in the bucket, %v", len(left.Uploads), err)
				}
				a.sync()
				if st, err := a.p.Status(t.Context()); err != nil || st.Snapshot == nil || st.Snapshot.Generation != generations(t, f)[0] || st.Snapshot.Generation == before[0] {
					t.Errorf("on a good line: %+v, %v; the newest snapshot is %s", st.Snapshot, err, generations(t, f)[0])
				}
			})
		}
	}
}

// A storm that ends within the client's tries is not noticed.
func TestAStormPasses(t *testing.T) {
	t.Parallel()
	bucket := servers.S3(t)
	l := &line{}
	store := l.store(t, bucket)
	f := newFleet(t, oneTable)
	f.store = func() tidemark.SnapshotStore { return store }
	a := f.device("a", tidemark.WithBackup(1, time.Hour, 2))
	a.notes(1)
	a.sync()
	tries := map[string]int{}
	l.fault = func(step string) func(*http.Request) (*http.Response, error) {
		if tries[step]++; tries[step] <= 2 && step != "PUT manifest" && step != "PUT snapshot" { // conditional writes are sent once
			return faults["503 Slow Down"]
		}
		return nil
	}
	a.notes(1)
	if a.sync().Snapshot == nil || tries["GET manifest"] != 3 {
		t.Errorf("no snapshot, after %v", tries)
	}
	l.fault = nil
	f.restore("b").sync()
}

func generations(t *testing.T, f *fleet) []string {
	t.Helper()
	list, err := tidemark.Snapshots(t.Context(), f.store())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Generation)
	}
	return names
}

// noLimit lets a client try as often as it is told to, however often it failed before.
type noLimit struct{}

func (noLimit) GetToken(context.Context, uint) (func() error, error) {
	return func() error { return nil }, nil
}
func (noLimit) AddTokens(uint) error { return nil }
