package s3

import (
	"fmt"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// Policy is a policy document of AWS: as JSON it is what `aws iam put-role-policy` and
// `aws s3api put-bucket-policy` take.
type Policy struct {
	Version   string
	Statement []Statement
}

// Statement is one rule of a Policy.
type Statement struct {
	Sid       string
	Effect    string
	Principal any `json:",omitempty"` // only in a bucket's policy
	Action    []string
	Resource  []string
	Condition map[string]map[string][]string `json:",omitempty"`
}

// policyVersion is that of the policies' language.
const policyVersion = "2012-10-17"

// DevicePolicy is the least that a device needs, or a backend that signs for one, on a
// folder of a bucket; "" is the whole bucket. With operator it may also see what
// unfinished uploads there are and what the bucket's lifecycle rules say, as `pipeline
// doctor` and `pipeline forget --scope` do when they may: those rights are on the whole
// bucket and show the names of everybody's uploads, so no device gets them. Without them
// nothing fails, and the bucket's lifecycle rule does the tidying.
func DevicePolicy(bucket, prefix string, operator bool) (Policy, error) {
	if bucket == "" {
		return Policy{}, fmt.Errorf("s3: policy: there is no bucket: %w", messages.ErrRejected)
	}
	prefix = strings.TrimSuffix(prefix, "/")
	if prefix != "" {
		if err := checkKey(prefix); err != nil {
			return Policy{}, fmt.Errorf("s3: policy: prefix: %w", err)
		}
		prefix = literal.Replace(prefix) + "/"
	}
	arn := "arn:aws:s3:::" + bucket
	list := Statement{Sid: "ListTheFolder", Effect: "Allow", Action: []string{"s3:ListBucket"}, Resource: []string{arn}}
	if prefix != "" {
		list.Condition = map[string]map[string][]string{"StringLike": {"s3:prefix": {prefix + "*"}}}
	}
	p := Policy{policyVersion, []Statement{
		{
			Sid: "UseTheFolder", Effect: "Allow",
			Action:   []string{"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"},
			Resource: []string{arn + "/" + prefix + "*"},
		},
		list,
	}}
	if operator {
		p.Statement = append(p.Statement, Statement{
			Sid: "LookAtTheBucket", Effect: "Allow",
			Action: []string{"s3:ListBucketMultipartUploads", "s3:GetLifecycleConfiguration"}, Resource: []string{arn},
		})
	}
	return p, nil
}

// literal spells what a policy would take for a pattern or a variable.
var literal = strings.NewReplacer("*", "${*}", "?", "${?}", "$", "${$}")

// TLSOnlyPolicy is a bucket's policy that refuses whoever comes without TLS. A bucket has
// one policy: where there is one already, add its statement.
func TLSOnlyPolicy(bucket string) Policy {
	arn := "arn:aws:s3:::" + bucket
	return Policy{policyVersion, []Statement{{
		Sid: "OnlyWithTLS", Effect: "Deny", Principal: "*", Action: []string{"s3:*"}, Resource: []string{arn, arn + "/*"},
		Condition: map[string]map[string][]string{"Bool": {"aws:SecureTransport": {"false"}}},
	}}}
}

// PublicAccessBlock is what `aws s3api put-public-access-block` takes: nobody gets in
// without an account, whatever an ACL or a policy says.
type PublicAccessBlock struct {
	BlockPublicAcls, IgnorePublicAcls, BlockPublicPolicy, RestrictPublicBuckets bool
}

// NoPublicAccess blocks all of it.
func NoPublicAccess() PublicAccessBlock { return PublicAccessBlock{true, true, true, true} }

// Lifecycle is what `aws s3api put-bucket-lifecycle-configuration` takes.
type Lifecycle struct{ Rules []LifecycleRule }

// LifecycleRule is one rule of a bucket's.
type LifecycleRule struct {
	ID, Status                     string
	Filter                         struct{ Prefix string }
	AbortIncompleteMultipartUpload struct{ DaysAfterInitiation int }
}

// AbortUploadsRule aborts in all of a bucket what uploads left unfinished for a week:
// none that is alive takes so long. A bucket has one configuration: where there is one
// already, add its rule.
func AbortUploadsRule() Lifecycle {
	r := LifecycleRule{ID: "abort-incomplete-uploads", Status: "Enabled"}
	r.AbortIncompleteMultipartUpload.DaysAfterInitiation = int(staleUpload.Hours() / 24)
	return Lifecycle{[]LifecycleRule{r}}
}
