package file

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gofrs/flock"

	"github.com/tidemark-sync/tidemark/messages"
)

// Store is an object store in a folder: every object is one file below objects/,
// its name the escaped key. It begins with a line that has the ETag and the size,
// which are known only once the content was written, so both change with it in one
// rename.
type Store struct {
	place            string
	objects, session string
	// alive is held as long as the handle is open: whoever can take it knows that
	// the session's unfinished files are nobody's.
	alive *flock.Flock
	// lock guards the moment between checking a condition and the rename, against
	// other processes; gate does within this handle.
	lock *flock.Flock
	gate chan struct{}
}

const (
	headerFormat = "tidemark-object-1 %64s %020d\n"
	headerBytes  = 18 + 64 + 1 + 20 + 1
)

// OpenStore opens the object store in a folder, makes the folder (not its parents)
// when it does not exist, and clears away what crashed processes left unfinished.
// Errors: messages.ErrNotFound when dir is no folder, messages.ErrUnauthorized
// when it cannot be written, messages.ErrUnavailable when its disk is full or
// another process keeps it locked for 30 s.
func OpenStore(dir string) (*Store, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	s, err := openStore(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("open the store in %q: %w", dir, classify(ctx, err))
	}
	return s, nil
}

func openStore(ctx context.Context, dir string) (*Store, error) {
	abs, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	unfinished := filepath.Join(abs, "unfinished")
	s := &Store{
		place:   abs,
		objects: filepath.Join(abs, "objects"),
		session: filepath.Join(unfinished, rand.Text()),
		lock:    flock.New(filepath.Join(abs, "store.lock")),
		gate:    make(chan struct{}, 1),
	}
	unlock, err := s.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, d := range []string{s.objects, unfinished} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	if err := clearSessions(unfinished); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.session, 0o700); err != nil {
		return nil, err
	}
	s.alive = flock.New(s.session + ".lock")
	if err := s.alive.Lock(); err != nil {
		return nil, errors.Join(err, os.Remove(s.session))
	}
	return s, nil
}

// clearSessions removes the sessions whose process is gone. The store is locked, so no
// session is about to begin.
func clearSessions(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		session := filepath.Join(dir, strings.TrimSuffix(e.Name(), ".lock"))
		alive := flock.New(session + ".lock")
		free, err := alive.TryLock()
		if err != nil {
			return err
		}
		if free {
			err = errors.Join(os.RemoveAll(session), alive.Close(), os.RemoveAll(session+".lock"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Place names the folder, in a form that does not show its path.
func (s *Store) Place() string {
	sum := sha256.Sum256([]byte(s.place))
	return "file:" + hex.EncodeToString(sum[:16])
}

// Close ends the session; calls that still run fail.
func (s *Store) Close() error {
	err := errors.Join(os.RemoveAll(s.session), s.alive.Close(), os.RemoveAll(s.session+".lock"))
	if err != nil {
		return fmt.Errorf("close the store: %w", classify(context.Background(), err))
	}
	return nil
}

// exclusive takes the store's lock; call what it returns.
func (s *Store) exclusive(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	select {
	case s.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, classify(ctx, ctx.Err())
	}
	if _, err := s.lock.TryLockContext(ctx, lockRetry); err != nil {
		<-s.gate
		return nil, classify(ctx, err)
	}
	return func() {
		_ = s.lock.Close() // closing the file gives the lock back in any case
		<-s.gate
	}, nil
}

// Put implements the port. A key whose escaped form is longer than 255 bytes is
// rejected.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	name, err := escape(key)
	if err != nil {
		return messages.Object{}, fmt.Errorf("put %q: %w", key, err)
	}
	o, err := s.put(ctx, name, body, cond)
	if err != nil {
		return messages.Object{}, fmt.Errorf("put %q: %w", key, err)
	}
	o.Key = key
	return o, nil
}

func (s *Store) put(ctx context.Context, name string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	if err := ctx.Err(); err != nil {
		return messages.Object{}, classify(ctx, err)
	}
	temp := filepath.Join(s.session, rand.Text())
	o, err := write(ctx, temp, body)
	if err == nil {
		err = s.replace(ctx, temp, filepath.Join(s.objects, name), cond)
	}
	if err != nil {
		if rerr := os.Remove(temp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return messages.Object{}, err
	}
	return o, nil
}

// write makes the new object's file, and syncs it to the disk.
func write(ctx context.Context, temp string, body io.Reader) (o messages.Object, err error) {
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return o, classify(ctx, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = classify(ctx, cerr)
		}
	}()
	if _, err := f.Seek(headerBytes, io.SeekStart); err != nil {
		return o, classify(ctx, err)
	}
	hash := sha256.New()
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return o, classify(ctx, err)
		}
		n, rerr := body.Read(buf)
		hash.Write(buf[:n])
		o.Size += int64(n)
		if _, err := f.Write(buf[:n]); err != nil {
			return o, classify(ctx, err)
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return o, fmt.Errorf("read the body: %w", rerr)
		}
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if _, err := f.WriteAt(fmt.Appendf(nil, headerFormat, sum, o.Size), 0); err != nil {
		return o, classify(ctx, err)
	}
	if err := f.Sync(); err != nil {
		return o, classify(ctx, err)
	}
	info, err := f.Stat()
	if err != nil {
		return o, classify(ctx, err)
	}
	o.ETag, o.ModifiedOn, o.Requests = quote(sum), info.ModTime().UnixMilli(), 1
	return o, nil
}

// replace moves the file to its place if the condition holds.
func (s *Store) replace(ctx context.Context, temp, file string, cond messages.Condition) error {
	unlock, err := s.exclusive(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if cond != (messages.Condition{}) {
		f, was, err := openObject(file)
		if err == nil {
			err = f.Close()
		}
		exists := !errors.Is(err, fs.ErrNotExist)
		switch {
		case err != nil && exists:
			return classify(ctx, err)
		case cond.IfAbsent && exists:
			return fmt.Errorf("the object exists already: %w", messages.ErrConflict)
		case cond.IfMatch != "" && was.ETag != cond.IfMatch:
			return fmt.Errorf("the object is not the one with ETag %s: %w", cond.IfMatch, messages.ErrConflict)
		}
	}
	if err := os.Rename(temp, file); err != nil {
		return classify(ctx, err)
	}
	return classify(context.WithoutCancel(ctx), syncFolder(s.objects))
}

// syncFolder makes a rename or a removal survive a power cut. Windows has no such
// call; its file system keeps a journal of names.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func quote(sum string) string { return `"` + sum + `"` }

// openObject opens an object's file and reads its first line.
func openObject(file string) (*os.File, messages.Object, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, messages.Object{}, err
	}
	o, err := readHeader(f)
	if err != nil {
		return nil, messages.Object{}, errors.Join(err, f.Close())
	}
	return f, o, nil
}

func readHeader(f *os.File) (messages.Object, error) {
	var (
		o      messages.Object
		sum    string
		header [headerBytes]byte
	)
	info, err := f.Stat()
	if err != nil {
		return o, err
	}
	if _, err := io.ReadFull(f, header[:]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return o, err
	}
	if _, err := fmt.Sscanf(string(header[:]), headerFormat, &sum, &o.Size); err != nil || info.Size() != headerBytes+o.Size {
		return o, messages.Saying(messages.ErrRejected, "%s is damaged or no object, put back a copy or delete it", f.Name())
	}
	o.ETag, o.ModifiedOn, o.Requests = quote(sum), info.ModTime().UnixMilli(), 1
	return o, nil
}

// Get implements the port.
func (s *Store) Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error) {
	body, o, err := s.get(ctx, key, from)
	if err != nil {
		return nil, messages.Object{}, fmt.Errorf("get %q: %w", key, classify(ctx, err))
	}
	return body, o, nil
}

func (s *Store) get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error) {
	name, err := escape(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, messages.Object{}, err
	}
	f, o, err := openObject(filepath.Join(s.objects, name))
	if err != nil {
		return nil, o, err
	}
	if from < 0 || from > o.Size {
		err = fmt.Errorf("byte %d is outside of the object's %d: %w", from, o.Size, messages.ErrRejected)
	} else {
		_, err = f.Seek(headerBytes+from, io.SeekStart)
	}
	if err != nil {
		return nil, o, errors.Join(err, f.Close())
	}
	o.Key = key
	return &content{ctx, f}, o, nil
}

// content is an object's body. The file it reads stays what it was, whatever
// takes its name.
type content struct {
	ctx context.Context //nolint:containedctx // a body lives as long as its call
	f   *os.File
}

func (c *content) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, classify(c.ctx, err)
	}
	n, err := c.f.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = classify(c.ctx, err)
	}
	return n, err
}

func (c *content) Close() error { return c.f.Close() }

// List implements the port.
func (s *Store) List(ctx context.Context, prefix string) ([]messages.Object, error) {
	list, err := s.list(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, classify(ctx, err))
	}
	return list, nil
}

func (s *Store) list(ctx context.Context, prefix string) ([]messages.Object, error) {
	entries, err := os.ReadDir(s.objects)
	if err != nil {
		return nil, err
	}
	var list []messages.Object
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		key, ok := unescape(e.Name())
		if !ok || !strings.HasPrefix(key, prefix) {
			continue
		}
		f, o, err := openObject(filepath.Join(s.objects, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return nil, err
		}
		o.Key, o.Requests = key, 0
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b messages.Object) int { return strings.Compare(a.Key, b.Key) })
	if len(list) > 0 {
		list[0].Requests = 1
	}
	return list, nil
}

// Delete implements the port.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := s.remove(ctx, key); err != nil {
		return fmt.Errorf("delete %q: %w", key, classify(ctx, err))
	}
	return nil
}

func (s *Store) remove(ctx context.Context, key string) error {
	name, err := escape(key)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	unlock, err := s.exclusive(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Remove(filepath.Join(s.objects, name)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncFolder(s.objects)
}

// escape makes a file name of a key: lower-case letters, digits, dash, underscore
// and inner dots stay, so that no two keys meet on a disk that ignores case.
func escape(key string) (string, error) {
	if key == "" || !utf8.ValidString(key) || key[0] == '/' || path.Clean(key) != key || key == "." || key == ".." || strings.HasPrefix(key, "../") {
		return "", fmt.Errorf("the key is empty, not valid UTF-8 or no clean relative path: %w", messages.ErrRejected)
	}
	var b strings.Builder
	for i := range len(key) {
		c := key[i]
		inner := i > 0 && i < len(key)-1
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' && inner {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	if b.Len() > 255 {
		return "", fmt.Errorf("the key needs a file name of %d bytes, the limit is 255: %w", b.Len(), messages.ErrRejected)
	}
	return b.String(), nil
}

// unescape reads what escape wrote; other files are none of ours.
func unescape(name string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] != '%' {
			b.WriteByte(name[i])
			continue
		}
		if i+3 > len(name) {
			return "", false
		}
		c, err := hex.DecodeString(name[i+1 : i+3])
		if err != nil {
			return "", false
		}
		b.Write(c)
		i += 2
	}
	again, err := escape(b.String())
	return b.String(), err == nil && again == name
}
