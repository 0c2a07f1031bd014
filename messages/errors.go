package messages

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Every failure of a remote or a snapshot store wraps exactly one of these
// classes; callers branch with errors.Is and never on a text.
var (
	// ErrUnavailable: the far side did not answer, or asked to be left alone for
	// a while. The request may or may not have taken effect. Try again later.
	ErrUnavailable = errors.New("unavailable")
	// ErrConflict: a precondition did not hold; nothing was written. Read again.
	ErrConflict = errors.New("conflict")
	// ErrRejected: the request itself can never be accepted (too large, invalid).
	ErrRejected = errors.New("rejected")
	// ErrUnauthorized: no credentials, or they do not reach this scope.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrNotFound: the named thing (object, project, bucket) does not exist.
	ErrNotFound = errors.New("not found")
	// ErrNoStore: where snapshots were to be there is nothing that could hold one, such as
	// a bucket. It is ErrNotFound.
	ErrNoStore = Saying(ErrNotFound, "there is no such store")
	// ErrForgotten: this device, or the whole scope, was forgotten. It is ErrNotFound.
	ErrForgotten = Saying(ErrNotFound, "forgotten")
	// ErrOtherScope: the database, or the snapshots in a store, belong to another remote.
	// It is no class.
	ErrOtherScope = errors.New("the database was synced with another remote")
	// ErrReadTimeTooOld: the read time is beyond what the server still keeps
	// (an hour on Firestore). Check devices again and go on at a new one.
	ErrReadTimeTooOld = errors.New("read time too old")
	// ErrSchemaChanged: the application changed its schema during the sync. Attach, and
	// check devices again.
	ErrSchemaChanged = errors.New("the schema changed during the sync")
)

// saying is an error whose text is a whole sentence, and whose class is for programs.
type saying struct{ sentence, class error }

func (s saying) Error() string   { return s.sentence.Error() }
func (s saying) Unwrap() []error { return []error{s.sentence, s.class} }

// Saying is an error of a class that says what the format says, and no word more.
func Saying(class error, format string, args ...any) error {
	return saying{fmt.Errorf(format, args...), class}
}

// TwoScopes names two that differ for people: a folder's is only an id.
func TwoScopes(one, other string) (string, string) {
	const folder = "file:"
	if strings.HasPrefix(one, folder) {
		one = "a folder"
	}
	if strings.HasPrefix(other, folder) {
		other = "a folder"
	}
	if one == other {
		other = "another one"
	}
	return one, other
}

// OtherScope is ErrOtherScope with both scopes.
func OtherScope(was, is string) error {
	was, is = TwoScopes(was, is)
	return fmt.Errorf("%w: %s, and this is %s", ErrOtherScope, was, is)
}

// ErrSignedOut is ErrUnauthorized because nobody is signed in any more: a token source
// says so. Nothing is sent, and nothing that waits here is lost.
var ErrSignedOut = fmt.Errorf("signed out: %w", ErrUnauthorized)

// What can be wrong with a snapshot itself.
var (
	// ErrDamaged: it is not what its maker uploaded.
	ErrDamaged = errors.New("the snapshot is damaged")
	// ErrWrongKey: none of the keys opens what was encrypted.
	ErrWrongKey = errors.New("none of the keys opens it")
)

// Class names the error's class for reports and dead letters: "unavailable",
// "conflict", "rejected", "unauthorized", "not found", "read time too old",
// "the schema changed during the sync", or "bug" for an error of no class.
func Class(err error) string {
	for _, c := range []error{ErrUnavailable, ErrConflict, ErrRejected, ErrUnauthorized, ErrNotFound, ErrReadTimeTooOld, ErrSchemaChanged} {
		if errors.Is(err, c) {
			return c.Error()
		}
	}
	return "bug"
}

// asked is an error with the wait that the far side asked for.
type asked struct {
	error
	wait time.Duration
}

func (a *asked) Unwrap() error             { return a.error }
func (a *asked) RetryAfter() time.Duration { return a.wait }

// WithRetryAfter adds to an error how long the far side wants to be left alone. Whoever
// tries again finds it with errors.As as interface{ RetryAfter() time.Duration }.
func WithRetryAfter(err error, wait time.Duration) error {
	if err == nil || wait <= 0 {
		return err
	}
	return &asked{err, wait}
}
