package s3_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/tidemark-sync/tidemark/adapters/s3"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// idToken gives the ID token of the signed-in user, which Firebase's SDK keeps fresh.
type idToken func() (string, error)

// GetIdentityToken implements stscreds.IdentityTokenRetriever.
func (t idToken) GetIdentityToken() ([]byte, error) {
	text, err := t()
	return []byte(text), err
}

// webIdentity turns the ID token into temporary credentials of a role, and asks for new
// ones before they expire. Nothing is signed with a key of the application's.
func webIdentity(region, role, session string, token idToken, opts ...func(*sts.Options)) aws.CredentialsProvider {
	client := sts.New(sts.Options{Region: region}, opts...)
	return aws.NewCredentialsCache(stscreds.NewWebIdentityRoleProvider(client, role, token, func(o *stscreds.WebIdentityRoleOptions) {
		o.RoleSessionName = session
	}))
}

// The app's user has signed in with Firebase. The role trusts
// securetoken.google.com/PROJECT and has the policy that `pipeline s3-policy iam` prints.
func ExampleFromConfig() {
	current := func() (string, error) { return "the ID token of the signed-in user", nil }
	store, err := s3.FromConfig(aws.Config{
		Region:      "eu-central-1",
		Credentials: webIdentity("eu-central-1", "arn:aws:iam::123456789012:role/app-user", "alice", current),
	}, s3.Config{Bucket: "my-bucket", Prefix: "users/alice"})
	if err != nil {
		log.Fatal(err)
	}
	_ = store // for tidemark.New
}

// A device holds no key: its backend, which knows who is signed in, signs each request.
func ExamplePresigned() {
	store, err := s3.Presigned("users/alice", func(ctx context.Context, r s3.Request) (string, error) {
		// Send r as JSON to the backend, with the user's ID token; it answers with the
		// URL. There:
		//
		//	url, err := s3.Signer{Bucket: "my-bucket", Region: "eu-central-1", Credentials: keys}.Sign(ctx, "users/"+uid, r)
		return "", messages.ErrUnauthorized
	})
	if err != nil {
		log.Fatal(err)
	}
	_ = store // for tidemark.New
}

// Temporary credentials are asked for with the user's token, again when they have expired,
// and a user who has signed out is told apart from a server that is down.
func TestTemporaryCredentialsOfTheSignedInUser(t *testing.T) {
	owner := servers.S3(t)
	account := owner.Account(t)
	policy, err := s3.DevicePolicy(owner.Bucket, "users/alice", false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range policy.Statement {
		policy.Statement[i].Principal = account.AccessKey
	}
	owner.PutPolicy(t, policy)

	var tokens []string
	status := http.StatusOK
	fake := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the request for credentials is signed")
		}
		if status != http.StatusOK {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>m</Message></Error></ErrorResponse>")
			return
		}
		tokens = append(tokens, r.FormValue("WebIdentityToken"))
		// They have expired when they arrive, so every call asks for new ones.
		fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey>
			<SessionToken></SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
			account.AccessKey, account.SecretKey, time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	}))
	defer fake.Close()

	var signedOut error
	n := 0
	token := idToken(func() (string, error) { n++; return fmt.Sprint("token ", n), signedOut })
	store, err := s3.FromConfig(aws.Config{Region: owner.Region, Credentials: webIdentity(owner.Region, "arn:aws:iam::123456789012:role/app-user", "alice", token, func(o *sts.Options) {
		o.BaseEndpoint, o.RetryMaxAttempts = aws.String(fake.URL), 1
	})}, s3.Config{Bucket: owner.Bucket, Prefix: "users/alice", Endpoint: owner.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	put := func() error {
		_, err := store.Put(t.Context(), "x", strings.NewReader("x"), messages.Condition{})
		return err
	}
	for range 2 {
		if err := put(); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(tokens); got != "[token 1 token 2]" {
		t.Errorf("the tokens that came: %s", got)
	}
	for _, c := range []struct {
		name   string
		status int
		out    error
		want   string
	}{
		{"the token is refused", http.StatusBadRequest, nil, "unauthorized"},
		{"the server of credentials is ill", http.StatusServiceUnavailable, nil, "unavailable"},
		{"the user has signed out", http.StatusOK, errors.New("nobody is signed in"), "unauthorized"},
	} {
		status, signedOut = c.status, c.out
		if err := put(); messages.Class(err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		} else if strings.Contains(err.Error(), "token ") || strings.Contains(err.Error(), account.SecretKey) {
			t.Errorf("%s: a secret is in the error: %v", c.name, err)
		}
	}
}
