package s3

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/tidemark-sync/tidemark/messages"
)

// silent opens a Store on a server that takes connections and nothing else.
func silent(t *testing.T) *Store {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}()
	return open(t, Config{Bucket: "b", Endpoint: "http://" + l.Addr().String(), Timeout: 50 * time.Millisecond}, "access", "secret")
}

// No call hangs on a server that has fallen silent, also one that stops taking an
// upload.
func TestSilenceIsUnavailable(t *testing.T) {
	s := silent(t)
	small, large := []byte("x"), make([]byte, 2*partSize)
	for name, call := range map[string]func() error{
		"get":    func() error { _, _, err := s.Get(t.Context(), "x", 0); return err },
		"list":   func() error { _, err := s.List(t.Context(), ""); return err },
		"delete": func() error { return s.Delete(t.Context(), "x") },
		"put": func() error {
			_, err := s.Put(t.Context(), "x", bytes.NewReader(small), messages.Condition{})
			return err
		},
		"put if absent": func() error {
			_, err := s.Put(t.Context(), "x", bytes.NewReader(small), messages.Condition{IfAbsent: true})
			return err
		},
		"put in parts": func() error {
			_, err := s.Put(t.Context(), "x", bytes.NewReader(large), messages.Condition{})
			return err
		},
		"a part": func() error {
			u := &upload{s: s, op: "part", key: new("x")}
			_, err := u.part(t.Context(), new("id"), 1, large)
			return err
		},
	} {
		err := call()
		if !errors.Is(err, messages.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want messages.ErrUnavailable and not an end of the caller's context", name, err)
		}
	}
}

// slow takes 64 KiB of a request and then looks away for most of the timeout.
type slow struct{}

func (slow) Do(r *http.Request) (*http.Response, error) {
	buf := make([]byte, 64<<10)
	for n := 1; n > 0; n, _ = io.ReadFull(r.Body, buf) {
		select {
		case <-time.After(DefaultTimeout * 9 / 10):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Etag": {`"1"`}}, Body: http.NoBody, Request: r}, nil
}

// A server that takes hours to read an upload is slow, not silent.
func TestASlowUploadIsNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(s3.New(s3.Options{
			Region: "r", BaseEndpoint: aws.String("https://s3"), UsePathStyle: true, HTTPClient: slow{},
			Credentials: credentials.NewStaticCredentialsProvider("access", "secret", ""),
		}), "b", "")
		if err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		if _, err := s.Put(t.Context(), "x", bytes.NewReader(make([]byte, partSize-1)), messages.Condition{IfAbsent: true}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took < time.Hour {
			t.Fatalf("the server took %v: this proves nothing", took)
		}
	})
}

// busy answers every request with what S3 says when it has too much to do.
type busy string

func (b busy) Do(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {string(b)}}, Body: http.NoBody, Request: r}, nil
}

// How long the server asks to be left alone reaches whoever tries again.
func TestRetryAfterIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for text, want := range map[string]time.Duration{
			"7": 7 * time.Second, "": 0, "soon": 0, "-3": 0,
			time.Now().Add(time.Hour).UTC().Format(http.TimeFormat): time.Hour,
		} {
			client := s3.New(s3.Options{
				HTTPClient: busy(text), Region: "r", BaseEndpoint: aws.String("http://nowhere"), Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""),
				RetryMaxAttempts: 1,
			})
			s, err := New(client, "b", "")
			if err != nil {
				t.Fatal(err)
			}
			err = s.Delete(t.Context(), "x")
			var asked interface{ RetryAfter() time.Duration }
			got := time.Duration(0)
			if errors.As(err, &asked) {
				got = asked.RetryAfter()
			}
			if got != want || !errors.Is(err, messages.ErrUnavailable) {
				t.Errorf("%q: %v asks for %v, want %v", text, err, got, want)
			}
		}
	})
}
