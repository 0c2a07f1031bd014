// Package servers starts real servers for tests, on loopback and once per test
// process: Google's Firestore emulator and an S3 server (versitygw).
//
// A package that uses one stops them all in its TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }
//
// Where a server is not installed the test is skipped and says so. With
// TIDEMARK_REQUIRE_SERVERS=1, as in CI, it fails instead.
package servers

import (
	"os"
	"strings"
	"testing"
)

// Main runs the tests of a package without this machine's settings for AWS (an
// account, a proxy's certificates, read again by every store), and stops the servers
// they started. It returns the exit code.
func Main(m interface{ Run() int }) int {
	defer Stop()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			_ = os.Unsetenv(name)
		}
	}
	return m.Run()
}

// missing ends the test because a server cannot be found: what was looked for,
// and how to get it.
func missing(t testing.TB, what, remedy string) {
	t.Helper()
	if os.Getenv("TIDEMARK_REQUIRE_SERVERS") == "1" {
		t.Fatalf("%s is missing and TIDEMARK_REQUIRE_SERVERS=1: %s", what, remedy)
	}
	t.Skipf("NOT RUN, %s is missing: %s", what, remedy)
}
