package servers_test

import (
	"net/http"
	"os"
	"testing"

	"github.com/tidemark-sync/tidemark/integration/servers"
)

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

func TestFirestoreIsSharedAndStartsAgainAfterStop(t *testing.T) {
	addr := servers.Firestore(t)
	if again := servers.Firestore(t); again != addr {
		t.Fatalf("a second emulator was started: %s and %s", addr, again)
	}
	if a, b := servers.Project(t), servers.Project(t); a == b {
		t.Fatalf("project %s was given twice", a)
	}
	get(t, "http://"+addr, true)
	servers.Stop()
	get(t, "http://"+addr, false)
	get(t, "http://"+servers.Firestore(t), true)
}

func TestS3GivesAFreshBucket(t *testing.T) {
	a, b := servers.S3(t), servers.S3(t)
	if a.Endpoint != b.Endpoint || a.Bucket == b.Bucket {
		t.Fatalf("want one server and two buckets, have %s/%s and %s/%s", a.Endpoint, a.Bucket, b.Endpoint, b.Bucket)
	}
	servers.Stop()
	get(t, a.Endpoint, false)
}

func get(t *testing.T, url string, alive bool) {
	t.Helper()
	resp, err := http.Get(url)
	if err == nil {
		_ = resp.Body.Close()
	}
	if (err == nil) != alive {
		t.Fatalf("GET %s: %v, want an answer: %v", url, err, alive)
	}
}
