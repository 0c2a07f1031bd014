package s3

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"

	"github.com/tidemark-sync/tidemark/messages"
)

// Signer signs the requests of devices. It belongs on a backend, which has found out who
// asks, and holds the keys that no device gets.
type Signer struct {
	Bucket string
	Region string
	// Endpoint is the URL of a server other than Amazon's; buckets are then named in
	// the path.
	Endpoint    string
	Credentials aws.CredentialsProvider
	// Expires is how long a URL may be used to begin a request; 0 is five minutes.
	Expires time.Duration
}

// Sign returns a URL that allows exactly this request, if it stays within the folder
// prefix and is one that a Store makes; messages.ErrUnauthorized otherwise. The URL is a
// secret until it expires.
func (s Signer) Sign(ctx context.Context, prefix string, r Request) (string, error) {
	if err := allowed(prefix, r); err != nil {
		return "", fmt.Errorf("s3: sign: %w", err)
	}
	base, err := s.base()
	if err != nil {
		return "", fmt.Errorf("s3: sign: %w: %w", messages.ErrRejected, err)
	}
	query := url.Values{}
	maps.Copy(query, r.Query)
	expires := s.Expires
	if expires == 0 {
		expires = 5 * time.Minute
	}
	query.Set("X-Amz-Expires", strconv.Itoa(int(expires.Seconds())))
	base += "/" + httpbinding.EscapePath(r.Key, false)
	req, err := http.NewRequestWithContext(ctx, r.Method, base+"?"+query.Encode(), http.NoBody)
	if err != nil {
		return "", fmt.Errorf("s3: sign: %w: %w", messages.ErrRejected, err)
	}
	req.Header = r.Header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.ContentLength = r.Size
	keys, err := s.Credentials.Retrieve(ctx)
	if err != nil {
		return "", fmt.Errorf("s3: sign: find the keys: %w: %w", messages.ErrUnavailable, err)
	}
	signed, _, err := v4.NewSigner().PresignHTTP(ctx, keys, req, "UNSIGNED-PAYLOAD", "s3", s.Region, time.Now(), func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = true // S3's paths are escaped once
		o.DisableHeaderHoisting = true
	})
	if err != nil {
		return "", fmt.Errorf("s3: sign: %w", err)
	}
	return signed, nil
}

func (s Signer) base() (string, error) {
	if s.Endpoint == "" {
		return "https://" + s.Bucket + ".s3." + s.Region + ".amazonaws.com", nil
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		return "", err
	}
	return u.JoinPath(s.Bucket).String(), nil
}

// allowed refuses what leaves the folder, and what no Store asks for: a device that is
// not what it says may still only do what a device does.
func allowed(prefix string, r Request) error {
	refuse := func(what string) error {
		return fmt.Errorf("%s %s: %s: %w", r.Method, r.Key, what, messages.ErrUnauthorized)
	}
	prefix = strings.TrimSuffix(prefix, "/")
	if err := checkKey(prefix); err != nil {
		return fmt.Errorf("the folder of the user: %w", err)
	}
	for name := range r.Header {
		if !signedHeaders[http.CanonicalHeaderKey(name)] {
			return refuse("the header " + name + " is not one that a device needs")
		}
	}
	names := make([]string, 0, len(r.Query))
	for name, values := range r.Query {
		if len(values) != 1 {
			return refuse("a parameter has several values")
		}
		names = append(names, name)
	}
	slices.Sort(names)
	query := strings.Join(names, " ")
	if r.Key == "" {
		for _, name := range names {
			if !slices.Contains([]string{"list-type", "prefix", "continuation-token", "max-keys"}, name) {
				return refuse("it is no listing")
			}
		}
		if r.Method != http.MethodGet || r.Query.Get("list-type") != "2" || !strings.HasPrefix(r.Query.Get("prefix"), prefix+"/") {
			return refuse("it is no listing of the folder")
		}
		return nil
	}
	if !strings.HasPrefix(r.Key, prefix+"/") || checkKey(r.Key) != nil {
		return refuse("it lies outside of the folder")
	}
	known := map[string][]string{
		http.MethodGet: {""}, http.MethodHead: {""},
		http.MethodPut:    {"", "partNumber uploadId"},
		http.MethodPost:   {"uploads", "uploadId"},
		http.MethodDelete: {"", "uploadId"},
	}
	if !slices.Contains(known[r.Method], query) {
		return refuse("it is no request that a device makes")
	}
	return nil
}
