package firestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tidemark-sync/tidemark/messages"
)

// gate lets those in who bring the token that is valid now.
type gate struct {
	pb.UnimplementedFirestoreServer
	mu    sync.Mutex
	valid string
	seen  []string // the tokens, in their order
	midst bool     // a query ends as expired after its first document
}

func (g *gate) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	token := strings.Join(md.Get("authorization"), ", ")
	g.seen = append(g.seen, token)
	if token != "Bearer "+g.valid {
		return status.Error(codes.Unauthenticated, "Missing or invalid authentication.")
	}
	return nil
}

func (g *gate) Commit(ctx context.Context, r *pb.CommitRequest) (*pb.CommitResponse, error) {
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	return &pb.CommitResponse{WriteResults: []*pb.WriteResult{{UpdateTime: timestamppb.Now()}}}, nil
}

func (g *gate) RunQuery(_ *pb.RunQueryRequest, s pb.Firestore_RunQueryServer) error {
	if err := g.check(s.Context()); err != nil {
		return err
	}
	now := timestamppb.Now()
	for i := range 2 {
		if err := s.Send(&pb.RunQueryResponse{ReadTime: now, Document: &pb.Document{Name: fmt.Sprint("a/b/t/", i), CreateTime: now, UpdateTime: now}}); err != nil {
			return err
		}
		if g.midst {
			return status.Error(codes.Unauthenticated, "the token has expired")
		}
	}
	return nil
}

func (g *gate) BatchGetDocuments(_ *pb.BatchGetDocumentsRequest, s pb.Firestore_BatchGetDocumentsServer) error {
	if err := g.check(s.Context()); err != nil {
		return err
	}
	return s.Send(&pb.BatchGetDocumentsResponse{ReadTime: timestamppb.Now()})
}

func (g *gate) open(t *testing.T, source TokenSource) *Remote {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterFirestoreServer(s, g)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	r, err := Open(t.Context(), Config{Project: "p", Scope: "users/alice", Emulator: l.Addr().String(), User: source})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// calls are all that a Remote asks.
func calls(r *Remote) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"commit":  func(ctx context.Context) error { _, err := r.Commit(ctx, someCommit); return err },
		"devices": func(ctx context.Context) error { _, err := r.Devices(ctx, 0); return err },
		"device":  func(ctx context.Context) error { _, err := r.Device(ctx, "d"); return err },
		"lookup":  func(ctx context.Context) error { _, err := r.Documents(ctx, "t", []string{"a"}, 1); return err },
		"read":    func(ctx context.Context) error { return read(ctx, r) },
	}
}

func TestATokenThatExpiresIsReplacedOnce(t *testing.T) {
	g := &gate{valid: "second"}
	source := func(_ context.Context, refused string) (string, error) {
		if refused == "first" {
			return "second", nil
		}
		return "first", nil
	}
	r := g.open(t, source)
	for name, call := range calls(r) {
		g.seen = nil
		if err := call(t.Context()); err != nil || fmt.Sprint(g.seen) != "[Bearer first Bearer second]" {
			t.Errorf("%s: %v, with %v", name, err, g.seen)
		}
	}
	// One that is refused, too, is not tried for ever.
	g.valid = "third"
	for name, call := range calls(r) {
		g.seen = nil
		err := call(t.Context())
		one(t, name, err, messages.ErrUnauthorized)
		if len(g.seen) != 2 || errors.Is(err, messages.ErrSignedOut) || !strings.Contains(err.Error(), "sign in again") {
			t.Errorf("%s: %v, with %v", name, err, g.seen)
		}
	}
}

// What was handed on cannot be asked for again here: whoever tries again gets the rest
// with another token.
func TestATokenThatExpiresInTheMiddleOfAnAnswer(t *testing.T) {
	g := &gate{valid: "old", midst: true}
	var asked []string
	r := g.open(t, func(_ context.Context, refused string) (string, error) {
		asked = append(asked, refused)
		if refused == "old" {
			return "new", nil
		}
		return "old", nil
	})
	one(t, "read", read(t.Context(), r), messages.ErrUnavailable)
	g.midst, g.valid = false, "new"
	if err := read(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%q", asked); got != `["" "old"]` {
		t.Errorf("the source was asked with %s", got)
	}
}

// A source that gets another token whenever it is told of a refused one, as Google's
// SDKs do, does it once.
func TestATokenThatWasReplacedIsRefusedNoMore(t *testing.T) {
	g := &gate{valid: "token 0", midst: true}
	refreshed := 0
	r := g.open(t, func(_ context.Context, refused string) (string, error) {
		if refused != "" {
			refreshed++
		}
		return fmt.Sprint("token ", refreshed), nil
	})
	one(t, "read", read(t.Context(), r), messages.ErrUnavailable)
	g.midst, g.valid = false, "token 1"
	for range 3 {
		if err := read(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if refreshed != 1 {
		t.Errorf("one token was refused, and %d were replaced", refreshed)
	}
}

func TestWhatATokenSourceSays(t *testing.T) {
	for _, c := range []struct {
		token string
		err   error
		want  error
	}{
		{"", messages.ErrSignedOut, messages.ErrUnauthorized},
		{"", nil, messages.ErrUnauthorized},
		{"", errors.New("the app's keychain is locked"), messages.ErrUnavailable},
		{"", fmt.Errorf("no: %w", messages.ErrUnauthorized), messages.ErrUnauthorized},
	} {
		g := &gate{valid: "x"}
		r := g.open(t, func(context.Context, string) (string, error) { return c.token, c.err })
		for name, call := range calls(r) {
			err := call(t.Context())
			one(t, fmt.Sprint(name, c.err), err, c.want)
			if signedOut := c.err == nil || errors.Is(c.err, messages.ErrSignedOut); errors.Is(err, messages.ErrSignedOut) != signedOut {
				t.Errorf("%s: %v: is it a sign-out?", name, err)
			}
		}
		if len(g.seen) > 0 {
			t.Errorf("%v: %d requests were sent all the same", c.err, len(g.seen))
		}
	}
	r := (&gate{}).open(t, func(ctx context.Context, _ string) (string, error) { <-ctx.Done(); return "", ctx.Err() })
	for name, call := range calls(r) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := call(ctx)
		one(t, name, err, nil)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want the caller's end", name, err)
		}
	}
}

// An operator's credentials for one user's scope are worth a word; a user's are not.
func TestCaution(t *testing.T) {
	t.Setenv("FIRESTORE_EMULATOR_HOST", "")
	user := func(context.Context, string) (string, error) { return "t", nil }
	for _, c := range []struct {
		cfg  Config
		want bool
	}{
		{Config{Scope: "users/alice"}, true},
		{Config{Scope: "apps/notes/Users/alice"}, true},
		{Config{Scope: "users/alice", User: user}, false},
		{Config{Scope: "teams/red"}, false},
		{Config{}, false},
		{Config{Scope: "users/alice", Emulator: "127.0.0.1:1"}, false},
	} {
		c.cfg.Project = "p"
		r, err := Open(t.Context(), c.cfg, option.WithoutAuthentication())
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Caution(); (got != "") != c.want || c.want && !strings.Contains(got, c.cfg.Scope) {
			t.Errorf("%+v: %q", c.cfg, got)
		}
		_ = r.Close()
	}
}

// Without the emulator a token travels in TLS or not at all.
func TestATokenNeverTravelsInTheClear(t *testing.T) {
	t.Setenv("FIRESTORE_EMULATOR_HOST", "")
	g := &gate{valid: "t"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterFirestoreServer(s, g)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	r, err := Open(t.Context(), Config{Project: "p", User: func(context.Context, string) (string, error) { return "t", nil }}, option.WithEndpoint(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	_, err = r.Commit(t.Context(), someCommit)
	one(t, "commit", err, messages.ErrUnavailable)
	if len(g.seen) > 0 {
		t.Error("the token was sent without TLS")
	}
}

// tokenServer plays securetoken.googleapis.com.
type tokenServer struct {
	answer  func(w http.ResponseWriter)
	refresh string // what it gives beside the token, unless empty
	asked   []string
	given   int
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked = append(s.asked, r.FormValue("refresh_token"))
	if r.Method != http.MethodPost || r.URL.Query().Get("key") != "canary-key" || r.FormValue("grant_type") != "refresh_token" {
		http.Error(w, "not how it is asked", http.StatusNotFound)
		return
	}
	if s.answer != nil {
		s.answer(w)
		return
	}
	s.given++
	_ = json.NewEncoder(w).Encode(map[string]string{"id_token": fmt.Sprint("id", s.given), "expires_in": "3600", "refresh_token": s.refresh, "user_id": "alice"})
}

// refresherOf exchanges the session's refresh token at an endpoint; it is given a clock.
func refresherOf(t *testing.T, endpoint string, session *string) (*refresher, *time.Time) {
	t.Helper()
	r, err := newRefresher(Session{APIKey: "canary-key", RefreshToken: func(context.Context) (string, error) { return *session, nil }, Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1e9, 0)
	r.now = func() time.Time { return now }
	return r, &now
}

func (s *tokenServer) start(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return server.URL
}

func TestRefreshedTokensAreKept(t *testing.T) {
	s := &tokenServer{refresh: "rotated"}
	session := "canary-refresh"
	r, now := refresherOf(t, s.start(t), &session)
	want := func(refused, token string, asked ...string) {
		t.Helper()
		got, err := r.token(t.Context(), refused)
		if err != nil || got != token || fmt.Sprint(s.asked) != fmt.Sprint(asked) {
			t.Fatalf("%s %v after %v, want %s after %v", got, err, s.asked, token, asked)
		}
	}
	want("", "id1", "canary-refresh")
	*now = now.Add(54 * time.Minute)
	want("", "id1", "canary-refresh")
	*now = now.Add(2 * time.Minute) // less than five minutes are left
	want("", "id2", "canary-refresh", "rotated")
	want("id1", "id2", "canary-refresh", "rotated") // somebody's request with the old one was refused
	want("id2", "id3", "canary-refresh", "rotated", "rotated")
	session = "canary-other" // somebody else signed in
	want("", "id4", "canary-refresh", "rotated", "rotated", "canary-other")
	session = ""
	if _, err := r.token(t.Context(), ""); !errors.Is(err, messages.ErrSignedOut) {
		t.Fatal(err)
	}
}

func TestWhatTheTokenServerAnswers(t *testing.T) {
	google := func(code int, message, word string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.WriteHeader(code)
			_, _ = fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"status":%q}}`, code, message, word)
		}
	}
	plain := func(code int, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(code); _, _ = w.Write([]byte(body)) }
	}
	for name, c := range map[string]struct {
		answer    func(http.ResponseWriter)
		want      error
		signedOut bool
	}{
		"revoked":       {google(400, "TOKEN_EXPIRED", "INVALID_ARGUMENT"), messages.ErrUnauthorized, true},
		"disabled":      {google(400, "USER_DISABLED : by an administrator", "INVALID_ARGUMENT"), messages.ErrUnauthorized, true},
		"deleted":       {google(400, "USER_NOT_FOUND", "INVALID_ARGUMENT"), messages.ErrUnauthorized, true},
		"no such token": {google(400, "INVALID_REFRESH_TOKEN", "INVALID_ARGUMENT"), messages.ErrUnauthorized, true},
		"wrong key":     {google(400, "API key not valid: canary-key", "INVALID_ARGUMENT"), messages.ErrUnauthorized, false},
		"other project": {google(403, "blocked for canary-refresh", "PERMISSION_DENIED"), messages.ErrUnauthorized, false},
		"quota":         {google(429, "QUOTA", "RESOURCE_EXHAUSTED"), messages.ErrUnavailable, false},
		"ill":           {google(503, "", "UNAVAILABLE"), messages.ErrUnavailable, false},
		"a proxy":       {plain(403, "<html>canary-refresh</html>"), messages.ErrUnavailable, false},
		"a portal":      {plain(200, "<html>please log in</html>"), messages.ErrUnavailable, false},
		"a redirect": {func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, messages.ErrUnavailable, false},
		"no token":       {plain(200, `{"expires_in":"3600"}`), messages.ErrUnavailable, false},
		"no end":         {plain(200, `{"id_token":"x"}`), messages.ErrUnavailable, false},
		"a negative end": {plain(200, `{"id_token":"x","expires_in":"-1"}`), messages.ErrUnavailable, false},
	} {
		session := "canary-refresh"
		r, _ := refresherOf(t, (&tokenServer{answer: c.answer}).start(t), &session)
		_, err := r.token(t.Context(), "")
		one(t, name, err, c.want)
		if errors.Is(err, messages.ErrSignedOut) != c.signedOut {
			t.Errorf("%s: %v: is it a sign-out?", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: a secret is in the error: %v", name, err)
		}
	}
	session := "canary-refresh"
	r, _ := refresherOf(t, "http://127.0.0.1:1/nobody", &session)
	_, err := r.token(t.Context(), "")
	one(t, "nobody listens", err, messages.ErrUnavailable)
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("a secret is in the error: %v", err)
	}
}

func TestASessionThatCannotBe(t *testing.T) {
	some := func(context.Context) (string, error) { return "r", nil }
	for _, s := range []Session{{}, {APIKey: "k"}, {RefreshToken: some}, {APIKey: "k", RefreshToken: some, Endpoint: "ftp://x/"}, {APIKey: "k", RefreshToken: some, Endpoint: "http://tokens.example/"}, {APIKey: "k", RefreshToken: some, Endpoint: "\x00"}} {
		_, err := RefreshTokens(s)
		one(t, s.Endpoint, err, messages.ErrRejected)
	}
}
