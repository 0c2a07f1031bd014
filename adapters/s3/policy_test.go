package s3

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/tidemark-sync/tidemark/messages"
)

func TestDevicePolicyNamesOnlyTheFolder(t *testing.T) {
	for prefix, want := range map[string][2]string{
		"users/alice":  {"arn:aws:s3:::b/users/alice/*", "users/alice/*"},
		"users/alice/": {"arn:aws:s3:::b/users/alice/*", "users/alice/*"},
		"a*?${x}":      {"arn:aws:s3:::b/a${*}${?}${$}{x}/*", "a${*}${?}${$}{x}/*"},
	} {
		p, err := DevicePolicy("b", prefix, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(p.Statement[0].Resource, p.Statement[1].Condition["StringLike"]["s3:prefix"]); got != fmt.Sprintf("[%s] [%s]", want[0], want[1]) {
			t.Errorf("%s: %s", prefix, got)
		}
	}
	for _, c := range [][2]string{{"", "a"}, {"b", "a/../c"}, {"b", "/"}} {
		if _, err := DevicePolicy(c[0], c[1], false); c[1] != "/" && !errors.Is(err, messages.ErrRejected) {
			t.Errorf("%q: %v", c, err)
		}
	}
}

// The documents are what Amazon's own client takes: nothing in them is unknown to it, and
// nothing is lost.
func TestBucketSettingsAreAmazons(t *testing.T) {
	for _, c := range []struct{ doc, into any }{
		{NoPublicAccess(), &types.PublicAccessBlockConfiguration{}},
		{AbortUploadsRule(), &types.BucketLifecycleConfiguration{}},
	} {
		raw, err := json.Marshal(c.doc)
		if err != nil {
			t.Fatal(err)
		}
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(c.into); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if b := NoPublicAccess(); reflect.ValueOf(b).NumField() != 4 || b != (PublicAccessBlock{true, true, true, true}) {
		t.Errorf("%+v", b)
	}
	if r := AbortUploadsRule().Rules[0]; r.Status != "Enabled" || r.Filter.Prefix != "" || r.AbortIncompleteMultipartUpload.DaysAfterInitiation != 7 {
		t.Errorf("%+v", r)
	}
}

// Amazon answers 403 for an object that does not exist to those who may list only a
// folder: the first backup into it must find that there is no manifest.
func TestARefusalThatMeansThereIsNone(t *testing.T) {
	listed, mayList := "", true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Query().Get("list-type") == "2" && mayList && strings.HasPrefix(r.URL.Query().Get("prefix"), "users/alice/") {
			_, _ = io.WriteString(w, `<ListBucketResult>`+listed+`</ListBucketResult>`)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>m</Message></Error>")
	}))
	defer srv.Close()
	s := open(t, Config{Bucket: "b", Prefix: "users/alice", Endpoint: srv.URL}, "a", "s")
	for _, c := range []struct {
		name, listed string
		mayList      bool
		get, put     error
	}{
		{"there is none", "", true, messages.ErrNotFound, messages.ErrConflict},
		{"another one begins like it", `<Contents><Key>users/alice/manifest.json.old</Key></Contents>`, true, messages.ErrNotFound, messages.ErrConflict},
		{"there is one", `<Contents><Key>users/alice/manifest.json</Key></Contents>`, true, messages.ErrUnauthorized, messages.ErrUnauthorized},
		{"nothing is allowed", "", false, messages.ErrUnauthorized, messages.ErrUnauthorized},
	} {
		listed, mayList = c.listed, c.mayList
		_, _, err := s.Get(t.Context(), "manifest.json", 0)
		one(t, c.name+": get", err, c.get)
		_, err = s.Put(t.Context(), "manifest.json", strings.NewReader("x"), messages.Condition{IfMatch: `"e"`})
		one(t, c.name+": put", err, c.put)
		_, err = s.Put(t.Context(), "manifest.json", strings.NewReader("x"), messages.Condition{IfAbsent: true})
		one(t, c.name+": put what is not there", err, messages.ErrUnauthorized)
	}
}
