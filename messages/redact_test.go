package messages_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

func TestRedact(t *testing.T) {
	const canary = "cAnArY77"
	for _, said := range []string{
		"authorization: Bearer " + canary, `{"Authorization":["Bearer ` + canary + `"]}`, "map[Authorization:[Bearer " + canary + "]]", "Authorization=Basic " + canary + "==",
		"Authorization: AWS4-HMAC-SHA256 Credential=AKIA/2026/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=" + canary,
		"map[X-Amz-Security-Token:[" + canary + "]]", "x-amz-security-token: " + canary, `<X-Amz-Security-Token>` + "</X-Amz-Security-Token> X-Amz-Security-Token=" + canary,
		`Put "https://b.s3.amazonaws.com/k?X-Amz-Signature=` + canary + `&X-Amz-Expires=60": dial tcp: refused`,
		"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0." + canary, "ya29." + canary, "key AGE-SECRET-KEY-1" + canary,
		`open {"type":"service_account","private_key":"-----BEGIN PRIVATE KEY-----\n` + canary + `\n-----END PRIVATE KEY-----\n"}: no such file`,
		`{"refresh_token": "` + canary + `", "client_secret":"` + canary + `"}`, "access_token=" + canary, "password=" + canary,
		`invalid proxy address "http://alice:` + canary + `@proxy:3128%zz"`, "dial tcp: lookup alice:" + canary + "@localhost: no such host",
		"a row that is long and " + canary + " too long …", // as a server cuts it off
		strings.Repeat("x", 3000) + canary, "the row says " + canary,
	} {
		cause := fmt.Errorf("%w: %s", io.ErrUnexpectedEOF, said)
		err := messages.Redact(cause, "the row says "+canary, "a row that is long and "+canary+" too long to be quoted")
		if strings.Contains(err.Error(), canary) {
			t.Errorf("%q is shown as %q", said, err)
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) || len(err.Error()) > 2100 {
			t.Errorf("%q became %q", said, err)
		}
	}
	for _, harmless := range []string{
		"rpc error: code = PermissionDenied desc = Missing or insufficient permissions.",
		"operation error S3: PutObject, https response error StatusCode: 403, RequestID: 1A2B, api error SignatureDoesNotMatch: The request signature we calculated does not match the signature you provided. Check your key and signing method.",
		"cannot fetch token: 400 Bad Request", "get credentials: failed to refresh cached credentials, no EC2 IMDS role found", `dial tcp 127.0.0.1:8080: connect: connection refused`,
		"write to alice@example.com", "2026-01-01T10:00:00Z: no such bucket", "é" + strings.Repeat("é", 900),
	} {
		if err := messages.Redact(errors.New(harmless), "", "a", "the"); err.Error() != harmless {
			t.Errorf("%q became %q", harmless, err)
		}
	}
	if messages.Redact(nil) != nil {
		t.Error("no error became one")
	}
}

// An answer that quotes a row says what is wrong all the same.
func TestRedactRows(t *testing.T) {
	names := []string{"note", "title", "users"}
	for _, c := range []struct {
		value, said, want string
	}{
		{"note", `Property "note.title" of projects/p/documents/users/u/note/x: too long`, `Property "note.title" of projects/p/documents/users/u/note/x: too long`},
		{"users", "no such path: projects/p/documents/users/u", "no such path: projects/p/documents/users/u"},
		{"Prop", "Property title is too long", "Property title is too long"},
		{"1000", "1000 bytes are allowed, and it has 21000", "1000 bytes are allowed, and it has 21000"},
		{"1000", `the value "1000" of title`, `the value "…" of title`},
		{"title", `string_value:"title" in title`, `string_value:"…" in title`},
		{"Ann", "Ann", "Ann"}, // too short
		{"Anna", "title of Anna, Annabel and 'Anna'", "title of …, Annabel and '…'"},
		{"Ännä", "Ännäx and Ännä", "Ännäx and …"},
		{"(hi)", "x(hi)x", "x…x"},
		{"dear Ann, dear Bob", "xdear Ann, dear Bobx", "x…x"},
		{"dear Ann, dear Bob", "in dear Ann, dear B", "in …"}, // as a server cuts it off
		{"918273645546372819", "integer_value:918273645546372819", "integer_value:…"},
		{"note", "authorization: Bearer cAnArY77 of note", "authorization: Bearer … of note"},
	} {
		err := messages.RedactRows(fmt.Errorf("%w: %s", io.ErrUnexpectedEOF, c.said), []string{c.value}, names)
		if _, got, _ := strings.Cut(err.Error(), ": "); got != c.want || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q in %q became %q", c.value, c.said, err)
		}
	}
}
