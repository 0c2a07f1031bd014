package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/tidemark-sync/tidemark/messages"
)

const (
	loginRemedy  = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws sso login`"
	secretRemedy = "the secret does not belong to this access key: correct AWS_SECRET_ACCESS_KEY, or the profile's"
	regionRemedy = "correct the region, or the endpoint, of the bucket in the configuration"
	clockRemedy  = "set this machine's clock"
)

// ended is the error of a caller's context that has ended: a cancelled one belongs
// to no class, a deadline is like any other silence.
func ended(ctx context.Context, op string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w: %w", op, messages.ErrUnavailable, ctx.Err())
	}
	return fmt.Errorf("%s: %w", op, ctx.Err())
}

// ourEnd reports whether a call ended because we gave it up while the caller still
// waits. Such an error is not passed on: it would look like the caller's own.
func ourEnd(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// failed gives an error its class and its remedy.
func (s *Store) failed(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return ended(ctx, "s3: "+op)
	}
	err = quiet{err}
	if ask := (*signError)(nil); errors.As(err, &ask) {
		if messages.Class(ask) == "bug" {
			return fmt.Errorf("s3: %s: %w: %w", op, messages.ErrUnavailable, err)
		}
		return fmt.Errorf("s3: %s: %w", op, err)
	}
	if ourEnd(err) && !aboutCredentials(err) {
		return fmt.Errorf("s3: %s: no answer in time: %w", op, messages.ErrUnavailable)
	}
	class, remedy := classify(err)
	switch {
	case errors.Is(class, messages.ErrNotFound) && errorCode(err) == "NoSuchBucket":
		class, remedy = messages.ErrNoStore, fmt.Sprintf("create the bucket %s or correct its name", s.bucket)
	case errors.Is(class, messages.ErrUnauthorized) && remedy == "":
		remedy = "allow this account s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload on bucket " + s.bucket
	}
	said := messages.Redact(err, sent(err)...)
	if remedy != "" {
		return fmt.Errorf("s3: %s: %w: %s: %w", op, class, remedy, said)
	}
	return messages.WithRetryAfter(fmt.Errorf("s3: %s: %w: %w", op, class, said), retryAfter(err))
}

// sent are the credentials of the request that err answers: an answer may quote them.
func sent(err error) (secrets []string) {
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &resp) || resp.Response == nil || resp.Response.Response == nil || resp.Response.Request == nil {
		return nil
	}
	request := resp.Response.Request
	secrets = append(secrets, request.Header.Get("X-Amz-Security-Token"))
	if _, signature, ok := strings.Cut(request.Header.Get("Authorization"), "Signature="); ok {
		secrets = append(secrets, signature)
	}
	if request.URL != nil { // a presigned one
		q := request.URL.Query()
		secrets = append(secrets, q.Get("X-Amz-Security-Token"), q.Get("X-Amz-Signature"))
	}
	return secrets
}

// signature is the part of a presigned URL that whoever has it may use.
var signature = regexp.MustCompile(`\?[^\s"]*X-Amz-Signature=[^\s"]*`)

// noise is what the client says of every answer: the call, which we name ourselves, and
// ids that are of use to nobody but the server's operator.
var noise = regexp.MustCompile(`operation error S3: \w+, |https? response error StatusCode: (0|[1-9]\d*), RequestID: [^,]*, (HostID: [^,]*, )?(api error )?|api error `)

// quiet says what an error says, without noise and the signatures of URLs.
type quiet struct{ error }

func (q quiet) Error() string {
	text := signature.ReplaceAllString(q.error.Error(), "?…")
	return noise.ReplaceAllStringFunc(text, func(found string) string {
		if status := noise.FindStringSubmatch(found)[1]; status != "" && status != "0" {
			return "HTTP " + status + ", "
		}
		return ""
	})
}

func (q quiet) Unwrap() error { return q.error }

// expected is how servers name the region in which a bucket is.
var expected = regexp.MustCompile(`expecting ['"]([a-z0-9-]{1,40})['"]`)

// regionOf says in which region the bucket is, where the server told.
func regionOf(err error) string {
	region := ""
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) && resp.Response != nil && resp.Response.Response != nil {
		region = resp.Response.Header.Get("X-Amz-Bucket-Region")
	}
	if region == "" {
		if m := expected.FindStringSubmatch(err.Error()); m != nil {
			region = m[1]
		}
	}
	if !regionName.MatchString(region) {
		return regionRemedy
	}
	return fmt.Sprintf("the bucket is in %s: set ?region=%s in the store's URL, or the region in the configuration", region, region)
}

var regionName = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// retryAfter is how long the server asks to be left alone, in seconds or until a time,
// or 0.
func retryAfter(err error) time.Duration {
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &resp) || resp.Response == nil {
		return 0
	}
	text := resp.Response.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil {
		return time.Duration(min(max(seconds, 0), 86400)) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

func classify(err error) (class error, remedy string) {
	if aboutCredentials(err) {
		return noCredentials(err)
	}
	switch errorCode(err) {
	case "NoSuchBucket", "NoSuchKey", "NotFound":
		return messages.ErrNotFound, ""
	case "PreconditionFailed":
		return messages.ErrConflict, ""
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
		"XAdminUserNotFound": // versitygw's word for an unknown access key
		return messages.ErrUnauthorized, loginRemedy
	case "SignatureDoesNotMatch":
		return messages.ErrUnauthorized, secretRemedy
	case "RequestTimeTooSkewed", "RequestExpired":
		return messages.ErrUnauthorized, clockRemedy
	case "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return messages.ErrRejected, regionOf(err)
	case "RequestTimeout", "SlowDown", "NoSuchUpload", "OperationAborted", "ConditionalRequestConflict",
		"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody":
		// The upload was interrupted, or what arrived is not what was sent.
		return messages.ErrUnavailable, ""
	}
	switch status := httpStatus(err); {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return messages.ErrUnauthorized, ""
	case status == http.StatusNotFound:
		return messages.ErrNotFound, ""
	case status == http.StatusPreconditionFailed:
		return messages.ErrConflict, ""
	case status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status == http.StatusConflict:
		return messages.ErrUnavailable, ""
	case status >= 300 && status < 400:
		return messages.ErrRejected, regionOf(err)
	case status >= 400 && status < 500:
		return messages.ErrRejected, ""
	default:
		return messages.ErrUnavailable, ""
	}
}

// aboutCredentials reports whether the request was never sent because the client
// found nothing to sign it with. What else the error holds is then of the server
// that gives credentials, and not of S3.
func aboutCredentials(err error) bool {
	text := err.Error()
	return strings.Contains(text, "get identity: ") || strings.Contains(text, "get credentials: ")
}

// noCredentials tells a server of credentials that cannot be reached, or is ill,
// from there being none.
func noCredentials(err error) (class error, remedy string) {
	var network net.Error
	// Without any credentials the client asks the machine's own metadata server
	// last, and where there is none that fails like a network.
	if (errors.As(err, &network) || httpStatus(err) >= 500) && !strings.Contains(err.Error(), "IMDS") {
		return messages.ErrUnavailable, ""
	}
	return messages.ErrUnauthorized, loginRemedy
}

// errorCode is the server's code, "" when there was no answer.
func errorCode(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

func httpStatus(err error) int {
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) && resp.Response != nil {
		return resp.HTTPStatusCode()
	}
	return 0
}
