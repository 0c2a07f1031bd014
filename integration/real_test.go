package integration

import (
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/adapters/s3"
	"github.com/tidemark-sync/tidemark/integration/servers"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(crashVariable); job != "" {
		os.Exit(crashChild(job))
	}
	if job := os.Getenv(leftoverVariable); job != "" {
		os.Exit(leftoverChild(job))
	}
	os.Exit(servers.Main(m))
}

// backends are what the stories run on.
var backends = map[string]func(t *testing.T, schema string) *fleet{
	"memory": newFleet,
	"file": func(t *testing.T, schema string) *fleet {
		f := newFleet(t, schema)
		f.server = nil
		remote, store := t.TempDir(), t.TempDir()
		f.remote = func() tidemark.Remote {
			r, err := file.OpenRemote(remote)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = r.Close() })
			return r
		}
		f.store = func() tidemark.SnapshotStore {
			s, err := file.OpenStore(store)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		return f
	},
	"firestore and s3": realFleet,
}

// realFleet is on the official Firestore emulator and a real S3 server.
func realFleet(t *testing.T, schema string) *fleet {
	t.Helper()
	f := newFleet(t, schema)
	f.server = nil
	cfg := firestore.Config{Emulator: servers.Firestore(t), Project: servers.Project(t), Scope: "users/alice"}
	bucket := servers.S3(t)
	f.remote = func() tidemark.Remote {
		r, err := firestore.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	f.store = func() tidemark.SnapshotStore {
		s, err := s3.Open(t.Context(), s3.Config{Bucket: bucket.Bucket, Prefix: "alice", Region: bucket.Region, Endpoint: bucket.Endpoint},
			config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(bucket.AccessKey, bucket.SecretKey, "")))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return f
}
