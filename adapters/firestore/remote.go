package firestore

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	vkit "cloud.google.com/go/firestore/apiv1"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/tidemark-sync/tidemark/messages"
)

// Config says where the documents are.
type Config struct {
	// Project is the Google Cloud project id.
	Project string
	// Database is the database id; "" is "(default)".
	Database string
	// Scope is the path of the document below which the collections live, such as
	// "users/alice"; "" is the root of the database. Devices in one scope share
	// all their rows.
	Scope string
	// Emulator is host:port of a Firestore emulator, which is used without
	// credentials; "" takes FIRESTORE_EMULATOR_HOST, and if that is empty too,
	// Google's service.
	Emulator string
	// User signs every request in as a user of Firebase Auth, to whom the security
	// rules apply (see Rules). Without it the credentials are an operator's, whom no
	// rule stops: never give those to a device of a user's.
	User TokenSource `json:"-"`
	// Timeout bounds one request, and in a read the silence between two documents;
	// 0 is DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout leaves a commit of messages.MaxCommitBytes enough time on a line
// of half a megabit a second.
const DefaultTimeout = 60 * time.Second

// Remote is one scope of a Firestore database. It is safe for concurrent use.
// Nothing is retried here: every failure is returned with its class (see package
// messages), and the caller decides.
type Remote struct {
	client  *vkit.Client
	timeout time.Duration
	project string
	// database and parent are resource names; the collections are below parent.
	database string
	parent   string
	scope    string
	user     *user // nil: an operator
	emulated bool
}

// Open connects lazily: it validates the configuration and finds the credentials,
// and sends nothing. Without Config.User, an emulator and credentials among opts, the
// application default credentials are used; messages.ErrUnauthorized when there
// are none. The caller closes the Remote.
func Open(ctx context.Context, cfg Config, opts ...option.ClientOption) (*Remote, error) {
	if cfg.Project == "" || strings.Contains(cfg.Project, "/") {
		return nil, fmt.Errorf("firestore: project %q is not a Google Cloud project id: %w", cfg.Project, messages.ErrRejected)
	}
	if cfg.Database == "" {
		cfg.Database = "(default)"
	}
	if strings.Contains(cfg.Database, "/") {
		return nil, fmt.Errorf("firestore: database %q is not a database id: %w", cfg.Database, messages.ErrRejected)
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("firestore: timeout %v is negative: %w", cfg.Timeout, messages.ErrRejected)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if err := checkScope(cfg.Scope); err != nil {
		return nil, err
	}
	r := &Remote{timeout: cfg.Timeout, project: cfg.Project, scope: cfg.Scope, database: "projects/" + cfg.Project + "/databases/" + cfg.Database}
	r.parent = r.database + "/documents"
	if cfg.Scope != "" {
		r.parent += "/" + cfg.Scope
	}
	if cfg.Emulator == "" {
		cfg.Emulator = os.Getenv("FIRESTORE_EMULATOR_HOST")
	}
	if cfg.User != nil {
		r.user = &user{source: cfg.User}
		opts = append(slices.Clone(opts), option.WithoutAuthentication()) // each call brings the token
	}
	if err := r.connect(ctx, cfg.Emulator, opts); err != nil {
		return nil, err
	}
	// Firestore's client would repeat what it takes for passing faults until the
	// context ends, also a message that is too large for ever.
	*r.client.CallOptions = vkit.CallOptions{}
	return r, nil
}

func (r *Remote) connect(ctx context.Context, emulator string, opts []option.ClientOption) error {
	// A page of large documents is more than gRPC's default of 4 MiB.
	sizes := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32))
	own := []option.ClientOption{
		option.WithGRPCDialOption(sizes),
		// Else a connection that died while the machine slept is noticed after a
		// quarter of an hour.
		option.WithGRPCDialOption(grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second})),
	}
	for _, o := range dialNow {
		own = append(own, option.WithGRPCDialOption(o))
	}
	if emulator != "" {
		dial := append(slices.Clone(dialNow), grpc.WithTransportCredentials(insecure.NewCredentials()), sizes)
		if r.user == nil {
			dial = append(dial, grpc.WithPerRPCCredentials(owner{}))
		}
		r.emulated = true
		conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(strings.TrimPrefix(emulator, "http://"), "https://"), dial...)
		if err != nil {
			return fmt.Errorf("firestore: emulator %q: %w: %w", emulator, messages.ErrRejected, err)
		}
		own = []option.ClientOption{option.WithGRPCConn(conn)}
	}
	client, err := vkit.NewClient(ctx, append(own, opts...)...)
	if err != nil {
		return openError(ctx, err)
	}
	r.client = client
	return nil
}

// dialNow makes a call after an outage dial at once. By itself gRPC waits up to two
// minutes until it dials again and fails every call until then; our caller has done
// its waiting already.
var dialNow = []grpc.DialOption{
	grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		wake(conn)
		return invoke(ctx, method, req, reply, conn, opts...)
	}),
	grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		wake(conn)
		return open(ctx, desc, conn, method, opts...)
	}),
}

func wake(conn *grpc.ClientConn) {
	if conn.GetState() == connectivity.TransientFailure {
		conn.ResetConnectBackoff()
	}
}

// Scope is the resource name below which the collections live.
func (r *Remote) Scope() string { return r.parent }

// Caution is what is unwise about how this remote was opened, in a sentence with its
// remedy; "" when nothing is.
func (r *Remote) Caution() string {
	segments := strings.Split(r.scope, "/")
	if r.user != nil || r.emulated || len(segments) < 2 || !strings.EqualFold(segments[len(segments)-2], "users") {
		return ""
	}
	return "the scope " + r.scope + " is one user's, and it was opened with an operator's credentials, which reach everybody's data: " +
		"on a user's device sign in as the user (firestore.Config.User, or TIDEMARK_FIREBASE_TOKEN_FILE)"
}

// Close gives up the connection.
func (r *Remote) Close() error {
	if err := r.client.Close(); err != nil {
		return fmt.Errorf("firestore: close: %w", err)
	}
	return nil
}

// owner makes the emulator skip its rules, as a service account does in the cloud.
type owner struct{}

func (owner) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer owner"}, nil
}

func (owner) RequireTransportSecurity() bool { return false }

func checkScope(scope string) error {
	if scope == "" {
		return nil
	}
	segments := strings.Split(scope, "/")
	if len(segments)%2 != 0 {
		return fmt.Errorf("firestore: scope %q is not the path of a document, which has an even number of segments like users/alice: %w", scope, messages.ErrRejected)
	}
	for _, s := range segments {
		if !validID(s) {
			return fmt.Errorf("firestore: scope %q has the segment %q, which Firestore does not allow as an id: %w", scope, s, messages.ErrRejected)
		}
	}
	return nil
}

// validID reports whether Firestore takes s as a document or collection id.
func validID(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 1500 && utf8.ValidString(s) && !strings.Contains(s, "/") && !reserved(s)
}

// reserved reports whether s matches __.*__, which Firestore keeps for itself.
func reserved(s string) bool {
	return len(s) >= 4 && strings.HasPrefix(s, "__") && strings.HasSuffix(s, "__")
}

func (r *Remote) name(collection, id string) string {
	return r.parent + "/" + collection + "/" + id
}

// patience ends a read whose server has fallen silent. The time that the caller
// takes for a document does not count.
type patience struct {
	timer *time.Timer
	limit time.Duration
}

func newPatience(ctx context.Context, limit time.Duration) (context.Context, *patience, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &patience{limit: limit, timer: time.AfterFunc(limit, func() { cancel(context.DeadlineExceeded) })}
	return ctx, p, func() { p.timer.Stop(); cancel(nil) }
}

func (p *patience) wait() { p.timer.Reset(p.limit) }
func (p *patience) rest() { p.timer.Stop() }
