package firestore

import (
	"testing"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"

	"github.com/tidemark-sync/tidemark/adapters/adaptertest"
	"github.com/tidemark-sync/tidemark/messages"
)

func TestRemote(t *testing.T) {
	adaptertest.Remote(t, func(t *testing.T) adaptertest.RemotePort {
		r, _ := open(t)
		return r
	}, adaptertest.Features{Foreign: writeForeign})
}

func writeForeign(t *testing.T, port adaptertest.RemotePort, table, id string, fields map[string]any) {
	t.Helper()
	r := port.(*Remote)
	doc := &pb.Document{Name: r.name(collectionID(table), id), Fields: map[string]*pb.Value{}}
	for name, v := range fields {
		value, ok := encode(v)
		if !ok {
			t.Fatalf("field %s: %v cannot be stored", name, v)
		}
		doc.Fields[name] = value
	}
	req := &pb.CommitRequest{Database: r.database, Writes: []*pb.Write{{Operation: &pb.Write_Update{Update: doc}}}}
	if _, err := r.client.Commit(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

// The emulator keeps what it has since it was started, so only a read time from
// long before is too old for it; the cloud refuses after an hour.
func TestReadTimeTooOld(t *testing.T) {
	r, _ := open(t)
	one(t, "read", read(t.Context(), r), messages.ErrReadTimeTooOld)
	_, err := r.Documents(t.Context(), "t", []string{"a"}, 1)
	one(t, "lookup", err, messages.ErrReadTimeTooOld)
}

// The root of the database is a scope too.
func TestScopeIsTheRoot(t *testing.T) {
	_, cfg := open(t)
	cfg.Scope = ""
	r, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	commit(t, r, messages.Commit{Device: messages.Device{ID: "a", Token: "t"}, Announce: true, Writes: []messages.Write{{Document: messages.Document{Table: "t", ID: "x"}}}})
	page, err := r.Documents(t.Context(), "t", []string{"x"}, 0)
	if err != nil || len(page.Documents) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	if got := raw(t, cfg, "t", "x"); got == nil {
		t.Fatal("the document is not below the root")
	}
}
