package s3

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/tidemark-sync/tidemark/messages"
)

// Request is one request to S3 that a device wants to make and that its backend signs.
// It travels as JSON.
type Request struct {
	Method string `json:"method"`
	// Key is the object's, prefix included; "" for a listing, whose prefix is in Query.
	Key string `json:"key"`
	// Query has uploads, uploadId and partNumber of an upload in parts, and what a listing
	// needs.
	Query url.Values `json:"query,omitempty"`
	// Header has what must be signed with the URL: conditions, a range, checksums.
	Header http.Header `json:"header,omitempty"`
	// Size of the body in bytes.
	Size int64 `json:"size,omitempty"`
}

// Presigner asks the application's backend for a URL that allows one request, for as long
// as an attempt may take to begin; Signer makes it there. It is called anew for every
// attempt and by several goroutines. An error that wraps one of messages' classes keeps
// it, any other one counts as messages.ErrUnavailable; messages.ErrUnauthorized means that
// the user is signed out, or that the backend does not sign such requests.
//
// A backend may refuse listings: then what a crash left behind is not found, and stays
// until a person or a lifecycle rule removes it. It may not refuse anything else.
type Presigner func(ctx context.Context, r Request) (signedURL string, err error)

// nowhere takes the place of an endpoint and a bucket that only the backend knows.
const nowhere = "https://presigned.invalid"

// Presigned makes a Store of a folder of a bucket, such as "users/alice", on a device that
// holds no key: the backend signs every request. Nothing of the environment is looked at.
func Presigned(prefix string, sign Presigner) (*Store, error) {
	if sign == nil {
		return nil, fmt.Errorf("s3: open: there is no presigner: %w", messages.ErrRejected)
	}
	const bucket = "bucket"
	client := s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(nowhere), UsePathStyle: true,
		// Nothing is signed with these; without any the client asks no signer.
		Credentials:  credentials.NewStaticCredentialsProvider("none", "none", ""),
		HTTPSignerV4: asking{sign, "/" + bucket},
		// The checksum that is signed protects the body, so it need not be hashed again.
		APIOptions: []func(*middleware.Stack) error{v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware},
	})
	return New(client, bucket, prefix)
}

// asking takes the place of a signer with keys.
type asking struct {
	sign   Presigner
	bucket string // the path of the bucket
}

// signError is a failure of the backend, and not of S3.
type signError struct{ err error }

func (e *signError) Error() string { return "ask for a signed URL: " + e.err.Error() }
func (e *signError) Unwrap() error { return e.err }

// SignHTTP implements the client's port.
func (a asking) SignHTTP(ctx context.Context, _ aws.Credentials, r *http.Request, _, _, _ string, _ time.Time, _ ...func(*v4.SignerOptions)) error {
	path, err := url.PathUnescape(r.URL.EscapedPath())
	if err != nil {
		return &signError{err}
	}
	key, ours := strings.CutPrefix(path, a.bucket)
	if !ours {
		return &signError{fmt.Errorf("the request has the path %q: %w", path, messages.ErrRejected)}
	}
	ask := Request{Method: r.Method, Key: strings.TrimPrefix(key, "/"), Query: r.URL.Query(), Header: http.Header{}, Size: r.ContentLength}
	ask.Query.Del("x-id") // the client's own remark
	// A URL's signature covers no hash of the body, and has the time in it.
	for _, name := range []string{"X-Amz-Content-Sha256", "X-Amz-Date", "X-Amz-Security-Token", "Authorization"} {
		r.Header.Del(name)
	}
	for name, values := range r.Header {
		if signedHeaders[name] {
			ask.Header[name] = values
		}
	}
	text, err := a.sign(ctx, ask)
	if err != nil {
		return &signError{err}
	}
	signed, err := url.Parse(text)
	if err != nil || signed.Scheme != "http" && signed.Scheme != "https" || signed.Host == "" {
		return &signError{fmt.Errorf("the answer is no URL: %w", messages.ErrRejected)} // it may be half a secret: not a word of it
	}
	query := signed.Query()
	for name := range r.Header {
		for q := range query {
			if strings.EqualFold(q, name) { // some signers move headers into the URL
				r.Header.Del(name)
			}
		}
	}
	r.URL, r.Host = signed, signed.Host
	return nil
}

// signedHeaders are those that change what a request does.
var signedHeaders = map[string]bool{
	"If-Match": true, "If-None-Match": true, "Range": true, "Content-Type": true, "Content-Md5": true,
	"X-Amz-Checksum-Crc32": true, "X-Amz-Checksum-Algorithm": true, "X-Amz-Sdk-Checksum-Algorithm": true, "X-Amz-Checksum-Mode": true, "X-Amz-Checksum-Type": true,
}
