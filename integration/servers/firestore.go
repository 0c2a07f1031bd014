package servers

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
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
	java, jar := emulator(t)
	p, err := firestore.get(func() (*process, error) {
		return start("the Firestore emulator", "/", func(port int) *exec.Cmd { return emulatorCommand(java, jar, port) })
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.addr
}

// emulator finds what runs it, or ends the test.
func emulator(t testing.TB) (java, jar string) {
	t.Helper()
	if jar = emulatorJar(); jar == "" {
		missing(t, "the Firestore emulator", emulatorRemedy)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		missing(t, "Java (for the Firestore emulator)", emulatorRemedy)
	}
	return java, jar
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
