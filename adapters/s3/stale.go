package s3

import (
	"context"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/tidemark-sync/tidemark/messages"
)

// staleUpload is when an upload in parts is nobody's any more: its process crashed,
// or its line broke for good. None takes a week.
const staleUpload = 7 * 24 * time.Hour

// abortLost aborts the uploads of our key that may have begun although the answer
// was lost. A key that two programs upload to at the same moment is not ours: then
// the other one has to start again.
func (u *upload) abortLost(ctx context.Context) {
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	_ = u.s.abortWhere(call, *u.key, &u.requests, func(o types.MultipartUpload, _ time.Time) bool { return aws.ToString(o.Key) == *u.key })
}

// abortStale aborts what crashed programs left unfinished in our folder, once a
// Store: their parts cost as much as objects, and no listing shows them.
func (u *upload) abortStale(ctx context.Context, age time.Duration) {
	if u.s.swept.Swap(true) {
		return
	}
	call, cancel := context.WithTimeout(ctx, abortTimeout)
	defer cancel()
	_ = u.s.abortWhere(call, u.s.prefix, &u.requests, func(o types.MultipartUpload, now time.Time) bool {
		return o.Initiated != nil && now.Sub(*o.Initiated) > age
	})
}

// AbortUploads aborts every unfinished upload in parts of our folder, also those that
// somebody is at. known is false where this account may not see them.
func (s *Store) AbortUploads(ctx context.Context) (known bool, err error) {
	var requests int64
	if err := s.abortWhere(ctx, s.prefix, &requests, func(types.MultipartUpload, time.Time) bool { return true }); err != nil {
		err = s.failed(ctx, "abort the unfinished uploads", err)
		if errors.Is(err, messages.ErrUnauthorized) {
			return false, nil
		}
		return false, err
	}
	return true, nil
}

// abortWhere does what it can: an account may not be allowed to list uploads, which is
// the error. now is the server's clock.
func (s *Store) abortWhere(ctx context.Context, prefix string, requests *int64, which func(o types.MultipartUpload, now time.Time) bool) error {
	in := &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: &prefix}
	for {
		out, err := s.client.ListMultipartUploads(ctx, in, counted(requests))
		if err != nil {
			return err
		}
		now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
		for _, o := range out.Uploads {
			if !ok || !which(o, now) {
				continue
			}
			_, _ = s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: o.Key, UploadId: o.UploadId}, counted(requests))
		}
		if !aws.ToBool(out.IsTruncated) || out.NextKeyMarker == nil {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}
