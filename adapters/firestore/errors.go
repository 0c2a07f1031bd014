package firestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark-sync/tidemark/messages"
)

const loginRemedy = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file (FIRESTORE_EMULATOR_HOST for the emulator)"

// openError classifies what the client says before it has sent anything.
func openError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("firestore: open: %w", ctx.Err())
	}
	text := strings.ToLower(err.Error())
	err = messages.Redact(err)
	if errors.Is(err, fs.ErrNotExist) || strings.Contains(text, "credential") {
		return fmt.Errorf("firestore: open: %w: %s: %w", messages.ErrUnauthorized, loginRemedy, err)
	}
	return fmt.Errorf("firestore: open: %w: %w", messages.ErrRejected, err)
}

// callerError is the error of a caller's context that has ended, nil when it has
// not: a cancelled one belongs to no class, a deadline is like any other silence.
func callerError(ctx context.Context, op string) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("firestore: %s: %w: %w", op, messages.ErrUnavailable, err)
	default:
		return fmt.Errorf("firestore: %s: %w", op, err)
	}
}

// readError classifies the failure of a read; at is its read time, 0 for none.
func (r *Remote) readError(ctx, call context.Context, op string, at int64, err error) error {
	if err := callerError(ctx, op); err != nil {
		return err
	}
	if errors.Is(context.Cause(call), context.DeadlineExceeded) {
		return fmt.Errorf("firestore: %s: no answer for %v: %w", op, r.timeout, messages.ErrUnavailable)
	}
	if errors.As(err, new(tokenError)) {
		return fmt.Errorf("firestore: %s: %w", op, err)
	}
	code, text := status.Code(err), strings.ToLower(status.Convert(err).Message())
	err = messages.Redact(err)
	if at != 0 && (code == codes.FailedPrecondition || code == codes.InvalidArgument) && tooOld(text) {
		return fmt.Errorf("firestore: %s: %w: %w", op, messages.ErrReadTimeTooOld, err)
	}
	if code == codes.FailedPrecondition && strings.Contains(text, "index") {
		return fmt.Errorf("firestore: %s: %w: the single-field indexes on %s and %s must not be switched off: %w", op, messages.ErrRejected, stamp, uploadedOn, err)
	}
	return r.classified(op, err)
}

// tooOld knows Firestore's texts "read_time is too old" and "The requested
// snapshot version is too old", and the emulator's.
func tooOld(text string) bool {
	return strings.Contains(text, "too old") || strings.Contains(text, "read_time") || strings.Contains(text, "read time")
}

// commitError classifies the failure of a commit: there, a condition that does not
// hold is a conflict. writes are what it sent: an answer may quote them.
func (r *Remote) commitError(ctx context.Context, op string, err error, writes []messages.Write) error {
	if err := callerError(ctx, op); err != nil {
		return err
	}
	if errors.As(err, new(tokenError)) {
		return fmt.Errorf("firestore: %s: %w", op, err)
	}
	text := status.Convert(err).Message()
	err = messages.RedactRows(err, values(writes), r.names(writes))
	switch status.Code(err) {
	case codes.AlreadyExists:
		return fmt.Errorf("firestore: %s: %w: %w", op, messages.ErrConflict, err)
	case codes.FailedPrecondition:
		// A database of the wrong kind fails like this too, and for ever.
		if !strings.Contains(text, "Datastore Mode") {
			return fmt.Errorf("firestore: %s: %w: %w", op, messages.ErrConflict, err)
		}
	case codes.NotFound:
		// The document to update; the database has no such path.
		if strings.Contains(text, "/documents/") {
			return fmt.Errorf("firestore: %s: %w: %w", op, messages.ErrConflict, err)
		}
	default:
	}
	return r.classified(op, err)
}

func (r *Remote) classified(op string, err error) error {
	class, remedy := classify(err)
	switch {
	case errors.Is(class, messages.ErrNotFound):
		remedy = "create the database (`gcloud firestore databases create`) or correct the project id; looked for " + r.database
	case errors.Is(class, messages.ErrUnauthorized) && r.user != nil && status.Code(err) == codes.Unauthenticated:
		remedy = "sign in again: the server refuses this user's token, also a fresh one"
	case errors.Is(class, messages.ErrUnauthorized) && r.user != nil:
		remedy = "the security rules refuse it to this user: look whether the scope " + r.scope + " is theirs, and deploy the rules that `pipeline firestore-config` prints"
	case errors.Is(class, messages.ErrUnauthorized) && remedy == "":
		remedy = "give this account the role roles/datastore.user in project " + r.project
	}
	if remedy != "" {
		return fmt.Errorf("firestore: %s: %w: %s: %w", op, class, remedy, err)
	}
	return messages.WithRetryAfter(fmt.Errorf("firestore: %s: %w: %w", op, class, err), retryDelay(err))
}

// retryDelay is how long the server asks to be left alone (google.rpc.RetryInfo), or 0.
func retryDelay(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(interface {
			GetRetryDelay() *durationpb.Duration
		}); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// classify is what an answer means wherever it comes from.
func classify(err error) (class error, remedy string) {
	text := strings.ToLower(status.Convert(err).Message())
	switch status.Code(err) {
	case codes.Unauthenticated:
		// Offline, the token cannot be fetched, and that arrives here too.
		if strings.Contains(text, "per-rpc creds failed") && offline(text) {
			return messages.ErrUnavailable, ""
		}
		return messages.ErrUnauthorized, loginRemedy
	case codes.PermissionDenied, codes.Unimplemented:
		// Not Firestore but a proxy on the way.
		if strings.Contains(text, "unexpected http status") || strings.Contains(text, "content-type") {
			return messages.ErrUnavailable, ""
		}
		if status.Code(err) == codes.PermissionDenied {
			return messages.ErrUnauthorized, ""
		}
		return messages.ErrRejected, ""
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition:
		return messages.ErrRejected, ""
	case codes.NotFound:
		return messages.ErrNotFound, ""
	case codes.ResourceExhausted:
		// A quota passes, a message's size does not.
		if strings.Contains(text, "larger than max") || strings.Contains(text, "exceeds maximum size") {
			return messages.ErrRejected, ""
		}
	case codes.Internal:
		if strings.Contains(text, "marshal") && strings.Contains(text, "utf-8") {
			return messages.ErrRejected, ""
		}
	default: // Unavailable, Aborted, DeadlineExceeded, and what nobody has heard of
	}
	return messages.ErrUnavailable, ""
}

// offline tells a token server that cannot be reached, or is ill, from one that
// refuses.
func offline(text string) bool {
	for _, sign := range []string{"dial ", "no such host", "timeout", "deadline exceeded", "connection re", "unreachable", "eof", "cannot fetch token: 5", "cannot fetch token: 429", "cannot fetch token: 408"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}
