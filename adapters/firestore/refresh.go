package firestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Session is a signed-in user as Firebase Auth's SDKs and REST API know one.
type Session struct {
	// APIKey is the project's web API key. It is no secret, but no log needs it.
	APIKey string
	// RefreshToken returns the user's refresh token, which came with the sign-in. It is
	// asked whenever an ID token is needed, so that an application can change it; ""
	// means that nobody is signed in.
	RefreshToken func(ctx context.Context) (string, error)
	// Endpoint exchanges refresh tokens: https, or http on this machine. "" is Google's,
	// or that of the Firebase Auth emulator when FIREBASE_AUTH_EMULATOR_HOST is set.
	Endpoint string
}

const (
	googleTokens   = "https://securetoken.googleapis.com/v1/token" //nolint:gosec // an address
	refreshTimeout = 30 * time.Second
	// early is how long before its end a token is replaced: a request may be long under
	// way, and clocks differ.
	early = 5 * time.Minute
)

// RefreshTokens is a TokenSource that exchanges the session's refresh token for ID
// tokens, and keeps each until shortly before it expires. When the user was deleted or
// disabled, or the refresh token was revoked, it returns messages.ErrSignedOut.
func RefreshTokens(s Session) (TokenSource, error) {
	r, err := newRefresher(s)
	if err != nil {
		return nil, err
	}
	return r.token, nil
}

func newRefresher(s Session) (*refresher, error) {
	if s.APIKey == "" || s.RefreshToken == nil {
		return nil, fmt.Errorf("firestore: a session needs the project's web API key and the user's refresh token: %w", messages.ErrRejected)
	}
	plainly := false
	if s.Endpoint == "" {
		s.Endpoint = googleTokens
		if host := os.Getenv("FIREBASE_AUTH_EMULATOR_HOST"); host != "" {
			s.Endpoint, plainly = "http://"+host+"/securetoken.googleapis.com/v1/token", true
		}
	}
	endpoint, err := url.Parse(s.Endpoint)
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "https" && !(endpoint.Scheme == "http" && (plainly || loopback(endpoint.Hostname()))) {
		return nil, fmt.Errorf("firestore: the endpoint for tokens is not an https URL: %w", messages.ErrRejected)
	}
	endpoint.RawQuery = url.Values{"key": {s.APIKey}}.Encode()
	return &refresher{
		session: s, url: endpoint.String(), now: time.Now, turn: make(chan struct{}, 1),
		// A redirect would carry the refresh token elsewhere.
		client: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// refresher asks for one token at a time.
type refresher struct {
	session Session
	url     string
	client  *http.Client
	now     func() time.Time
	turn    chan struct{} // held by who reads or changes what is below
	from    string        // the refresh token that the session gave
	next    string        // the one to use instead: the server may give another
	id      string
	until   time.Time
}

func (r *refresher) token(ctx context.Context, refused string) (string, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("%w: %w", messages.ErrUnavailable, ctx.Err())
	}
	from, err := r.session.RefreshToken(ctx)
	if err != nil {
		return "", err
	}
	if from == "" {
		r.id, r.from, r.next = "", "", ""
		return "", messages.ErrSignedOut
	}
	if from != r.from { // somebody signed in
		r.from, r.next, r.id = from, from, ""
	}
	// By the wall clock: the other one stands still while a machine sleeps.
	if r.id != "" && r.id != refused && r.now().Round(0).Before(r.until) {
		return r.id, nil
	}
	answer, err := r.exchange(ctx)
	if err != nil {
		return "", err
	}
	r.id, r.until = answer.ID, r.now().Round(0).Add(answer.lifetime-min(early, answer.lifetime/2))
	if answer.Refresh != "" {
		r.next = answer.Refresh
	}
	return r.id, nil
}

type tokenAnswer struct {
	ID       string `json:"id_token"`
	Refresh  string `json:"refresh_token"`
	Expires  string `json:"expires_in"` // seconds
	lifetime time.Duration
}

// exchange asks for an ID token. No error of its repeats what was sent.
func (r *refresher) exchange(ctx context.Context) (tokenAnswer, error) {
	var out tokenAnswer
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {r.next}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, strings.NewReader(form.Encode()))
	if err != nil {
		return out, fmt.Errorf("the request for a token cannot be made: %w", messages.ErrRejected)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := r.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL, which has the key in it
		}
		return out, fmt.Errorf("%w: %w", messages.ErrUnavailable, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return out, fmt.Errorf("%w: %w", messages.ErrUnavailable, err)
	}
	if resp.StatusCode != http.StatusOK {
		return out, refusal(resp.StatusCode, raw)
	}
	if err := json.Unmarshal(raw, &out); err != nil || out.ID == "" {
		return out, fmt.Errorf("the token server answered with something else: %w", messages.ErrUnavailable)
	}
	seconds, err := strconv.ParseInt(out.Expires, 10, 32)
	if err != nil || seconds <= 0 {
		return out, fmt.Errorf("the token server does not say how long its token holds: %w", messages.ErrUnavailable)
	}
	out.lifetime = time.Duration(seconds) * time.Second
	return out, nil
}

// over are the answers to a refresh token that will never be taken again.
var over = map[string]string{
	"TOKEN_EXPIRED": "the sign-in was revoked", "INVALID_REFRESH_TOKEN": "the refresh token is not one", "MISSING_REFRESH_TOKEN": "the refresh token is empty",
	"USER_DISABLED": "the user was disabled", "USER_NOT_FOUND": "the user was deleted",
}

// refusal is what an answer of the token server means.
func refusal(code int, body []byte) error {
	var answer struct {
		Error struct {
			Message string `json:"message"`
			Status  string `json:"status"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &answer) // what is no JSON says nothing
	reason, _, _ := strings.Cut(answer.Error.Message, " ")
	why, known := over[reason]
	switch {
	case known:
		return fmt.Errorf("%w: %s: sign in again", messages.ErrSignedOut, why)
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500:
		return fmt.Errorf("the token server answers %d: %w", code, messages.ErrUnavailable)
	case code >= 400 && answer.Error.Status != "":
		return fmt.Errorf("the token server answers %d (%s): look at the web API key and the project it belongs to: %w", code, plainCode(answer.Error.Status), messages.ErrUnauthorized)
	}
	return fmt.Errorf("the token server answers %d, which is not its way: a proxy on the way? %w", code, messages.ErrUnavailable)
}

// plainCode keeps of a server's word what can be one of Google's.
func plainCode(s string) string {
	if len(s) > 40 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != "" {
		return "no known reason"
	}
	return s
}
