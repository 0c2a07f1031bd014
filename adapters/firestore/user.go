package firestore

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tidemark-sync/tidemark/messages"
)

// TokenSource returns an ID token of the signed-in user of Firebase Auth: what
// getIdToken returns in Google's SDKs. It is asked before every request, so it keeps a
// token until shortly before it expires; RefreshTokens is one that does. refused is ""
// or the token that the server has just refused: then another one is wanted.
//
// It returns messages.ErrSignedOut (tidemark.ErrSignedOut) when nobody is signed in:
// nothing is sent, and Sync and Run end with that error. Any other error is taken for
// messages.ErrUnavailable, and tried again, unless it wraps another class. It is called
// from several goroutines at once.
type TokenSource func(ctx context.Context, refused string) (string, error)

// user is who the requests are sent as.
type user struct {
	source TokenSource
	mu     sync.Mutex
	last   string // the token that was sent last
	bad    string // one that the server refused in the middle of an answer
}

// expired reports whether the server ended an answer because of the token: whoever
// tries again gets another one.
func (u *user) expired(err error) bool {
	if u == nil || status.Code(err) != codes.Unauthenticated {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bad = u.last
	return true
}

func (u *user) token(ctx context.Context, refused string) (string, error) {
	u.mu.Lock()
	if refused == "" {
		refused = u.bad
	}
	u.mu.Unlock()
	token, err := u.source(ctx, refused)
	switch {
	case err != nil && messages.Class(err) == "bug":
		return "", fmt.Errorf("the user's token: %w: %w", messages.ErrUnavailable, err)
	case err != nil:
		return "", fmt.Errorf("the user's token: %w", err)
	case token == "":
		return "", fmt.Errorf("the user's token is empty: %w", messages.ErrSignedOut)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last = token
	if token != u.bad {
		u.bad = "" // asked with it again, a source would get another one each time
	}
	return token, nil
}

// tokenError is a failure before anything was sent; it has its class already.
type tokenError struct{ error }

func (e tokenError) Unwrap() error { return e.error }

// signed makes a call as the user. When the server refuses the token it is made once
// more with a fresh one: a token expires in the middle of a cycle. try returns what
// the client said, and must be able to run twice.
func (r *Remote) signed(ctx context.Context, try func(ctx context.Context) error) error {
	if r.user == nil {
		return try(ctx)
	}
	refused := ""
	for {
		token, err := r.user.token(ctx, refused)
		if err != nil {
			return tokenError{err}
		}
		err = try(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token))
		if status.Code(err) != codes.Unauthenticated || refused != "" {
			return err
		}
		refused = token
	}
}

// answers opens a stream as the user. It waits for the first answer, where a refused
// token shows; next returns that one first.
func answers[T any](ctx context.Context, r *Remote, open func(ctx context.Context) (interface{ Recv() (T, error) }, error)) (next func() (T, error)) {
	var stream interface{ Recv() (T, error) }
	var first T
	err := r.signed(ctx, func(ctx context.Context) (err error) {
		if stream, err = open(ctx); err == nil {
			first, err = stream.Recv()
		}
		return err
	})
	begun := false
	return func() (T, error) {
		if begun && err == nil {
			return stream.Recv()
		}
		begun = true
		return first, err
	}
}
