package firestore

import (
	"errors"
	"net"
	"testing"
	"time"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidemark-sync/tidemark/messages"
)

// hangsUp takes a number of connections and resets them; then it serves.
type hangsUp struct {
	net.Listener
	left int
}

func (h *hangsUp) Accept() (net.Conn, error) {
	for {
		c, err := h.Listener.Accept()
		if err != nil || h.left == 0 {
			return c, err
		}
		h.left--
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

// Once the line is good again a call gets through, however long it was bad. Left to
// itself gRPC would dial again after one second, 1.6, 2.6 and so on up to 120, and
// fail every call until then.
func TestAfterAnOutage(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterFirestoreServer(s, &fake{err: status.Error(codes.PermissionDenied, "an answer")})
	go func() { _ = s.Serve(&hangsUp{l, 8}) }()
	t.Cleanup(s.Stop)
	r, err := Open(t.Context(), Config{Project: "p", Emulator: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		_, err = r.Commit(t.Context(), someCommit)
		if !errors.Is(err, messages.ErrUnavailable) {
			break
		}
		<-tick.C
	}
	one(t, "after an outage", err, messages.ErrUnauthorized)
}
