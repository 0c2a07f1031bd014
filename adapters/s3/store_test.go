package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/tidemark-sync/tidemark/adapters/adaptertest"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

func open(t *testing.T, cfg Config, access, secret string) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(access, secret, "")))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bucket(t *testing.T, prefix string) *Store {
	t.Helper()
	srv := servers.S3(t)
	return open(t, Config{Bucket: srv.Bucket, Prefix: prefix, Region: srv.Region, Endpoint: srv.Endpoint}, srv.AccessKey, srv.SecretKey)
}

func TestObjectStore(t *testing.T) {
	for name, prefix := range map[string]string{"Bucket": "", "Prefix": "users/alice/"} {
		t.Run(name, func(t *testing.T) {
			adaptertest.ObjectStore(t, func(t *testing.T) stages.ObjectStore { return bucket(t, prefix) },
				adaptertest.Features{ManyObjects: name == "Prefix"})
		})
	}
}

// A device tells by its place that it is given another store.
func TestPlace(t *testing.T) {
	t.Parallel()
	place := func(endpoint, bucket, prefix string) string {
		return open(t, Config{Bucket: bucket, Prefix: prefix, Region: "eu-central-1", Endpoint: endpoint}, "access", "secret").Place()
	}
	const endpoint = "http://127.0.0.1:1"
	seen := map[string]bool{}
	for _, p := range []string{place("", "b", "x"), place("", "b", "x/"), place("", "b", ""), place("", "c", "x"), place(endpoint, "b", "x")} {
		seen[p] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d places, want 4: %v", len(seen), seen)
	}
}

// A client without the defaults that the environment's configuration has.
func TestObjectStoreOfABareClient(t *testing.T) {
	adaptertest.ObjectStore(t, func(t *testing.T) stages.ObjectStore {
		srv := servers.S3(t)
		s, err := New(s3.New(s3.Options{
			Region: srv.Region, BaseEndpoint: aws.String(srv.Endpoint), UsePathStyle: true,
			Credentials: credentials.NewStaticCredentialsProvider(srv.AccessKey, srv.SecretKey, ""),
		}), srv.Bucket, "")
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// Two folders of one bucket do not see each other, also when one's name starts
// with the other's.
func TestPrefixesAreApart(t *testing.T) {
	srv := servers.S3(t)
	for _, prefix := range []string{"a", "a/", "ab"} {
		s := open(t, Config{Bucket: srv.Bucket, Prefix: prefix, Region: srv.Region, Endpoint: srv.Endpoint}, srv.AccessKey, srv.SecretKey)
		if _, err := s.Put(t.Context(), "x", strings.NewReader(prefix), messages.Condition{}); err != nil {
			t.Fatal(err)
		}
		list, err := s.List(t.Context(), "")
		if err != nil || len(list) != 1 || list[0].Key != "x" {
			t.Fatalf("prefix %q lists %v, %v", prefix, list, err)
		}
	}
}

func wantNoUploads(t *testing.T, s *Store) {
	t.Helper()
	out, err := s.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &s.bucket})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range out.Uploads {
		t.Errorf("an upload of %s was left behind", aws.ToString(u.Key))
	}
}

// body gives n bytes in all and then calls end.
type body struct {
	left int
	end  func() (int, error)
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return b.end()
	}
	n := min(len(p), b.left)
	clear(p[:n])
	b.left -= n
	return n, nil
}

func TestNoPartsAreLeftBehind(t *testing.T) {
	const n = 2*partSize + 5
	broken := errors.New("broken")
	for name, end := range map[string]func(context.CancelFunc) (int, error){
		"the body fails":    func(context.CancelFunc) (int, error) { return 0, broken },
		"it is cut short":   func(context.CancelFunc) (int, error) { return 0, io.ErrUnexpectedEOF },
		"the body panics":   func(context.CancelFunc) (int, error) { panic(broken) },
		"it is cancelled":   func(cancel context.CancelFunc) (int, error) { cancel(); return 1, nil },
		"cancelled at last": func(cancel context.CancelFunc) (int, error) { cancel(); return 0, io.EOF },
	} {
		t.Run(name, func(t *testing.T) {
			s := bucket(t, "")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			func() {
				defer func() { _ = recover() }()
				if o, err := s.Put(ctx, "x", &body{n, func() (int, error) { return end(cancel) }}, messages.Condition{}); err == nil {
					t.Errorf("Put says %+v", o)
				}
			}()
			wantNoUploads(t, s)
			if list, err := s.List(t.Context(), ""); err != nil || len(list) != 0 {
				t.Errorf("there is %v, %v", list, err)
			}
		})
	}
	t.Run("the condition does not hold", func(t *testing.T) {
		s := bucket(t, "")
		if _, err := s.Put(t.Context(), "x", strings.NewReader("old"), messages.Condition{}); err != nil {
			t.Fatal(err)
		}
		_, err := s.Put(t.Context(), "x", &body{n, func() (int, error) { return 0, io.EOF }}, messages.Condition{IfAbsent: true})
		one(t, "put", err, messages.ErrConflict)
		wantNoUploads(t, s)
	})
}

// Sizes around the buffers' edges come back whole and are billed as they should.
func TestSizes(t *testing.T) {
	s := bucket(t, "")
	s.swept.Store(true) // the first upload in parts would be billed a listing more
	for size, requests := range map[int]int64{
		smallObject - 1: 1, smallObject: 1, smallObject + 1: 1, partSize - 1: 1,
		partSize: 3, partSize + 1: 4, 2 * partSize: 4,
	} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i % 251)
		}
		o, err := s.Put(t.Context(), "x", struct{ io.Reader }{bytes.NewReader(want)}, messages.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		if o.Requests != requests || o.Size != int64(size) || o.ModifiedOn == 0 {
			t.Errorf("%d bytes: %+v, want %d requests", size, o, requests)
		}
		r, _, err := s.Get(t.Context(), "x", 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back as %d, %v", size, len(got), err)
		}
	}
}

func everyCall(ctx context.Context, s *Store) map[string]error {
	_, put := s.Put(ctx, "x", strings.NewReader("x"), messages.Condition{IfAbsent: true})
	_, large := s.Put(ctx, "y", &body{partSize, func() (int, error) { return 0, io.EOF }}, messages.Condition{})
	_, _, get := s.Get(ctx, "x", 0)
	_, list := s.List(ctx, "")
	return map[string]error{"put": put, "large put": large, "get": get, "list": list, "delete": s.Delete(ctx, "x")}
}

func TestWrongBucketKeyAndSecret(t *testing.T) {
	srv := servers.S3(t)
	cfg := Config{Bucket: srv.Bucket, Region: srv.Region, Endpoint: srv.Endpoint}
	for what, err := range everyCall(t.Context(), open(t, cfg, srv.AccessKey, "wrong")) {
		one(t, "wrong secret: "+what, err, messages.ErrUnauthorized)
	}
	for what, err := range everyCall(t.Context(), open(t, cfg, "wrong", srv.SecretKey)) {
		one(t, "wrong key: "+what, err, messages.ErrUnauthorized)
	}
	cfg.Bucket = "no-such-bucket"
	for what, err := range everyCall(t.Context(), open(t, cfg, srv.AccessKey, srv.SecretKey)) {
		one(t, "no bucket: "+what, err, messages.ErrNotFound)
		if err == nil || !strings.Contains(err.Error(), "create the bucket no-such-bucket") {
			t.Errorf("%s: %v, want the remedy", what, err)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Bucket: "b", Endpoint: "http://" + addr}, "a", "s")
	s.client = s3.New(s.client.Options(), func(o *s3.Options) { o.RetryMaxAttempts = 1 })
	for what, err := range everyCall(t.Context(), s) {
		one(t, what, err, messages.ErrUnavailable)
	}
}

func TestWithoutCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	noRole := httptest.NewServer(http.NotFoundHandler())
	defer noRole.Close()
	for name, metadata := range map[string][2]string{
		"no metadata server":       {"AWS_EC2_METADATA_DISABLED", "true"},
		"a machine without a role": {"AWS_EC2_METADATA_SERVICE_ENDPOINT", noRole.URL},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(metadata[0], metadata[1])
			s, err := Open(t.Context(), Config{Bucket: "b", Endpoint: "http://127.0.0.1:1"})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Delete(t.Context(), "x")
			one(t, "delete", err, messages.ErrUnauthorized)
			if err == nil || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
				t.Errorf("%v, want the remedy", err)
			}
		})
	}
}

func TestOpenRefusesABadConfiguration(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	for _, cfg := range []Config{
		{Endpoint: "http://127.0.0.1:1"},
		{Bucket: "b"},
		{Bucket: "b", Endpoint: "http://127.0.0.1:1", Prefix: "a/../b"},
		{Bucket: "b", Endpoint: "http://127.0.0.1:1", Prefix: "/a"},
	} {
		_, err := Open(t.Context(), cfg)
		one(t, cfg.Bucket+" "+cfg.Prefix, err, messages.ErrRejected)
	}
}

// answers of Amazon's that the test server does not give.
func TestClassOfEveryAnswer(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		put    error
	}{
		{400, "ExpiredToken", messages.ErrUnauthorized},
		{403, "AccessDenied", messages.ErrUnauthorized},
		{403, "RequestTimeTooSkewed", messages.ErrUnauthorized},
		{301, "PermanentRedirect", messages.ErrRejected},
		{400, "AuthorizationHeaderMalformed", messages.ErrRejected},
		{400, "RequestTimeout", messages.ErrUnavailable},
		{400, "BadDigest", messages.ErrUnavailable},
		{400, "EntityTooLarge", messages.ErrRejected},
		{404, "NoSuchKey", messages.ErrConflict}, // If-Match on what does not exist
		{404, "NoSuchBucket", messages.ErrNotFound},
		{409, "ConditionalRequestConflict", messages.ErrUnavailable},
		{412, "PreconditionFailed", messages.ErrConflict},
		{429, "TooManyRequests", messages.ErrUnavailable},
		{500, "InternalError", messages.ErrUnavailable},
		{502, "", messages.ErrUnavailable},
		{503, "SlowDown", messages.ErrUnavailable},
	} {
		asked := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "<Error><Code>"+c.code+"</Code><Message>m</Message></Error>")
		}))
		s := open(t, Config{Bucket: "b", Endpoint: srv.URL}, "a", "s")
		o, err := s.Put(t.Context(), "x", strings.NewReader("x"), messages.Condition{IfMatch: `"etag"`})
		one(t, c.code, err, c.put)
		want := 1
		switch {
		case c.status == 409:
			want = conflictTries
		case c.code == "AccessDenied": // which may only mean that there is none: it is listed
			want = 2
		}
		if asked != want || o.Requests != int64(want) {
			t.Errorf("%s: a conditional write was sent %d times and counted %d, want %d", c.code, asked, o.Requests, want)
		}
		srv.Close()
	}
}

func TestErrorsSayWhatHelpsFirst(t *testing.T) {
	for _, c := range []struct {
		status             int
		region, code, said string
		want               string
	}{
		{301, "eu-west-1", "PermanentRedirect", "go elsewhere", "rejected: the bucket is in eu-west-1: set ?region=eu-west-1"},
		{400, "", "AuthorizationHeaderMalformed", "the region 'x' is wrong; expecting 'us-east-1'", "rejected: the bucket is in us-east-1: set ?region=us-east-1"},
		{400, "", "AuthorizationHeaderMalformed", "expecting 'a b'", "rejected: correct the region, or the endpoint"},
		{403, "", "SignatureDoesNotMatch", "calculate again", "unauthorized: the secret does not belong to this access key"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for name, value := range map[string]string{"X-Amz-Request-Id": "REQUEST17", "X-Amz-Id-2": "HOST17/=", "X-Amz-Bucket-Region": c.region} {
				w.Header().Set(name, value)
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "<Error><Code>"+c.code+"</Code><Message>"+c.said+"</Message></Error>")
		}))
		_, err := open(t, Config{Bucket: "b", Endpoint: srv.URL}, "a", "s").Put(t.Context(), "x", strings.NewReader("x"), messages.Condition{})
		srv.Close()
		text := fmt.Sprint(err)
		if !strings.HasPrefix(text, `s3: put "x": `+c.want) || !strings.HasSuffix(text, fmt.Sprintf(": HTTP %d, %s: %s", c.status, c.code, c.said)) {
			t.Errorf("%s: %s\nwant %s first, and last what the server said", c.code, text, c.want)
		}
		if strings.Contains(text, "17") {
			t.Errorf("%s: %s\nwant no ids of the request", c.code, text)
		}
	}
}

func TestADownloadThatBreaksOff(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "only this")
	}))
	defer srv.Close()
	s := open(t, Config{Bucket: "b", Endpoint: srv.URL}, "a", "s")
	r, _, err := s.Get(t.Context(), "x", 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	one(t, "read", err, messages.ErrUnavailable)
	if string(got) != "only this" {
		t.Errorf("read %q", got)
	}
	_ = r.Close()
	// A server that knows no ranges: what was asked for is cut out here.
	if r, _, err = s.Get(t.Context(), "x", 5); err != nil {
		t.Fatal(err)
	}
	got, err = io.ReadAll(r)
	one(t, "read on", err, messages.ErrUnavailable)
	if string(got) != "this" {
		t.Errorf("from byte 5: %q", got)
	}
	_ = r.Close()
}

func TestADownloadThatIsCancelled(t *testing.T) {
	s := bucket(t, "")
	if _, err := s.Put(t.Context(), "x", &body{partSize - 1, func() (int, error) { return 0, io.EOF }}, messages.Condition{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, _, err := s.Get(ctx, "x", 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = io.ReadAll(r)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	one(t, "read", err, nil)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// one checks that an error is of the wanted class and of no other.
func one(t *testing.T, what string, err, want error) {
	t.Helper()
	for _, class := range []error{
		messages.ErrUnavailable, messages.ErrConflict, messages.ErrRejected, messages.ErrUnauthorized,
		messages.ErrNotFound, messages.ErrReadTimeTooOld,
	} {
		//nolint:errorlint // the class itself is compared, not what it wraps
		if errors.Is(err, class) != (class == want) {
			t.Errorf("%s: %v: is it %v? want only %v", what, err, class, want)
		}
	}
}

// Two backends sign for two buckets: a device that changes from one to the other is given
// another store.
func TestPlaceOfPresignedStores(t *testing.T) {
	place := func(bucket string) string {
		s, err := Presigned("users/alice", func(context.Context, Request) (string, error) { return "https://" + bucket + ".example/", nil })
		if err != nil {
			t.Fatal(err)
		}
		return s.Place()
	}
	if a, b := place("one"), place("two"); a != "" && a == b {
		t.Errorf("both are %s", a)
	}
}
