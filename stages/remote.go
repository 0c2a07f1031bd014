package stages

import (
	"context"
	"io"

	"github.com/tidemark-sync/tidemark/messages"
)

// DeviceReader reads the Devices collection.
type DeviceReader interface {
	// Scope names what the remote holds, the same in every process and for ever: a
	// database that has synced with one scope must not go on with another, whose
	// numbers mean other commits. "" when the remote cannot tell.
	Scope() string
	// Devices returns the records whose uploadedOn is after since (Unix ms, of the
	// server's clock), our own included, and the read time of the answer – also
	// when it is empty. With since 0 it returns every record that has an
	// uploadedOn, with a negative one really every record.
	Devices(ctx context.Context, since int64) (messages.DeviceList, error)
	// Device returns one record as it is now, billed one read. A record that does
	// not exist has UpdateTime 0 and is no error.
	Device(ctx context.Context, id string) (messages.Device, error)
}

// DocumentReader reads documents.
type DocumentReader interface {
	// Read calls yield with every document of the query, in its order, as of its
	// read time, and returns what was billed: one per document read from the
	// server (also those that yield refused), at least one. An error of yield ends
	// the read and is returned as it is. yield must not keep the document's maps
	// past its return unless it stops using the reader's.
	Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (reads int64, err error)
	// Documents looks documents up by id, as of readTime (Unix µs), or as they are
	// now when readTime is 0. Billed one read an id.
	Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error)
}

// Committer writes.
type Committer interface {
	// Commit writes everything or nothing. It fails with messages.ErrConflict when
	// any precondition does not hold – the record's or a document's, it need not
	// say which – and with messages.ErrRejected when the server will never take
	// it. After messages.ErrUnavailable, or a cancelled context, it may have taken
	// effect all the same, and may still do so later. With c.Remove the record is
	// gone afterwards, and billed as a delete.
	Commit(ctx context.Context, c messages.Commit) (messages.Committed, error)
}

// ObjectStore is a bucket, or a prefix of one. Keys are relative to it and use
// slashes.
type ObjectStore interface {
	// Put streams body into an object, in parts when it is large, with checksums.
	// It fails with messages.ErrConflict when cond does not hold; then, and after
	// any other error or a cancelled context, the object that was there before is
	// still there whole (after messages.ErrUnavailable the new one may be instead)
	// and no parts are left behind.
	Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error)
	// Get streams an object from the given byte on. messages.ErrNotFound when
	// there is none. The caller closes the body; Object.Size is the size of the
	// whole object.
	Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error)
	// List returns the objects whose key starts with prefix, in order of key.
	List(ctx context.Context, prefix string) ([]messages.Object, error)
	// Delete removes an object; one that does not exist is no error.
	Delete(ctx context.Context, key string) error
}
