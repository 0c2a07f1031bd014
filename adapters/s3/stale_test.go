package s3

import (
	"io"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// What a crash left unfinished goes when it is old enough; what is not in our folder
// stays, and so does an upload that may still be somebody's.
func TestStaleUploads(t *testing.T) {
	srv := servers.S3(t)
	folder := func(prefix string) *Store {
		return open(t, Config{Bucket: srv.Bucket, Prefix: prefix, Region: srv.Region, Endpoint: srv.Endpoint}, srv.AccessKey, srv.SecretKey)
	}
	s := folder("alice")
	for _, key := range []string{"alice/snapshots/a", "alice/snapshots/b", "alice2/snapshots/a"} {
		if _, err := s.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &s.bucket, Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
	left := func() (keys []string) {
		t.Helper()
		out, err := s.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &s.bucket})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range out.Uploads {
			keys = append(keys, aws.ToString(o.Key))
		}
		slices.Sort(keys)
		return keys
	}
	if _, err := s.Put(t.Context(), "x", &body{partSize, func() (int, error) { return 0, io.EOF }}, messages.Condition{}); err != nil {
		t.Fatal(err)
	}
	if got := left(); len(got) != 3 {
		t.Errorf("uploads that have just begun: %q are left of three", got)
	}
	(&upload{s: folder("alice")}).abortStale(t.Context(), -time.Hour) // as if they were old
	if got := left(); !slices.Equal(got, []string{"alice2/snapshots/a"}) {
		t.Errorf("left: %q", got)
	}
}
