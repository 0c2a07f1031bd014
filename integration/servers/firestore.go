package servers

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var firestore shared

const emulatorRemedy = "install Java 17 or newer and the Debian package google-cloud-cli-firestore-emulator" +
	" (or `gcloud components install cloud-firestore-emulator`), or set TIDEMARK_FIRESTORE_EMULATOR_JAR to its jar"

// Firestore returns host:port of a running Firestore emulator, the same one for
// the whole test process. It keeps projects apart: a test takes a Project of its
// own and needs no reset. Without the emulator the test ends, see the package
// comment.
func Firestore(t testing.TB) string {
	t.Helper()
	jar := emulatorJar()
	if jar == "" {
		missing(t, "the Firestore emulator", emulatorRemedy)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		missing(t, "Java (for the Firestore emulator)", emulatorRemedy)
	}
	p, err := firestore.get(func() (*process, error) {
		return start("the Firestore emulator", "/", func(port int) *exec.Cmd {
			// The heap holds all documents with their indexes: 256 MB end at about 20,000.
			return exec.Command(java, "-Xmx"+cmp.Or(os.Getenv("TIDEMARK_FIRESTORE_EMULATOR_HEAP"), "768m"), "-XX:+UseSerialGC", "-cp", jar,
				"com.google.cloud.datastore.emulator.firestore.CloudFirestore",
				"--host=127.0.0.1", "--port="+strconv.Itoa(port))
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.addr
}

// Project returns a project id that nobody else uses. The prefix demo- keeps
// Google's tools from taking it for a real one.
func Project(testing.TB) string {
	return "demo-" + strings.ToLower(rand.Text()[:16])
}

func emulatorJar() string {
	if jar := os.Getenv("TIDEMARK_FIRESTORE_EMULATOR_JAR"); jar != "" {
		return jar
	}
	if out, err := exec.Command("dpkg", "-L", "google-cloud-cli-firestore-emulator").Output(); err == nil {
		lines := bufio.NewScanner(bytes.NewReader(out))
		for lines.Scan() {
			if strings.HasSuffix(lines.Text(), ".jar") {
				return lines.Text()
			}
		}
	}
	roots := []string{os.Getenv("CLOUDSDK_ROOT"), "/usr/lib/google-cloud-sdk", "/opt/google-cloud-sdk", "/snap/google-cloud-sdk/current"}
	if home, err := os.UserHomeDir(); err == nil {
		roots = append(roots, filepath.Join(home, "google-cloud-sdk"))
	}
	if jar := jarBelow(roots...); jar != "" {
		return jar
	}
	// Slow, so last: gcloud itself is a Python program.
	if out, err := exec.Command("gcloud", "info", "--format=value(installation.sdk_root)").Output(); err == nil {
		return jarBelow(strings.TrimSpace(string(out)))
	}
	return ""
}

func jarBelow(roots ...string) string {
	for _, root := range roots {
		if root == "" {
			continue
		}
		jars, err := filepath.Glob(filepath.Join(root, "platform", "cloud-firestore-emulator", "*.jar"))
		if err == nil && len(jars) > 0 {
			return jars[0]
		}
	}
	return ""
}
