package s3

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/tidemark-sync/tidemark/messages"
)

const (
	// partSize is what an upload holds in memory. S3 takes parts of 5 MiB or more.
	partSize = 8 << 20
	// smallObject is as much as is read before a whole part is set aside.
	smallObject = 64 << 10
	// maxParts is S3's limit: with partSize, objects of 80 GB.
	maxParts = 10_000
	// abortTimeout is how long a cancelled upload may take to clean up behind it, where
	// Config.Timeout is not shorter.
	abortTimeout = 10 * time.Second
	// conflictTries is how often a PutObject is sent that S3 answers with 409: somebody
	// else wrote the key at that moment, and nothing was decided.
	conflictTries = 5
)

// upload is one Put on its way.
type upload struct {
	s        *Store
	op       string
	key      *string
	cond     messages.Condition
	requests int64
	size     int64
}

// Put streams body into an object, holding one part of it in memory.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	u := &upload{s: s, op: fmt.Sprintf("put %q", key), cond: cond}
	var err error
	if u.key, err = s.key(key); err != nil {
		return messages.Object{}, fmt.Errorf("s3: %s: %w", u.op, err)
	}
	if cond.IfAbsent && cond.IfMatch != "" {
		return messages.Object{}, fmt.Errorf("s3: %s: it cannot be absent and have an ETag: %w", u.op, messages.ErrRejected)
	}
	first, err := u.first(live{ctx, body})
	if err != nil {
		return messages.Object{}, u.bodyError(ctx, err)
	}
	u.size = int64(len(first))
	var etag string
	var modifiedOn int64
	if len(first) < partSize {
		etag, modifiedOn, err = u.whole(ctx, first)
	} else {
		etag, modifiedOn, err = u.parts(ctx, first, body)
	}
	if err != nil {
		return messages.Object{Requests: u.requests}, err
	}
	return messages.Object{Key: key, ETag: etag, Size: u.size, ModifiedOn: modifiedOn, Requests: u.requests}, nil
}

// first reads up to a part. A small object, such as a manifest, does not take the
// memory of one.
func (u *upload) first(body io.Reader) ([]byte, error) {
	buf := make([]byte, smallObject)
	n, end, err := fill(body, buf)
	if end || err != nil {
		return buf[:n], err
	}
	buf = append(make([]byte, 0, partSize), buf...)[:partSize]
	m, _, err := fill(body, buf[n:])
	return buf[:n+m], err
}

// fill reads until buf is full or the body ends. Unlike io.ReadFull it never takes
// an error of the body, such as io.ErrUnexpectedEOF, for its end: that would store
// half an object.
func fill(body io.Reader, buf []byte) (n int, end bool, err error) {
	for n < len(buf) {
		m, err := body.Read(buf[n:])
		n += m
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

// live ends a body with its context: a cancelled upload reads no further.
type live struct {
	ctx context.Context //nolint:containedctx // a body lives as long as its call
	r   io.Reader
}

func (l live) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.r.Read(p)
	if err == nil {
		err = l.ctx.Err()
	}
	return n, err
}

func (u *upload) bodyError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx, "s3: "+u.op)
	}
	return fmt.Errorf("s3: %s: read what to upload: %w", u.op, err)
}

// whole puts the object in one request.
func (u *upload) whole(ctx context.Context, body []byte) (etag string, modifiedOn int64, err error) {
	in := &s3.PutObjectInput{
		Bucket: &u.s.bucket, Key: u.key,
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32, ChecksumCRC32: checksum(body),
	}
	in.IfMatch, in.IfNoneMatch = u.condition()
	for try := 1; ; try++ {
		out, err := u.put(ctx, in, body)
		if err == nil {
			return aws.ToString(out.ETag), serverTime(out.ResultMetadata), nil
		}
		if httpStatus(err) != http.StatusConflict || try == conflictTries || ctx.Err() != nil {
			return "", 0, u.finalError(ctx, err)
		}
		pause := time.NewTimer(time.Duration(try*(50+rand.IntN(100))) * time.Millisecond)
		select {
		case <-ctx.Done():
			pause.Stop()
			return "", 0, ended(ctx, "s3: "+u.op)
		case <-pause.C:
		}
	}
}

func (u *upload) put(ctx context.Context, in *s3.PutObjectInput, body []byte) (*s3.PutObjectOutput, error) {
	call, cancel, guard := u.s.guarded(ctx)
	defer cancel()
	in.Body = &outgoing{bytes.NewReader(body), guard}
	return u.s.client.PutObject(call, in, counted(&u.requests), u.once)
}

// parts uploads first and the rest of body in parts, and leaves none behind when
// that fails, also when body panics.
func (u *upload) parts(ctx context.Context, first []byte, body io.Reader) (etag string, modifiedOn int64, err error) {
	u.abortStale(ctx, staleUpload)
	id, err := u.create(ctx)
	if err != nil {
		return "", 0, err
	}
	completed := false
	defer func() {
		if !completed {
			err = errors.Join(err, u.abort(ctx, id))
		}
	}()
	var done []types.CompletedPart
	for part := first; ; {
		if len(done) == maxParts {
			return "", 0, fmt.Errorf("s3: %s: the object is larger than %d parts of %d bytes: %w", u.op, maxParts, partSize, messages.ErrRejected)
		}
		p, err := u.part(ctx, id, int32(len(done)+1), part)
		if err != nil {
			return "", 0, err
		}
		done = append(done, p)
		n, _, err := fill(live{ctx, body}, first)
		if err != nil {
			return "", 0, u.bodyError(ctx, err)
		}
		if n == 0 {
			break
		}
		part = first[:n]
		u.size += int64(n)
	}
	if etag, modifiedOn, err = u.complete(ctx, id, done); err != nil {
		return "", 0, err
	}
	completed = true
	return etag, modifiedOn, nil
}

// create is not cut off by the caller: we would not learn the id of an upload
// that exists all the same.
func (u *upload) create(ctx context.Context) (id *string, err error) {
	if ctx.Err() != nil {
		return nil, ended(ctx, "s3: "+u.op)
	}
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(abortTimeout, u.s.timeout))
	defer cancel()
	out, err := u.s.client.CreateMultipartUpload(call, &s3.CreateMultipartUploadInput{
		Bucket: &u.s.bucket, Key: u.key, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32,
	}, counted(&u.requests))
	if err != nil {
		u.abortLost(ctx)
		return nil, u.s.failed(ctx, u.op, err)
	}
	return out.UploadId, nil
}

func (u *upload) part(ctx context.Context, id *string, number int32, part []byte) (types.CompletedPart, error) {
	call, cancel, guard := u.s.guarded(ctx)
	defer cancel()
	sum := checksum(part)
	out, err := u.s.client.UploadPart(call, &s3.UploadPartInput{
		Bucket: &u.s.bucket, Key: u.key, UploadId: id, PartNumber: &number, Body: &outgoing{bytes.NewReader(part), guard},
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32, ChecksumCRC32: sum,
	}, counted(&u.requests))
	if err != nil {
		return types.CompletedPart{}, u.s.failed(ctx, fmt.Sprintf("%s, part %d", u.op, number), err)
	}
	return types.CompletedPart{ETag: out.ETag, PartNumber: &number, ChecksumCRC32: sum}, nil
}

func (u *upload) complete(ctx context.Context, id *string, parts []types.CompletedPart) (etag string, modifiedOn int64, err error) {
	call, cancel, _ := u.s.guarded(ctx)
	defer cancel()
	in := &s3.CompleteMultipartUploadInput{
		Bucket: &u.s.bucket, Key: u.key, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	}
	in.IfMatch, in.IfNoneMatch = u.condition()
	out, err := u.s.client.CompleteMultipartUpload(call, in, counted(&u.requests), u.once)
	if err != nil {
		return "", 0, u.finalError(ctx, err)
	}
	return aws.ToString(out.ETag), serverTime(out.ResultMetadata), nil
}

// abort outlives a cancelled context for a while.
func (u *upload) abort(ctx context.Context, id *string) error {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(abortTimeout, u.s.timeout))
	defer cancel()
	_, err := u.s.client.AbortMultipartUpload(call, &s3.AbortMultipartUploadInput{Bucket: &u.s.bucket, Key: u.key, UploadId: id}, counted(&u.requests))
	if err != nil && errorCode(err) != "NoSuchUpload" {
		return fmt.Errorf("the parts sent so far stay in bucket %s until its lifecycle rule or `aws s3api abort-multipart-upload` removes them: %s", u.s.bucket, quiet{err}.Error())
	}
	return nil
}

func (u *upload) condition() (ifMatch, ifNoneMatch *string) {
	if u.cond.IfMatch != "" {
		ifMatch = &u.cond.IfMatch
	}
	if u.cond.IfAbsent {
		ifNoneMatch = aws.String("*")
	}
	return ifMatch, ifNoneMatch
}

// once keeps the client from repeating a conditional write whose answer was lost:
// it would lose against itself.
func (u *upload) once(o *s3.Options) {
	if u.cond != (messages.Condition{}) {
		o.RetryMaxAttempts = 1
	}
}

// finalError is the failure of the request that replaces the object.
func (u *upload) finalError(ctx context.Context, err error) error {
	err = quiet{err}
	if ctx.Err() != nil {
		// Cancelled too late to know whether it took effect.
		return fmt.Errorf("s3: %s: %w: %w", u.op, messages.ErrUnavailable, ctx.Err())
	}
	// Amazon's answer when there is nothing that could match.
	if u.cond.IfMatch != "" && errorCode(err) == "NoSuchKey" {
		return fmt.Errorf("s3: %s: %w: %w", u.op, messages.ErrConflict, err)
	}
	if u.cond.IfMatch != "" && u.s.absent(ctx, u.key, err, &u.requests) {
		return fmt.Errorf("s3: %s: %w: %w", u.op, messages.ErrConflict, err)
	}
	return u.s.failed(ctx, u.op, err)
}

func checksum(b []byte) *string {
	return aws.String(base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b))))
}

// serverTime is the answer's Date: the answer to a write has no Last-Modified.
func serverTime(m middleware.Metadata) int64 {
	if t, ok := awsmiddleware.GetServerTime(m); ok {
		return t.UnixMilli()
	}
	return 0
}
