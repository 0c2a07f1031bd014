package servers

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// Rules makes the emulator evaluate security rules for one project, instead of
// those it has: a text that firebase would deploy.
func Rules(t testing.TB, emulator, project, rules string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"rules": map[string]any{"files": []map[string]string{{"name": "firestore.rules", "content": rules}}}})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+emulator+"/emulator/v1/projects/"+project+":securityRules", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if said, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("the emulator refuses the rules: %s %s\n%s", resp.Status, said, rules)
	}
}

// FirestoreWithRules returns host:port of an emulator of the test's own that was
// started with a file of security rules. It ends with the process.
func FirestoreWithRules(t testing.TB, file string) string {
	t.Helper()
	java, jar := emulator(t)
	p, err := start("the Firestore emulator", "/", func(port int) *exec.Cmd {
		return emulatorCommand(java, jar, port, "--rules="+file)
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.addr
}

// IDToken is a token of Firebase Auth as the emulators take it: nobody signed it.
func IDToken(project, uid string) string {
	now := time.Now().Unix()
	part := func(v map[string]any) string {
		raw, _ := json.Marshal(v) // texts and numbers
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return part(map[string]any{"alg": "none", "typ": "JWT"}) + "." + part(map[string]any{
		"iss": "https://securetoken.google.com/" + project, "aud": project, "sub": uid, "user_id": uid,
		"iat": now, "auth_time": now, "exp": now + 3600,
	}) + "."
}

func emulatorCommand(java, jar string, port int, more ...string) *exec.Cmd {
	// The heap holds all documents with their indexes: 256 MB end at about 20,000.
	return exec.Command(java, append([]string{
		"-Xmx" + cmp.Or(os.Getenv("TIDEMARK_FIRESTORE_EMULATOR_HEAP"), "768m"), "-XX:+UseSerialGC", "-cp", jar,
		"com.google.cloud.datastore.emulator.firestore.CloudFirestore", "--host=127.0.0.1", "--port=" + strconv.Itoa(port),
	}, more...)...)
}
