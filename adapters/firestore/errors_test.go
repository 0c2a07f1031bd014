package firestore

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tidemark-sync/tidemark/messages"
)

// fake answers with one error, or not at all: what the emulator never does.
type fake struct {
	pb.UnimplementedFirestoreServer
	err   error
	first *pb.RunQueryResponse // sent before the error or the silence
	asked chan struct{}        // receives a value when a silent request has arrived
}

func (f *fake) answer(ctx context.Context) error {
	if f.err != nil {
		return f.err
	}
	f.asked <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Commit(ctx context.Context, _ *pb.CommitRequest) (*pb.CommitResponse, error) {
	return nil, f.answer(ctx)
}

func (f *fake) RunQuery(_ *pb.RunQueryRequest, s pb.Firestore_RunQueryServer) error {
	if f.first != nil {
		if err := s.Send(f.first); err != nil {
			return err
		}
	}
	return f.answer(s.Context())
}

func (f *fake) BatchGetDocuments(_ *pb.BatchGetDocumentsRequest, s pb.Firestore_BatchGetDocumentsServer) error {
	return f.answer(s.Context())
}

func (f *fake) open(t *testing.T, timeout time.Duration) *Remote {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.asked = make(chan struct{}, 8)
	s := grpc.NewServer()
	pb.RegisterFirestoreServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	r, err := Open(t.Context(), Config{Project: "p", Emulator: l.Addr().String(), Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

var someCommit = messages.Commit{Device: messages.Device{ID: "d", Token: "t"}}

func read(ctx context.Context, r *Remote) error {
	_, err := r.Read(ctx, messages.Query{Table: "t", ReadTime: 1}, func(messages.Document) error { return nil })
	return err
}

func TestClassOfEveryAnswer(t *testing.T) {
	const creds = "transport: per-RPC creds failed due to error: "
	for _, c := range []struct {
		code         codes.Code
		text         string
		read, commit error
	}{
		{codes.Unavailable, "connection refused", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.Aborted, "too much contention", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.ResourceExhausted, "quota exceeded", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.ResourceExhausted, "gRPC message exceeds maximum size 4194304: 5000000", messages.ErrRejected, messages.ErrRejected},
		{codes.DeadlineExceeded, "", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.Canceled, "by the server", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.Internal, "", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.Internal, "grpc: error while marshaling: string field contains invalid UTF-8", messages.ErrRejected, messages.ErrRejected},
		{codes.Unknown, "EOF", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.FailedPrecondition, "the stored version (1) does not match the required base version (2)", messages.ErrRejected, messages.ErrConflict},
		{codes.FailedPrecondition, "The Cloud Firestore API is not available for Firestore in Datastore Mode database", messages.ErrRejected, messages.ErrRejected},
		{codes.FailedPrecondition, "The requested snapshot version is too old.", messages.ErrReadTimeTooOld, messages.ErrConflict},
		{codes.FailedPrecondition, "The requested 'read_time' is too old.", messages.ErrReadTimeTooOld, messages.ErrConflict},
		{codes.InvalidArgument, "read_time is too old", messages.ErrReadTimeTooOld, messages.ErrRejected},
		{codes.InvalidArgument, "Request payload size exceeds the limit: 11534336 bytes.", messages.ErrRejected, messages.ErrRejected},
		{codes.OutOfRange, "", messages.ErrRejected, messages.ErrRejected},
		{codes.AlreadyExists, "Document already exists: projects/p/databases/(default)/documents/t/a", messages.ErrUnavailable, messages.ErrConflict},
		{codes.NotFound, "No document to update: projects/p/databases/(default)/documents/t/a", messages.ErrNotFound, messages.ErrConflict},
		{codes.NotFound, "The database (default) does not exist for project p", messages.ErrNotFound, messages.ErrNotFound},
		{codes.PermissionDenied, "Missing or insufficient permissions.", messages.ErrUnauthorized, messages.ErrUnauthorized},
		{codes.PermissionDenied, "unexpected HTTP status code received from server: 403 (Forbidden)", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.Unauthenticated, "Request had invalid authentication credentials.", messages.ErrUnauthorized, messages.ErrUnauthorized},
		{codes.Unauthenticated, creds + "dial tcp: lookup oauth2.googleapis.com: no such host", messages.ErrUnavailable, messages.ErrUnavailable},
		{codes.Unauthenticated, creds + `auth: "invalid_grant" "Token has been expired or revoked."`, messages.ErrUnauthorized, messages.ErrUnauthorized},
	} {
		r := (&fake{err: status.Error(c.code, c.text)}).open(t, 10*time.Second)
		_, err := r.Commit(t.Context(), someCommit)
		one(t, c.code.String()+" "+c.text+": commit", err, c.commit)
		one(t, c.code.String()+" "+c.text+": read", read(t.Context(), r), c.read)
		_, err = r.Documents(t.Context(), "t", []string{"a"}, 1)
		one(t, c.code.String()+" "+c.text+": lookup", err, c.read)
	}
}

// one checks that an error is of the wanted class and of no other.
func one(t *testing.T, what string, err, want error) {
	t.Helper()
	for _, class := range []error{
		messages.ErrUnavailable, messages.ErrConflict, messages.ErrRejected, messages.ErrUnauthorized,
		messages.ErrNotFound, messages.ErrReadTimeTooOld,
	} {
		//nolint:errorlint // the class itself is compared, not what it wraps
		if errors.Is(err, class) != (class == want) {
			t.Errorf("%s: %v: is it %v? want only %v", what, err, class, want)
		}
	}
}

func TestSilenceIsUnavailable(t *testing.T) {
	r := (&fake{first: &pb.RunQueryResponse{ReadTime: timestamppb.Now()}}).open(t, 20*time.Millisecond)
	one(t, "read", read(t.Context(), r), messages.ErrUnavailable)
	_, err := r.Device(t.Context(), "d")
	one(t, "device", err, messages.ErrUnavailable)
	_, err = r.Commit(t.Context(), someCommit)
	one(t, "commit", err, messages.ErrUnavailable)
}

func TestTheCallersEndIsNotTheServers(t *testing.T) {
	f := &fake{}
	r := f.open(t, time.Minute)
	for name, call := range map[string]func(context.Context) error{
		"read":   func(ctx context.Context) error { return read(ctx, r) },
		"device": func(ctx context.Context) error { _, err := r.Device(ctx, "d"); return err },
		"commit": func(ctx context.Context) error { _, err := r.Commit(ctx, someCommit); return err },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-f.asked; cancel() }()
		err := call(ctx)
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
		one(t, name, err, nil)
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
		one(t, name, call(ctx), messages.ErrUnavailable)
		cancel()
		select {
		case <-f.asked:
		default:
		}
	}
}

func TestOnlyTheServersSilenceCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, p, done := newPatience(t.Context(), time.Second)
		defer done()
		for range 3 {
			p.wait()
			p.rest()
			<-time.After(time.Hour) // the caller applies the document
		}
		if ctx.Err() != nil {
			t.Fatal("the caller's own time was counted")
		}
		p.wait()
		<-time.After(time.Second)
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			t.Fatalf("the server was silent for a second: %v", context.Cause(ctx))
		}
	})
}

func TestAReadThatEndsEarlyTellsWhatItCost(t *testing.T) {
	doc := &pb.Document{Name: "projects/p/databases/(default)/documents/t/a", UpdateTime: timestamppb.Now(), CreateTime: timestamppb.Now()}
	r := (&fake{first: &pb.RunQueryResponse{Document: doc, ReadTime: timestamppb.Now()}, err: status.Error(codes.Unavailable, "going away")}).open(t, time.Minute)
	var got []string
	n, err := r.Read(t.Context(), messages.Query{Table: "t", ReadTime: 1}, func(d messages.Document) error {
		got = append(got, d.ID)
		return nil
	})
	one(t, "read", err, messages.ErrUnavailable)
	if n != 1 || len(got) != 1 || got[0] != "a" {
		t.Fatalf("%d reads and %v, want the one document that came", n, got)
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Config{Project: "p", Emulator: addr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	_, err = r.Devices(t.Context(), 0)
	one(t, "devices", err, messages.ErrUnavailable)
}

func TestOpenWithoutCredentialsSaysWhatToDo(t *testing.T) {
	t.Setenv("FIRESTORE_EMULATOR_HOST", "")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "missing.json"))
	_, err := Open(t.Context(), Config{Project: "p"})
	one(t, "open", err, messages.ErrUnauthorized)
	if err == nil || !strings.Contains(err.Error(), "gcloud auth application-default login") {
		t.Fatalf("%v, want the remedy", err)
	}
}

func TestOpenRefusesABadConfiguration(t *testing.T) {
	for _, cfg := range []Config{
		{},
		{Project: "a/b"},
		{Project: "p", Database: "a/b"},
		{Project: "p", Scope: "users"},
		{Project: "p", Scope: "users/alice/x"},
		{Project: "p", Scope: "users/"},
		{Project: "p", Scope: "/users/alice"},
		{Project: "p", Scope: "users/.."},
		{Project: "p", Scope: "users/__x__"},
		{Project: "p", Scope: "users/\xff"},
		{Project: "p", Timeout: -1},
	} {
		cfg.Emulator = "127.0.0.1:1"
		_, err := Open(t.Context(), cfg)
		one(t, cfg.Scope, err, messages.ErrRejected)
	}
}

// How long the server asks to be left alone reaches whoever tries again.
func TestRetryInfoIsPassedOn(t *testing.T) {
	busy, err := status.New(codes.ResourceExhausted, "quota exceeded").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	r := (&fake{err: busy.Err()}).open(t, 10*time.Second)
	_, onCommit := r.Commit(t.Context(), someCommit)
	for name, err := range map[string]error{"commit": onCommit, "read": read(t.Context(), r)} {
		var asked interface{ RetryAfter() time.Duration }
		if !errors.As(err, &asked) || asked.RetryAfter() != 7*time.Second || !errors.Is(err, messages.ErrUnavailable) {
			t.Errorf("%s: %v: asks for %v", name, err, asked)
		}
	}
}

// The server's words stay, whatever the rows say.
func TestACommitsErrorCanBeRead(t *testing.T) {
	const said = `Property note.title of projects/p/databases/(default)/documents/users/alice/note/1 has 1000 bytes`
	r := (&fake{err: status.Error(codes.InvalidArgument, said+`: "Prop", Anna`)}).open(t, 10*time.Second)
	_, err := r.Commit(t.Context(), messages.Commit{Device: messages.Device{ID: "d"}, Writes: []messages.Write{{Document: messages.Document{
		Table: "note", ID: "1", Fields: map[string]any{"title": "Prop", "who": "Anna", "kind": "note", "text": "documents", "n": int64(1000), "less": "data"},
	}}}})
	if err == nil || !strings.Contains(err.Error(), said+`: "…", …`) {
		t.Errorf("it says %v", err)
	}
}
