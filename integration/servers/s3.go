package servers

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
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
	client := awss3.New(awss3.Options{
		BaseEndpoint: aws.String(s.Endpoint), Region: s.Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
	})
	if _, err := client.CreateBucket(ctx, &awss3.CreateBucketInput{Bucket: &s.Bucket}); err != nil {
		t.Fatalf("create bucket %s: %v", s.Bucket, err)
	}
	return s
}

func startS3(binary string) (*process, error) {
	dir, err := os.MkdirTemp("", "tidemark-s3-")
	if err != nil {
		return nil, fmt.Errorf("start versitygw: %w", err)
	}
	// Metadata in extended attributes, as by default: with a --sidecar, a reader
	// gets the data of one version and the ETag of the next.
	p, err := start("versitygw", "/health", func(port int) *exec.Cmd {
		cmd := exec.Command(binary, "--port", "127.0.0.1:"+strconv.Itoa(port), "--region", s3Region,
			"--health", "/health", "--quiet", "--keep-alive", "posix", dir)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s3AccessKey, "ROOT_SECRET_KEY="+s3SecretKey)
		return cmd
	}, dir)
	if err != nil {
		_ = os.RemoveAll(dir)
	}
	return p, err
}
