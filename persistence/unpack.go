package persistence

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// unpack turns the downloaded objects of a snapshot, in their order, into the database
// file: the whole one first, then what changed. What comes out has the checksum that
// the last one, and the manifest, say.
func (r Restoration) unpack(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("write the restored file: %w", explain(err))
	}
	defer f.Close()
	u := &unpacking{Restoration: r, file: f, sum: sha256.New()}
	parts := r.Snapshot.Chain()
	if len(r.Objects) != len(parts) {
		return errors.New("not as many objects as the snapshot has")
	}
	for i, p := range parts {
		if err := u.object(ctx, i, parts); err != nil {
			return u.explain(ctx, err, p.Generation)
		}
	}
	if len(parts) > 1 {
		if err := u.sumUp(ctx); err != nil {
			return fmt.Errorf("read the restored file: %w", explain(err))
		}
	}
	if r.Snapshot.Format >= 2 && hex.EncodeToString(u.sum.Sum(nil)) != r.Snapshot.RawSHA256 {
		return fmt.Errorf("what comes out of snapshot %s is another file than its maker's; restore an older one: %w", r.Snapshot.Generation, ErrDamaged)
	}
	return f.Close()
}

type unpacking struct {
	Restoration
	file     *os.File
	sum      hash.Hash
	pageSize int
	size     int64
}

// explain tells a failure of the disk, or a wrong key, from a damaged snapshot.
func (u *unpacking) explain(ctx context.Context, err error, generation string) error {
	_, disk := errors.AsType[*writeError](err)
	switch {
	case disk:
		return fmt.Errorf("write the restored file: %w", explain(err))
	case ctx.Err() != nil, errors.Is(err, ErrNoKey), errors.Is(err, ErrNotEncrypted), errors.Is(err, messages.ErrWrongKey), errors.Is(err, ErrNewer),
		errors.Is(err, ErrDamaged), errors.Is(err, ErrOtherScope), errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("snapshot %s: %w", generation, err)
	}
	return fmt.Errorf("snapshot %s cannot be unpacked; restore an older one: %w (%w)", generation, ErrDamaged, err)
}

func (u *unpacking) object(ctx context.Context, i int, parts []messages.Part) (err error) {
	in, err := os.Open(u.Objects[i])
	if err != nil {
		return err
	}
	defer in.Close()
	o, err := openObject(&live{ctx, in}, u.Snapshot.Format, u.Encryption)
	if err != nil {
		return err
	}
	defer o.close()
	if u.Snapshot.Format < 2 {
		return u.whole(ctx, o, u.Snapshot.RawSize, u.sum)
	}
	if err := u.check(o.header, i, parts); err != nil {
		return err
	}
	h := o.header
	if i > 0 {
		return u.changes(o, h)
	}
	u.pageSize = h.PageSize
	sum := u.sum
	if len(parts) > 1 {
		sum = nil // it is another file in the end
	}
	return u.whole(ctx, o, h.RawSize, sum)
}

// check compares what an object says of itself with what it was looked for as.
func (u *unpacking) check(h messages.Header, i int, parts []messages.Part) error {
	want := u.Snapshot.Header(h.PageSize)
	if i < len(parts)-1 { // of the objects before, the manifest knows less
		want = h
		want.Generation, want.Previous, want.Scope = parts[i].Generation, "", u.Snapshot.Scope
		if i > 0 {
			want.Previous = parts[i-1].Generation
		}
	}
	if h.Scope != want.Scope {
		return fmt.Errorf("it holds the rows of another scope than the manifest says: %w", ErrDamaged)
	}
	got, err := json.Marshal(h)
	if err != nil {
		return err
	}
	expected, err := json.Marshal(want)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, expected) {
		return fmt.Errorf("it is another snapshot than the manifest says, or the manifest was changed: %w", ErrDamaged)
	}
	if h.PageSize < 512 || h.PageSize > 1<<16 || h.PageSize&(h.PageSize-1) != 0 || h.RawSize <= 0 || h.RawSize%int64(h.PageSize) != 0 || i > 0 && h.PageSize != u.pageSize {
		return errors.New("the size of its pages makes no sense")
	}
	return nil
}

func (u *unpacking) whole(ctx context.Context, o *object, size int64, sum hash.Hash) error {
	out := newWriteBehind(&diskWriter{w: u.file, sum: sum, tell: func(n int64) { u.tell(PhaseUnpack, n, size) }}, 256<<10)
	// What compresses well is read in one go, and written for long.
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, &live{ctx, io.LimitReader(o, size)}, make([]byte, 64<<10))
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	u.size = size
	return o.end()
}

func (u *unpacking) changes(o *object, h messages.Header) error {
	if h.RawSize < u.size {
		if err := u.file.Truncate(h.RawSize); err != nil {
			return &writeError{err}
		}
	}
	u.size = h.RawSize
	if err := applyChanges(u.file, bufio.NewReader(o.Reader), h.PageSize, h.RawSize/int64(h.PageSize)); err != nil {
		return err
	}
	return o.end()
}

// sumUp reads the file that changes were written into.
func (u *unpacking) sumUp(ctx context.Context) error {
	st, err := u.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() != u.size {
		return fmt.Errorf("%d bytes instead of %d: %w", st.Size(), u.size, ErrDamaged)
	}
	if _, err := u.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = io.CopyBuffer(u.sum, &live{ctx, struct{ io.Reader }{u.file}}, make([]byte, 256<<10))
	return err
}

// diskWriter tells failures of the disk apart, and sums up what was written.
type diskWriter struct {
	w    io.Writer
	sum  hash.Hash
	n    int64
	tell func(int64)
}

func (d *diskWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if d.sum != nil {
		_, _ = d.sum.Write(p[:n]) // never fails
	}
	d.n += int64(n)
	d.tell(d.n)
	if err != nil {
		err = &writeError{err}
	}
	return n, err
}

// mismatch reports that SQLite cannot check a key that the schema declares onto no
// key, here or anywhere.
func mismatch(err error) bool {
	return err != nil && strings.Contains(err.Error(), "foreign key mismatch")
}
