package servers

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// S3Server is a bucket on a running S3 server, and who may use it.
type S3Server struct {
	Endpoint  string // http://host:port
	Region    string
	Bucket    string
	AccessKey string
	SecretKey string
}

var s3 shared

// Of a server that only this machine can reach and that ends with the test.
const (
	s3Region    = "us-east-1"
	s3AccessKey = "test-access-key"
	s3SecretKey = "test-secret-key"
)

// S3 returns a fresh, empty bucket on a running S3 server, which is the same one
// for the whole test process. Without the server the test ends, see the package
// comment.
func S3(t testing.TB) S3Server {
	t.Helper()
	binary := os.Getenv("TIDEMARK_VERSITYGW")
	if binary == "" {
		var err error
		if binary, err = exec.LookPath("versitygw"); err != nil {
			missing(t, "versitygw (the S3 server)", "`go install github.com/versity/versitygw/cmd/versitygw@v1.8.0` and put it into PATH, or set TIDEMARK_VERSITYGW to it")
		}
	}
	p, err := s3.get(func() (*process, error) { return startS3(binary) })
	if err != nil {
		t.Fatal(err)
	}
	s := S3Server{
		Endpoint: "http://" + p.addr, Region: s3Region, Bucket: "test-" + strings.ToLower(rand.Text()[:16]),
		AccessKey: s3AccessKey, SecretKey: s3SecretKey,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := s.client().CreateBucket(ctx, &awss3.CreateBucketInput{Bucket: &s.Bucket}); err != nil {
		t.Fatalf("create bucket %s: %v", s.Bucket, err)
	}
	return s
}

// Account adds an account to the server, which may do nothing until a bucket's policy
// says so, and returns the bucket as it sees it. Its access key is its principal in
// policies.
func (s S3Server) Account(t testing.TB) S3Server {
	t.Helper()
	own := s
	own.AccessKey, own.SecretKey = "account-"+strings.ToLower(rand.Text()[:16]), rand.Text()
	body, err := xml.Marshal(struct {
		XMLName              xml.Name `xml:"Account"`
		Access, Secret, Role string
	}{Access: own.AccessKey, Secret: own.SecretKey, Role: "user"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPatch, s.Endpoint+"/create-user", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	req.Header.Set("X-Amz-Content-Sha256", hash)
	if err := v4.NewSigner().SignHTTP(ctx, aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, req, hash, "s3", s.Region, time.Now()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("create an account: %v", err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode >= 300 {
		t.Fatalf("create an account: %s: %s", resp.Status, answer)
	}
	return own
}

// PutPolicy gives the bucket a policy, as its owner; doc is anything that is one as JSON.
func (s S3Server) PutPolicy(t testing.TB, doc any) {
	t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := s.client().PutBucketPolicy(ctx, &awss3.PutBucketPolicyInput{Bucket: &s.Bucket, Policy: aws.String(string(raw))}); err != nil {
		t.Fatalf("put the bucket's policy: %v", err)
	}
}

func (s S3Server) client() *awss3.Client {
	return awss3.New(awss3.Options{
		BaseEndpoint: aws.String(s.Endpoint), Region: s.Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
	})
}

func startS3(binary string) (*process, error) {
	dir, err := os.MkdirTemp("", "tidemark-s3-")
	if err != nil {
		return nil, fmt.Errorf("start versitygw: %w", err)
	}
	// Metadata in extended attributes, as by default: with a --sidecar, a reader
	// gets the data of one version and the ETag of the next.
	data, accounts := filepath.Join(dir, "data"), filepath.Join(dir, "accounts")
	for _, d := range []string{data, accounts} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("start versitygw: %w", err)
		}
	}
	p, err := start("versitygw", "/health", func(port int) *exec.Cmd {
		cmd := exec.Command(binary, "--port", "127.0.0.1:"+strconv.Itoa(port), "--region", s3Region,
			"--health", "/health", "--quiet", "--keep-alive", "--iam-dir", accounts, "posix", data)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s3AccessKey, "ROOT_SECRET_KEY="+s3SecretKey)
		return cmd
	}, dir)
	if err != nil {
		_ = os.RemoveAll(dir)
	}
	return p, err
}
