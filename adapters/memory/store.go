package memory

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tidemark-sync/tidemark/messages"
)

// The port calls of a Store by name.
const (
	OpPut    = "put"
	OpGet    = "get"
	OpList   = "list"
	OpDelete = "delete"
)

// partBytes is where an upload is billed as several requests.
const partBytes = 8 << 20

// StoreCall is a port call that is about to be made.
type StoreCall struct {
	Op string
	// Key is the object's, or the prefix of OpList.
	Key string
	// N counts the calls of the handle, this one included.
	N int64
}

// StoreFault is what goes wrong with one call; the zero StoreFault is nothing.
type StoreFault struct {
	// Before fails the call; it takes no effect.
	Before error
	// Break ends the body of a Put or Get with this error after BreakAfter bytes;
	// a Put then has no effect.
	Break      error
	BreakAfter int64
	// Flip changes the byte at BreakAfter of what a Get returns.
	Flip bool
	// Then runs after the effect and before the answer.
	Then func()
	// After fails the call although it took effect.
	After error
}

// Bucket holds objects. The zero value is not usable.
type Bucket struct {
	place    string
	mu       sync.Mutex
	objects  map[string]object
	requests int64
}

// object's bytes are never changed once stored.
type object struct {
	info messages.Object
	body []byte
}

// NewBucket returns an empty bucket.
func NewBucket() *Bucket {
	return &Bucket{place: "memory:" + rand.Text(), objects: map[string]object{}}
}

// Store returns a new handle without faults.
func (b *Bucket) Store() *Store { return &Store{bucket: b} }

// Requests returns how many requests all handles made, those that failed
// included.
func (b *Bucket) Requests() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests
}

// Keys returns all keys in order.
func (b *Bucket) Keys() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := make([]string, 0, len(b.objects))
	for k := range b.objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Store is one handle on a Bucket.
type Store struct {
	// Fault plans what goes wrong with each call; nil is nothing. It is called
	// without any lock. Set it before the first call.
	Fault func(StoreCall) StoreFault
	// IgnoreConditions writes whether or not a Put's condition holds, as some servers
	// that speak S3 do. Set it before the first call.
	IgnoreConditions bool

	bucket *Bucket
	calls  int64 // under the bucket's lock
}

// NewStore returns a handle on a new, empty Bucket.
func NewStore() *Store { return NewBucket().Store() }

// Place tells the bucket from every other one.
func (s *Store) Place() string { return s.bucket.place }

// Bucket returns the bucket that the handle talks to.
func (s *Store) Bucket() *Bucket { return s.bucket }

func (s *Store) begin(ctx context.Context, op, key string) (StoreFault, error) {
	s.bucket.mu.Lock()
	s.calls++
	s.bucket.requests++
	c := StoreCall{Op: op, Key: key, N: s.calls}
	s.bucket.mu.Unlock()
	var f StoreFault
	if s.Fault != nil {
		f = s.Fault(c)
	}
	if err := ended(ctx); err != nil {
		return f, fmt.Errorf("%s %q: %w", op, key, err)
	}
	if f.Before != nil {
		return f, fmt.Errorf("%s %q: %w", op, key, f.Before)
	}
	return f, nil
}

func (f *StoreFault) end(op, key string, err error) error {
	if f.Then != nil {
		f.Then()
	}
	if err == nil {
		err = f.After
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", op, key, err)
	}
	return nil
}

// checkKey refuses what is no clean relative path.
func checkKey(key string) error {
	if key == "" || len(key) > 1024 || !utf8.ValidString(key) || key[0] == '/' || path.Clean(key) != key ||
		key == "." || key == ".." || strings.HasPrefix(key, "../") {
		return fmt.Errorf("the key is empty, longer than 1024 bytes, not valid UTF-8 or no clean relative path: %w", messages.ErrRejected)
	}
	return nil
}

// Put implements the port.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, cond messages.Condition) (messages.Object, error) {
	f, err := s.begin(ctx, OpPut, key)
	if err != nil {
		return messages.Object{}, err
	}
	if err := checkKey(key); err != nil {
		return messages.Object{}, f.end(OpPut, key, err)
	}
	if f.Break != nil {
		body = io.MultiReader(io.LimitReader(body, f.BreakAfter), failing{f.Break})
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, contextReader{ctx, body}); err != nil {
		return messages.Object{}, f.end(OpPut, key, err)
	}
	if s.IgnoreConditions {
		cond = messages.Condition{}
	}
	info, err := s.bucket.put(key, buf.Bytes(), cond)
	if err := f.end(OpPut, key, err); err != nil {
		return messages.Object{}, err
	}
	return info, nil
}

func (b *Bucket) put(key string, body []byte, cond messages.Condition) (messages.Object, error) {
	sum := sha256.Sum256(body)
	b.mu.Lock()
	defer b.mu.Unlock()
	was, exists := b.objects[key]
	if cond.IfAbsent && exists {
		return messages.Object{}, fmt.Errorf("the object exists already: %w", messages.ErrConflict)
	}
	if cond.IfMatch != "" && was.info.ETag != cond.IfMatch {
		return messages.Object{}, fmt.Errorf("the object is not the one with ETag %s: %w", cond.IfMatch, messages.ErrConflict)
	}
	info := messages.Object{
		Key: key, ETag: `"` + hex.EncodeToString(sum[:]) + `"`, Size: int64(len(body)),
		ModifiedOn: time.Now().UnixMilli(), Requests: 1,
	}
	if n := (info.Size + partBytes - 1) / partBytes; n > 1 {
		info.Requests = n + 2 // create, parts, complete
		b.requests += n + 1
	}
	b.objects[key] = object{info, body}
	return info, nil
}

// Get implements the port.
func (s *Store) Get(ctx context.Context, key string, from int64) (io.ReadCloser, messages.Object, error) {
	f, err := s.begin(ctx, OpGet, key)
	if err != nil {
		return nil, messages.Object{}, err
	}
	o, err := s.bucket.get(key, from)
	if err := f.end(OpGet, key, err); err != nil {
		return nil, messages.Object{}, err
	}
	data := o.body[from:]
	if f.Flip && f.BreakAfter < int64(len(data)) {
		data = slices.Clone(data)
		data[f.BreakAfter] ^= 1
	}
	var body io.Reader = bytes.NewReader(data)
	if f.Break != nil {
		body = io.MultiReader(io.LimitReader(body, f.BreakAfter), failing{fmt.Errorf("get %q: %w", key, f.Break)})
	}
	return io.NopCloser(contextReader{ctx, body}), o.info, nil
}

func (b *Bucket) get(key string, from int64) (object, error) {
	if err := checkKey(key); err != nil {
		return object{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.objects[key]
	if !ok {
		return object{}, fmt.Errorf("there is no such object: %w", messages.ErrNotFound)
	}
	if from < 0 || from > o.info.Size {
		return object{}, fmt.Errorf("byte %d is outside of the object's %d: %w", from, o.info.Size, messages.ErrRejected)
	}
	o.info.Requests = 1
	return o, nil
}

// List implements the port.
func (s *Store) List(ctx context.Context, prefix string) ([]messages.Object, error) {
	f, err := s.begin(ctx, OpList, prefix)
	if err != nil {
		return nil, err
	}
	s.bucket.mu.Lock()
	var list []messages.Object
	for k, o := range s.bucket.objects {
		if strings.HasPrefix(k, prefix) {
			o.info.Requests = 0
			list = append(list, o.info)
		}
	}
	s.bucket.mu.Unlock()
	slices.SortFunc(list, func(a, b messages.Object) int { return strings.Compare(a.Key, b.Key) })
	// A page has a thousand keys; its request is counted on its first object.
	for i := 0; i < len(list); i += 1000 {
		list[i].Requests = 1
	}
	if err := f.end(OpList, prefix, nil); err != nil {
		return nil, err
	}
	return list, nil
}

// Delete implements the port.
func (s *Store) Delete(ctx context.Context, key string) error {
	f, err := s.begin(ctx, OpDelete, key)
	if err != nil {
		return err
	}
	err = checkKey(key)
	if err == nil {
		s.bucket.mu.Lock()
		delete(s.bucket.objects, key)
		s.bucket.mu.Unlock()
	}
	return f.end(OpDelete, key, err)
}

// contextReader ends with the context's error once that has ended.
type contextReader struct {
	ctx  context.Context //nolint:containedctx // a body lives as long as its call
	body io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := ended(r.ctx); err != nil {
		return 0, err
	}
	n, err := r.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read the body: %w", err)
	}
	return n, err
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
