package s3

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// UnfinishedUploads counts the uploads in parts that nobody will finish, among the first
// thousand below our prefix, and says whether the bucket has a rule that aborts such
// uploads. known is false when the server, or the account's rights, do not let us see
// the rules. Two requests.
func (s *Store) UnfinishedUploads(ctx context.Context) (lost int, rule, known bool, err error) {
	call, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	out, err := s.client.ListMultipartUploads(call, &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: &s.prefix})
	if err != nil {
		return 0, false, false, s.failed(ctx, "list unfinished uploads", err)
	}
	now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
	if !ok {
		now = time.Now()
	}
	for _, o := range out.Uploads {
		if o.Initiated != nil && now.Sub(*o.Initiated) > staleUpload {
			lost++
		}
	}
	rules, err := s.client.GetBucketLifecycleConfiguration(call, &s3.GetBucketLifecycleConfigurationInput{Bucket: &s.bucket})
	if err != nil {
		return lost, false, errorCode(err) == "NoSuchLifecycleConfiguration", nil
	}
	for _, r := range rules.Rules {
		a := r.AbortIncompleteMultipartUpload
		rule = rule || r.Status == types.ExpirationStatusEnabled && a != nil && aws.ToInt32(a.DaysAfterInitiation) > 0
	}
	return lost, rule, true, nil
}
