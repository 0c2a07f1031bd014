package persistence

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

const (
	// fetchTries is how often in a row a download is taken up again that brings nothing.
	fetchTries = 5
	fetchWait  = 200 * time.Millisecond // doubled each time
)

// Getter is the part of a snapshot store that a download needs.
type Getter interface {
	Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error)
}

// Fetch downloads the objects of a snapshot into a folder, which it makes, and returns
// their files. What is there already from a download that was cut off is not read
// again; what belongs to another snapshot is removed. tell hears the bytes so far.
func Fetch(ctx context.Context, store Getter, snap messages.Snapshot, dir string, use *messages.StoreUse, tell func(done, total int64)) ([]string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make room for the download: %w", explain(err))
	}
	parts := snap.Chain()
	files := make([]string, len(parts))
	for i, p := range parts {
		files[i] = filepath.Join(dir, filepath.Base(p.Key))
	}
	there, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look into %s: %w", dir, err)
	}
	for _, e := range there {
		if f := filepath.Join(dir, e.Name()); !slices.Contains(files, f) {
			if err := os.RemoveAll(f); err != nil {
				return nil, fmt.Errorf("remove an older download: %w", err)
			}
		}
	}
	total, before := snap.Download(), int64(0)
	for i, p := range parts {
		d := &download{store: store, part: p, path: files[i], use: use, tell: func(n int64) { tell(before+n, total) }}
		if err := d.run(ctx); err != nil {
			return nil, fmt.Errorf("download snapshot %s: %w", p.Generation, err)
		}
		before += p.Size
	}
	return files, nil
}

// download is one object on its way into a file.
type download struct {
	store Getter
	part  messages.Part
	path  string
	use   *messages.StoreUse
	tell  func(done int64)
}

func (d *download) run(ctx context.Context) error {
	st, err := os.Stat(d.path)
	resumed := err == nil && st.Size() > 0
	for {
		sum, err := d.complete(ctx)
		if err != nil {
			return err
		}
		if sum == d.part.SHA256 {
			return nil
		}
		if err := os.Remove(d.path); err != nil {
			return err
		}
		if !resumed {
			return fmt.Errorf("its object has another checksum than the manifest says; restore an older one: %w", ErrDamaged)
		}
		resumed = false // it may be the part from before that is wrong
	}
}

// complete reads until the file is whole, from where it ends on, and sums it up.
func (d *download) complete(ctx context.Context) (sum string, err error) {
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("write the download: %w", explain(err))
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	n, err := io.CopyBuffer(hash, &live{ctx, struct{ io.Reader }{f}}, make([]byte, 256<<10))
	if err != nil {
		return "", fmt.Errorf("read the download: %w", explain(err))
	}
	if n > d.part.Size {
		hash.Reset()
		if n, err = f.Seek(0, io.SeekStart); err == nil {
			err = f.Truncate(0)
		}
		if err != nil {
			return "", fmt.Errorf("write the download: %w", explain(err))
		}
	}
	beside := newWriteBehind(hash, 256<<10)
	err = d.rest(ctx, io.MultiWriter(f, beside), n)
	if err = errors.Join(err, beside.Close()); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// rest reads what follows the first n bytes.
func (d *download) rest(ctx context.Context, out io.Writer, n int64) error {
	for tries, wait := 0, fetchWait; n < d.part.Size; {
		was := n
		err := d.more(ctx, out, &n)
		if err == nil {
			continue
		}
		if n > was {
			tries, wait = 0, fetchWait
		}
		if tries++; !errors.Is(err, messages.ErrUnavailable) || tries >= fetchTries {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		wait *= 2
	}
	return nil
}

func (d *download) more(ctx context.Context, out io.Writer, n *int64) error {
	d.use.Gets++
	body, o, err := d.store.Get(ctx, d.part.Key, *n)
	if errors.Is(err, messages.ErrNotFound) {
		return fmt.Errorf("its object is not there any more: try again, or restore another one: %w", err)
	}
	if err != nil {
		return err
	}
	defer body.Close()
	if o.Size != d.part.Size {
		return fmt.Errorf("its object has %d bytes and the manifest says %d; restore an older one: %w", o.Size, d.part.Size, ErrDamaged)
	}
	buf := make([]byte, 256<<10)
	for *n < d.part.Size {
		m, rerr := body.Read(buf[:min(int64(len(buf)), d.part.Size-*n)])
		d.use.BytesDown += int64(m)
		if m > 0 {
			if _, err := out.Write(buf[:m]); err != nil {
				return fmt.Errorf("write the download: %w", explain(err))
			}
			*n += int64(m)
			d.tell(*n)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if errors.Is(rerr, io.EOF) && *n < d.part.Size {
			return fmt.Errorf("it broke off: %w", messages.ErrUnavailable)
		}
		if rerr != nil && !errors.Is(rerr, io.EOF) {
			return rerr
		}
	}
	return nil
}

func sumFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, &live{ctx, struct{ io.Reader }{f}}, make([]byte, 256<<10)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
