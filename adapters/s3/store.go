package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"

	"github.com/tidemark-sync/tidemark/messages"
)

// Config says where the objects are.
type Config struct {
	// Bucket must exist.
	Bucket string
	// Prefix is the folder of ours in the bucket, such as "users/alice"; "" is the
	// whole bucket.
	Prefix string
	// Region is the bucket's; "" takes it from the environment, and with an
	// Endpoint "us-east-1".
	Region string
	// Endpoint is the URL of a server other than Amazon's; buckets are then named
	// in the path.
	Endpoint string
	// Timeout bounds the silence of the server: how long a call may go on while no
	// byte of an upload is taken and none of an answer comes, the client's retries
	// included; 0 is DefaultTimeout. The time that the caller takes does not count.
	Timeout time.Duration
}

// DefaultTimeout ends a call whose server has fallen silent, and leaves a slow one
// all the time it needs.
const DefaultTimeout = time.Minute

// Store is a bucket, or a folder of one. It is safe for concurrent use.
type Store struct {
	client *s3.Client
	bucket string
	prefix string // "" or ending in a slash
	// timeout is the silence after which a call is given up.
	timeout time.Duration
	swept   atomic.Bool // stale uploads were looked for
}

// Open finds region and credentials in the environment, as every program of
// Amazon's does, and sends nothing to the bucket. Credentials and anything else
// can be given among opts, for instance config.WithCredentialsProvider.
func Open(ctx context.Context, cfg Config, opts ...func(*config.LoadOptions) error) (*Store, error) {
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("s3: open bucket %q: timeout %v is negative: %w", cfg.Bucket, cfg.Timeout, messages.ErrRejected)
	}
	// What matters comes back as an error; a library does not write to stderr.
	own := []func(*config.LoadOptions) error{config.WithLogger(logging.Nop{})}
	if cfg.Region != "" {
		own = append(own, config.WithRegion(cfg.Region))
	}
	loaded, err := config.LoadDefaultConfig(ctx, append(own, opts...)...)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("s3: open: %w", ctx.Err())
		}
		return nil, fmt.Errorf("s3: open: %w: %w", messages.ErrRejected, messages.Redact(err))
	}
	if loaded.Region == "" && cfg.Endpoint == "" {
		return nil, fmt.Errorf("s3: open bucket %q: no region: set AWS_REGION or the region in the configuration: %w", cfg.Bucket, messages.ErrRejected)
	}
	return FromConfig(loaded, cfg)
}

// FromConfig makes a Store with a configuration that the application brings, such as one
// with temporary credentials of the signed-in user (see the example), and looks at nothing
// in the environment. Config.Region stands before the configuration's.
func FromConfig(loaded aws.Config, cfg Config) (*Store, error) {
	if cfg.Region != "" {
		loaded.Region = cfg.Region
	}
	if loaded.Region == "" && cfg.Endpoint == "" {
		return nil, fmt.Errorf("s3: open bucket %q: the configuration has no region: %w", cfg.Bucket, messages.ErrRejected)
	}
	if loaded.Region == "" {
		loaded.Region = "us-east-1"
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("s3: open bucket %q: timeout %v is negative: %w", cfg.Bucket, cfg.Timeout, messages.ErrRejected)
	}
	s, err := New(s3.NewFromConfig(loaded, func(o *s3.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
			o.UsePathStyle = true
		}
	}), cfg.Bucket, cfg.Prefix)
	if err == nil && cfg.Timeout > 0 {
		s.timeout = cfg.Timeout
	}
	return s, err
}

// New makes a Store of a client that the application has configured itself. The
// client's retries apply to everything but conditional writes, which are tried
// once. A call is given up when the server is silent for DefaultTimeout.
func New(client *s3.Client, bucket, prefix string) (*Store, error) {
	if bucket == "" {
		return nil, fmt.Errorf("s3: open: no bucket: set its name in the configuration: %w", messages.ErrRejected)
	}
	prefix = strings.TrimSuffix(prefix, "/")
	if prefix != "" {
		if err := checkKey(prefix); err != nil {
			return nil, fmt.Errorf("s3: open bucket %q: prefix: %w", bucket, err)
		}
		prefix += "/"
	}
	return &Store{client: client, bucket: bucket, prefix: prefix, timeout: DefaultTimeout}, nil
}

// Place names server, bucket and prefix, in a form that does not show them; "" where only
// the backend that signs knows them.
func (s *Store) Place() string {
	if aws.ToString(s.client.Options().BaseEndpoint) == nowhere {
		return ""
	}
	sum := sha256.Sum256([]byte(aws.ToString(s.client.Options().BaseEndpoint) + "\n" + s.bucket + "/" + s.prefix))
	return "s3:" + hex.EncodeToString(sum[:16])
}

// checkKey refuses what would lie outside of the prefix on a server that keeps
// objects as files, or is another object to one server than to the next.
func checkKey(key string) error {
	wrong := ""
	switch {
	case key == "":
		wrong = "it is empty"
	case !utf8.ValidString(key):
		wrong = "it is not valid UTF-8"
	case strings.ContainsFunc(key, unicode.IsControl):
		wrong = "it has control characters"
	default:
		for segment := range strings.SplitSeq(key, "/") {
			if segment == "" || segment == "." || segment == ".." {
				wrong = fmt.Sprintf("the segment %q is not allowed", segment)
			}
		}
	}
	if wrong != "" {
		return fmt.Errorf("key %q: %s: %w", key, wrong, messages.ErrRejected)
	}
	return nil
}

// maxKeyBytes is S3's limit, prefix included.
const maxKeyBytes = 1024

func (s *Store) key(key string) (*string, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if n := len(s.prefix) + len(key); n > maxKeyBytes {
		return nil, fmt.Errorf("key %q has %d bytes with its prefix, S3 takes %d: %w", key, n, maxKeyBytes, messages.ErrRejected)
	}
	return aws.String(s.prefix + key), nil
}

// counted adds the requests of a call to n, the client's retries included.
func counted(n *int64) func(*s3.Options) {
	count := middleware.FinalizeMiddlewareFunc("CountRequests", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
		*n++
		return next.HandleFinalize(ctx, in)
	})
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Finalize.Insert(count, "Retry", middleware.After)
	})
}

// Get streams an object from the given byte on.
func (s *Store) Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error) {
	op := fmt.Sprintf("get %q", key)
	name, err := s.key(key)
	if err != nil {
		return nil, messages.Object{}, fmt.Errorf("s3: %s: %w", op, err)
	}
	if from < 0 {
		return nil, messages.Object{}, fmt.Errorf("s3: %s from byte %d: %w", op, from, messages.ErrRejected)
	}
	o := messages.Object{Key: key}
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: name}
	if from > 0 {
		in.Range = aws.String("bytes=" + strconv.FormatInt(from, 10) + "-")
	}
	call, stop, guard := s.guarded(ctx)
	out, err := s.client.GetObject(call, in, counted(&o.Requests))
	if err != nil {
		stop()
		if httpStatus(err) == http.StatusRequestedRangeNotSatisfiable {
			return s.getEnd(ctx, op, name, from, o)
		}
		if s.absent(ctx, name, err, &o.Requests) {
			return nil, messages.Object{}, fmt.Errorf("s3: %s: %w: there is no such object", op, messages.ErrNotFound)
		}
		return nil, messages.Object{}, s.failed(ctx, op, err)
	}
	guard.rest()
	o.ETag, o.ModifiedOn = aws.ToString(out.ETag), aws.ToTime(out.LastModified).UnixMilli()
	body := &download{op: "s3: " + op, ctx: ctx, body: out.Body, guard: guard, stop: stop}
	switch total, ok := totalSize(out.ContentRange); {
	case from == 0:
		o.Size = aws.ToInt64(out.ContentLength)
	case ok:
		o.Size = total
	default: // the server knows no ranges and sends everything
		o.Size = aws.ToInt64(out.ContentLength)
		if _, err := io.CopyN(io.Discard, body, from); err != nil {
			_ = body.Close()
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("s3: %s: byte %d is outside of the object's %d: %w", op, from, o.Size, messages.ErrRejected)
			}
			return nil, messages.Object{}, err
		}
	}
	return body, o, nil
}

// absent reports whether a refusal only means that there is no such object: who may list
// no more than a folder, as `pipeline s3-policy` has it, is told 403 by Amazon where others are
// told 404.
func (s *Store) absent(ctx context.Context, name *string, err error, requests *int64) bool {
	if httpStatus(err) != http.StatusForbidden || errorCode(err) != "AccessDenied" || ctx.Err() != nil {
		return false
	}
	call, cancel, _ := s.guarded(ctx)
	defer cancel()
	out, err := s.client.ListObjectsV2(call, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: name, MaxKeys: aws.Int32(1)}, counted(requests))
	// The key itself sorts first among those that begin like it.
	return err == nil && (len(out.Contents) == 0 || aws.ToString(out.Contents[0].Key) != *name)
}

// getEnd answers a Get from the object's end on, which is no range to S3.
func (s *Store) getEnd(ctx context.Context, op string, name *string, from int64, o messages.Object) (io.ReadCloser, messages.Object, error) {
	call, cancel, _ := s.guarded(ctx)
	defer cancel()
	head, err := s.client.HeadObject(call, &s3.HeadObjectInput{Bucket: &s.bucket, Key: name}, counted(&o.Requests))
	if err != nil {
		return nil, messages.Object{}, s.failed(ctx, op, err)
	}
	o.ETag, o.Size, o.ModifiedOn = aws.ToString(head.ETag), aws.ToInt64(head.ContentLength), aws.ToTime(head.LastModified).UnixMilli()
	if from != o.Size {
		return nil, messages.Object{}, fmt.Errorf("s3: %s: byte %d is outside of the object's %d: %w", op, from, o.Size, messages.ErrRejected)
	}
	return http.NoBody, o, nil
}

// totalSize reads the size of the whole object from "bytes 5-9/10".
func totalSize(contentRange *string) (int64, bool) {
	_, total, _ := strings.Cut(aws.ToString(contentRange), "/")
	n, err := strconv.ParseInt(total, 10, 64)
	return n, err == nil
}

// List returns the objects whose key starts with prefix, in order of key. The
// request of a page is counted on the page's first object.
func (s *Store) List(ctx context.Context, prefix string) ([]messages.Object, error) {
	op := fmt.Sprintf("list %q", prefix)
	if !utf8.ValidString(prefix) || strings.ContainsFunc(prefix, unicode.IsControl) {
		return nil, fmt.Errorf("s3: %s: no key starts like this: %w", op, messages.ErrRejected)
	}
	var list []messages.Object
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(s.prefix + prefix)}
	for {
		var requests int64
		out, err := s.listPage(ctx, in, &requests)
		if err != nil {
			return nil, s.failed(ctx, op, err)
		}
		for _, c := range out.Contents {
			key, ours := strings.CutPrefix(aws.ToString(c.Key), s.prefix)
			if !ours || key == "" {
				continue // the folder itself, as consoles make it
			}
			list = append(list, messages.Object{
				Key: key, ETag: aws.ToString(c.ETag), Size: aws.ToInt64(c.Size),
				ModifiedOn: aws.ToTime(c.LastModified).UnixMilli(), Requests: requests,
			})
			requests = 0
		}
		if !aws.ToBool(out.IsTruncated) || out.NextContinuationToken == nil {
			break
		}
		in.ContinuationToken = out.NextContinuationToken
	}
	// S3 answers in this order; servers that keep objects as files need not.
	slices.SortStableFunc(list, func(a, b messages.Object) int { return strings.Compare(a.Key, b.Key) })
	return list, nil
}

func (s *Store) listPage(ctx context.Context, in *s3.ListObjectsV2Input, requests *int64) (*s3.ListObjectsV2Output, error) {
	call, cancel, _ := s.guarded(ctx)
	defer cancel()
	return s.client.ListObjectsV2(call, in, counted(requests))
}

// Delete removes an object; one that does not exist is no error.
func (s *Store) Delete(ctx context.Context, key string) error {
	op := fmt.Sprintf("delete %q", key)
	name, err := s.key(key)
	if err != nil {
		return fmt.Errorf("s3: %s: %w", op, err)
	}
	call, cancel, _ := s.guarded(ctx)
	defer cancel()
	_, err = s.client.DeleteObject(call, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: name})
	if err != nil && errorCode(err) != "NoSuchKey" {
		return s.failed(ctx, op, err)
	}
	return nil
}
