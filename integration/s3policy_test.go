package integration

import (
	"context"
	"errors"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go/middleware"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/s3"
	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// permission is what Amazon wants for each operation of its client.
var permission = map[string]string{
	"PutObject": "s3:PutObject", "CreateMultipartUpload": "s3:PutObject", "UploadPart": "s3:PutObject", "CompleteMultipartUpload": "s3:PutObject",
	"GetObject": "s3:GetObject", "HeadObject": "s3:GetObject", "DeleteObject": "s3:DeleteObject", "ListObjectsV2": "s3:ListBucket",
	"AbortMultipartUpload": "s3:AbortMultipartUpload", "ListMultipartUploads": "s3:ListBucketMultipartUploads",
	"GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
}

// storeOf is a store of an account that notes which permissions its calls take.
func storeOf(t *testing.T, srv servers.S3Server, prefix string) (*s3.Store, func() []string) {
	t.Helper()
	var mu sync.Mutex
	used := map[string]bool{}
	note := middleware.InitializeMiddlewareFunc("Note", func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
		mu.Lock()
		defer mu.Unlock()
		name := permission[awsmiddleware.GetOperationName(ctx)]
		if name == "" {
			t.Errorf("nobody knows what the operation %s takes", awsmiddleware.GetOperationName(ctx))
		}
		used[name] = true
		return next.HandleInitialize(ctx, in)
	})
	s, err := s3.FromConfig(aws.Config{
		Region: srv.Region, Credentials: credentials.NewStaticCredentialsProvider(srv.AccessKey, srv.SecretKey, ""),
		APIOptions: []func(*middleware.Stack) error{func(stack *middleware.Stack) error { return stack.Initialize.Add(note, middleware.After) }},
	}, s3.Config{Bucket: srv.Bucket, Prefix: prefix, Endpoint: srv.Endpoint})
	if err != nil {
		t.Fatal(err)
	}
	return s, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Sorted(maps.Keys(used))
	}
}

// forAccount is the policy as a bucket has it.
func forAccount(p s3.Policy, account string) s3.Policy {
	p.Statement = slices.Clone(p.Statement)
	for i := range p.Statement {
		p.Statement[i].Principal = map[string]string{"AWS": account}
	}
	return p
}

func devicePolicy(t *testing.T, srv servers.S3Server, prefix string, operator bool) s3.Policy {
	t.Helper()
	p, err := s3.DevicePolicy(srv.Bucket, prefix, operator)
	if err != nil {
		t.Fatal(err)
	}
	return forAccount(p, srv.AccessKey)
}

func actions(p s3.Policy) []string {
	var all []string
	for _, s := range p.Statement {
		all = append(all, s.Action...)
	}
	slices.Sort(all)
	return all
}

type cutBody struct{ left int }

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the disk is gone")
	}
	n := min(len(p), b.left)
	b.left -= n
	return n, nil
}

// Two accounts share a bucket, each with the policy that is printed for its folder. A
// whole life of snapshots needs exactly what the policy has, and the other's folder is
// closed.
func TestAnAccountWithTheLeastRights(t *testing.T) {
	t.Parallel()
	owner := servers.S3(t)
	alice, bob := owner.Account(t), owner.Account(t)
	both := devicePolicy(t, alice, "users/alice", false)
	both.Statement = append(both.Statement, devicePolicy(t, bob, "users/bob", false).Statement...)
	for i := range both.Statement {
		both.Statement[i].Sid = ""
	}
	before, _ := storeOf(t, alice, "users/alice")
	if _, err := before.Put(t.Context(), "x", strings.NewReader("x"), messages.Condition{}); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Fatalf("without any policy: %v, want ErrUnauthorized", err)
	}
	owner.PutPolicy(t, both)

	store, used := storeOf(t, alice, "users/alice")
	aLifeOfSnapshots(t, store)
	// Looking for unfinished uploads is tried, refused, and left to the bucket's lifecycle rule.
	device, operator := actions(devicePolicy(t, alice, "users/alice", false)), actions(devicePolicy(t, alice, "users/alice", true))
	refused := "s3:ListBucketMultipartUploads"
	if got := slices.DeleteFunc(used(), func(a string) bool { return a == refused }); !slices.Equal(got, device) || slices.Contains(device, refused) {
		t.Errorf("used is %v, the policy has %v", used(), device)
	}

	put(t, store, "snapshots/mine", []byte("alice's"))
	put(t, store, messages.ManifestKey, []byte("alice's"))
	intruder, _ := storeOf(t, bob, "users/alice")
	wantClosed(t, "of another account", intruder)
	whole, _ := storeOf(t, bob, "")
	if list, err := whole.List(t.Context(), ""); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Errorf("another account lists the bucket: %v, %v", list, err)
	}
	own, _ := storeOf(t, bob, "users/bob")
	put(t, own, messages.ManifestKey, []byte("bob's"))
	if list, err := own.List(t.Context(), ""); err != nil || len(list) != 1 || string(get(t, own, messages.ManifestKey)) != "bob's" {
		t.Errorf("bob's own folder: %v, %v", list, err)
	}
	// A folder whose name begins alike is another one.
	alike, _ := storeOf(t, alice, "users/alice2")
	if _, err := alike.Put(t.Context(), "x", strings.NewReader("x"), messages.Condition{}); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Errorf("alice writes beside her folder: %v", err)
	}
	if string(get(t, store, messages.ManifestKey)) != "alice's" {
		t.Error("alice's manifest was changed")
	}

	owner.PutPolicy(t, devicePolicy(t, alice, "users/alice", true))
	if lost, _, _, err := store.UnfinishedUploads(t.Context()); err != nil || lost != 0 {
		t.Errorf("an operator's look at the bucket: %d, %v", lost, err)
	}
	if known, err := store.AbortUploads(t.Context()); err != nil || !known {
		t.Errorf("an operator aborts uploads: %v, %v", known, err)
	}
	if got := used(); !slices.Equal(got, operator) {
		t.Errorf("used is %v, an operator's policy has %v", got, operator)
	}

	tls := devicePolicy(t, alice, "users/alice", false)
	tls.Statement = append(tls.Statement, s3.TLSOnlyPolicy(owner.Bucket).Statement...)
	owner.PutPolicy(t, tls)
	if _, err := store.Put(t.Context(), "x", strings.NewReader("x"), messages.Condition{}); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Errorf("without TLS: %v, want ErrUnauthorized", err)
	}
}

// wantClosed tries everything on a folder that has a manifest and snapshots/mine.
func wantClosed(t *testing.T, who string, s *s3.Store) {
	t.Helper()
	for _, key := range []string{messages.ManifestKey, "snapshots/mine", "new"} {
		for _, cond := range []messages.Condition{{}, {IfAbsent: true}, {IfMatch: `"e"`}} {
			if _, err := s.Put(t.Context(), key, strings.NewReader("x"), cond); !errors.Is(err, tidemark.ErrUnauthorized) {
				t.Errorf("a store %s puts %s, %+v: %v", who, key, cond, err)
			}
		}
		for _, from := range []int64{0, 3} {
			if body, _, err := s.Get(t.Context(), key, from); !errors.Is(err, tidemark.ErrUnauthorized) {
				if err == nil {
					_ = body.Close()
				}
				t.Errorf("a store %s gets %s from %d: %v", who, key, from, err)
			}
		}
		if err := s.Delete(t.Context(), key); !errors.Is(err, tidemark.ErrUnauthorized) {
			t.Errorf("a store %s deletes %s: %v", who, key, err)
		}
	}
	if _, err := s.Put(t.Context(), "large", io.LimitReader(zeros{}, 12<<20), messages.Condition{}); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Errorf("a store %s puts a large object: %v", who, err)
	}
	if list, err := s.List(t.Context(), ""); !errors.Is(err, tidemark.ErrUnauthorized) {
		t.Errorf("a store %s lists %v, %v", who, list, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// aLifeOfSnapshots makes large and small ones, drops old ones, restores, verifies and
// looks after the store.
func aLifeOfSnapshots(t *testing.T, store *s3.Store) {
	t.Helper()
	f := newFleet(t, forgetSchema).onStore(store)
	a := f.device("a", tidemark.WithBackup(1, time.Hour, 1), tidemark.WithDailySnapshots(0), tidemark.WithTakeover(0))
	a.exec(`WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM i WHERE n < 24) INSERT INTO notes (name) SELECT hex(randomblob(450000)) FROM i`) // goes up in parts
	if r := a.sync(); r.Snapshot == nil {
		t.Fatal("there is no snapshot")
	}
	for range 3 { // changes, and what is not kept is retired
		a.exec(`INSERT INTO tags (name) VALUES ('home')`)
		if r := a.sync(); r.Snapshot == nil {
			t.Fatal("there is no snapshot")
		}
	}
	if _, err := store.Put(t.Context(), "broken", &cutBody{9 << 20}, messages.Condition{}); err == nil {
		t.Error("a body that fails was stored")
	}
	_ = get(t, store, messages.ManifestKey)
	size := int64(len(get(t, store, messages.ManifestKey)))
	body, _, err := store.Get(t.Context(), messages.ManifestKey, size) // a download that was cut off at its very end
	if err != nil {
		t.Fatal(err)
	}
	_ = body.Close()
	path := filepath.Join(f.dir, "restored.db")
	if _, err := tidemark.Restore(t.Context(), path, store); err != nil {
		t.Fatal(err)
	}
	b := f.on(path, openDB(t, path))
	rounds(2, a, b)
	same(t, a, b)
	if _, err := tidemark.Verify(t.Context(), store); err != nil {
		t.Error(err)
	}
	for x := range tidemark.Doctor(t.Context(), a.db, tidemark.Checkup{Remote: f.remote(), Store: store}) {
		if x.Level == tidemark.Problem || x.Check == "uploads" && x.Level != tidemark.OK {
			t.Errorf("the doctor says: %+v", x)
		}
	}
	if _, err := tidemark.ForgetScope(t.Context(), f.remote(), store); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, f)
}

// A device that holds no key lives the same life, with URLs that its backend signs.
func TestALifeOfSnapshotsWithoutAnyKey(t *testing.T) {
	t.Parallel()
	owner := servers.S3(t)
	account := owner.Account(t)
	owner.PutPolicy(t, devicePolicy(t, account, "users/alice", false)) // the backend needs no more
	signer := s3.Signer{
		Bucket: owner.Bucket, Region: owner.Region, Endpoint: owner.Endpoint,
		Credentials: credentials.NewStaticCredentialsProvider(account.AccessKey, account.SecretKey, ""),
	}
	store, err := s3.Presigned("users/alice", func(ctx context.Context, r s3.Request) (string, error) { return signer.Sign(ctx, "users/alice", r) })
	if err != nil {
		t.Fatal(err)
	}
	aLifeOfSnapshots(t, store)
}
