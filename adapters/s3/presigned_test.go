package s3

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/tidemark-sync/tidemark/adapters/adaptertest"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

func signerOf(srv servers.S3Server) Signer {
	return Signer{
		Bucket: srv.Bucket, Region: srv.Region, Endpoint: srv.Endpoint,
		Credentials: credentials.NewStaticCredentialsProvider(srv.AccessKey, srv.SecretKey, ""),
	}
}

// backend is what a device reaches: JSON in, a URL out.
func backend(t *testing.T, s Signer, prefix string) Presigner {
	return func(ctx context.Context, r Request) (string, error) {
		raw, err := json.Marshal(r)
		if err != nil {
			t.Error(err)
		}
		var asked Request
		if err := json.Unmarshal(raw, &asked); err != nil {
			t.Error(err)
		}
		return s.Sign(ctx, prefix, asked)
	}
}

func presigned(t *testing.T, prefix string, sign Presigner) *Store {
	t.Helper()
	s, err := Presigned(prefix, sign)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// noKeys takes from this process what a device does not have.
func noKeys(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
}

// A device without any key does all that a store does, with URLs that its backend signs.
func TestObjectStoreOfADeviceWithoutKeys(t *testing.T) {
	noKeys(t)
	adaptertest.ObjectStore(t, func(t *testing.T) stages.ObjectStore {
		return presigned(t, "users/alice", backend(t, signerOf(servers.S3(t)), "users/alice"))
	}, adaptertest.Features{ManyObjects: true})
}

// Other signers move headers into the URL; what they leave out is not signed.
func TestASignerThatMovesHeadersIntoTheURL(t *testing.T) {
	noKeys(t)
	srv := servers.S3(t)
	s := presigned(t, "a", func(ctx context.Context, r Request) (string, error) {
		keys, err := signerOf(srv).Credentials.Retrieve(ctx)
		if err != nil {
			return "", err
		}
		q := r.Query
		if q == nil {
			q = url.Values{}
		}
		q.Set("X-Amz-Expires", "60")
		req, err := http.NewRequestWithContext(ctx, r.Method, srv.Endpoint+"/"+srv.Bucket+"/"+r.Key+"?"+q.Encode(), http.NoBody)
		if err != nil {
			return "", err
		}
		maps.Copy(req.Header, r.Header)
		signed, _, err := v4.NewSigner().PresignHTTP(ctx, keys, req, "UNSIGNED-PAYLOAD", "s3", srv.Region, time.Now())
		return signed, err
	})
	o, err := s.Put(t.Context(), "x", strings.NewReader("one"), messages.Condition{IfAbsent: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Put(t.Context(), "x", strings.NewReader("two"), messages.Condition{IfAbsent: true})
	one(t, "put again", err, messages.ErrConflict)
	body, got, err := s.Get(t.Context(), "x", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || string(b) != "ne" || got.ETag != o.ETag {
		t.Errorf("%q, %+v, %v", b, got, err)
	}
}

// The device cannot send what the backend has not signed, and holds nothing to sign with.
func TestTheBackendDecides(t *testing.T) {
	noKeys(t)
	srv := servers.S3(t)
	all := open(t, Config{Bucket: srv.Bucket, Region: srv.Region, Endpoint: srv.Endpoint}, srv.AccessKey, srv.SecretKey)
	for _, key := range []string{"users/alice/x", "users/bob/x", "users/alice2/x"} {
		if _, err := all.Put(t.Context(), key, strings.NewReader(key), messages.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := presigned(t, "users/bob", backend(t, signerOf(srv), "users/alice")).client.Options().Credentials.Retrieve(t.Context())
	if err != nil || keys.AccessKeyID == srv.AccessKey || keys.SecretAccessKey == srv.SecretKey {
		t.Fatalf("the device holds %q, %v", keys.AccessKeyID, err)
	}
	for _, other := range []string{"users/bob", "users/alice2", "users", ""} {
		for what, err := range everyCall(t.Context(), presigned(t, other, backend(t, signerOf(srv), "users/alice"))) {
			one(t, other+": "+what, err, messages.ErrUnauthorized)
		}
	}
	if list, err := all.List(t.Context(), ""); err != nil || len(list) != 3 {
		t.Errorf("there is %v, %v, want what there was", list, err)
	}
	// What somebody does with a URL of ours beside what it was signed for.
	var url string
	s := presigned(t, "users/alice", func(ctx context.Context, r Request) (string, error) {
		u, err := signerOf(srv).Sign(ctx, "users/alice", r)
		if r.Method == http.MethodPut {
			url = u
		}
		return u, err
	})
	if _, err := s.Put(t.Context(), "y", strings.NewReader("one"), messages.Condition{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(string) string{
		"without its condition":  func(u string) string { return u },
		"for another one's file": func(u string) string { return strings.Replace(u, "/alice/y", "/bob/x", 1) },
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, change(url), strings.NewReader("two"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("the URL was used %s: %s", name, resp.Status)
		}
	}
}

func TestWhatABackendDoesNotSign(t *testing.T) {
	s := Signer{Bucket: "b", Region: "r", Credentials: credentials.NewStaticCredentialsProvider("a", "s", "")}
	ok := Request{Method: "PUT", Key: "users/alice/x", Header: http.Header{"If-Match": {`"e"`}}}
	if u, err := s.Sign(t.Context(), "users/alice/", ok); err != nil || !strings.HasPrefix(u, "https://b.s3.r.amazonaws.com/users/alice/x?") {
		t.Fatalf("%s, %v", u, err)
	}
	q := func(pairs ...string) url.Values {
		v := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			v.Add(pairs[i], pairs[i+1])
		}
		return v
	}
	for name, r := range map[string]Request{
		"another's object":           {Method: "GET", Key: "users/bob/x"},
		"a name that begins alike":   {Method: "GET", Key: "users/alice2/x"},
		"a way out":                  {Method: "GET", Key: "users/alice/../bob/x"},
		"the folder itself":          {Method: "DELETE", Key: "users/alice/"},
		"a copy":                     {Method: "PUT", Key: "users/alice/x", Header: http.Header{"X-Amz-Copy-Source": {"/b/users/bob/x"}}},
		"a copy, spelled otherwise":  {Method: "PUT", Key: "users/alice/x", Header: http.Header{"x-amz-copy-source": {"/b/users/bob/x"}}},
		"rights":                     {Method: "PUT", Key: "users/alice/x", Query: q("acl", "")},
		"an older version":           {Method: "GET", Key: "users/alice/x", Query: q("versionId", "1")},
		"a listing of all":           {Method: "GET", Query: q("list-type", "2")},
		"a listing of another's":     {Method: "GET", Query: q("list-type", "2", "prefix", "users/bob/")},
		"a listing of two":           {Method: "GET", Query: q("list-type", "2", "prefix", "users/alice/", "prefix", "users/bob/")},
		"a listing of alike names":   {Method: "GET", Query: q("list-type", "2", "prefix", "users/alice")},
		"the bucket's rules":         {Method: "GET", Query: q("lifecycle", "")},
		"everybody's uploads":        {Method: "GET", Query: q("uploads", "", "prefix", "users/alice/")},
		"the removal of the bucket":  {Method: "DELETE"},
		"several objects at once":    {Method: "POST", Query: q("delete", "")},
		"a signature of one's own":   {Method: "GET", Key: "users/alice/x", Query: q("X-Amz-Expires", "999999")},
		"a method that nobody needs": {Method: "PATCH", Key: "users/alice/x"},
	} {
		u, err := s.Sign(t.Context(), "users/alice", r)
		one(t, name, err, messages.ErrUnauthorized)
		if u != "" {
			t.Errorf("%s: %s", name, u)
		}
	}
	for _, prefix := range []string{"", "/", "a/../b"} {
		_, err := s.Sign(t.Context(), prefix, ok)
		one(t, "prefix "+prefix, err, messages.ErrRejected)
	}
}

// Errors of the backend keep their class, and no error repeats a signed URL.
func TestErrorsOfADeviceWithoutKeys(t *testing.T) {
	for _, c := range []struct{ sign, want error }{
		{messages.ErrUnauthorized, messages.ErrUnauthorized},
		{errors.New("the backend says 502"), messages.ErrUnavailable},
	} {
		for what, err := range everyCall(t.Context(), presigned(t, "a", func(context.Context, Request) (string, error) { return "", c.sign })) {
			one(t, what, err, c.want)
		}
	}
	for what, err := range everyCall(t.Context(), presigned(t, "a", func(context.Context, Request) (string, error) { return "secret", nil })) {
		one(t, what, err, messages.ErrRejected)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", what, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	signer := signerOf(servers.S3Server{Bucket: "b", Region: "r", Endpoint: "http://" + l.Addr().String(), AccessKey: "a", SecretKey: "s"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := presigned(t, "a", backend(t, signer, "a"))
	s.client = s3.New(s.client.Options(), func(o *s3.Options) { o.RetryMaxAttempts = 1 })
	for what, err := range everyCall(t.Context(), s) {
		one(t, what, err, messages.ErrUnavailable)
		if text := err.Error(); strings.Contains(text, "Signature") || strings.Contains(text, "Credential") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Presigned("a", nil); !errors.Is(err, messages.ErrRejected) {
		t.Errorf("without a presigner: %v", err)
	}
}
