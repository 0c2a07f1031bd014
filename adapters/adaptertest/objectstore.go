package adaptertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/stages"
)

// large is an object that stores upload in parts.
const large = 12 << 20

// ObjectStore runs the suite. open gives a fresh, empty bucket (or prefix) on
// every call and registers its own clean-up with t. At most one Features is used.
func ObjectStore(t *testing.T, open func(t *testing.T) stages.ObjectStore, features ...Features) {
	f := merged(features)
	tests := map[string]func(t *testing.T, s stages.ObjectStore){
		"PutGetDelete":            testPutGetDelete,
		"GetFrom":                 testGetFrom,
		"NotFound":                testNotFound,
		"ETag":                    testETag,
		"IfAbsent":                testIfAbsent,
		"IfMatch":                 testIfMatch,
		"Race/IfAbsent":           testRaceIfAbsent,
		"Race/IfMatch":            testRaceIfMatch,
		"Body/Unseekable":         testUnseekable,
		"Body/Empty":              testEmptyBody,
		"Body/Large":              testLargeBody,
		"Body/LargeLoses":         testLargeLoses,
		"Body/Fails":              testBodyFails,
		"Body/ReplacedWhileRead":  testReplacedWhileRead,
		"CancelledContext":        testStoreCancelled,
		"CancelledInTheMiddle":    testStoreCancelledMiddle,
		"List":                    testList,
		"Keys":                    testKeys,
		"Keys/OutsideOfTheBucket": testKeysOutside,
	}
	if f.ManyObjects {
		tests["List/Many"] = testListMany
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, open(t))
		})
	}
}

// unseekable is a body that can be read once, as a pipe is.
type unseekable struct{ r io.Reader }

func (u unseekable) Read(p []byte) (int, error) { return u.r.Read(p) }

// pattern is n bytes that differ from part to part.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) ^ seed
	}
	return b
}

func put(t *testing.T, s stages.ObjectStore, key string, body []byte, cond messages.Condition) messages.Object {
	t.Helper()
	o, err := s.Put(t.Context(), key, unseekable{bytes.NewReader(body)}, cond)
	if err != nil {
		t.Fatalf("Put(%q, %d bytes, %+v): %v", key, len(body), cond, err)
	}
	if o.Key != key || o.Size != int64(len(body)) || o.ETag == "" || o.Requests < 1 {
		t.Errorf("Put(%q, %d bytes) answers %+v", key, len(body), o)
	}
	return o
}

func get(t *testing.T, s stages.ObjectStore, key string, from int64) ([]byte, messages.Object) {
	t.Helper()
	body, o, err := s.Get(t.Context(), key, from)
	if err != nil {
		t.Fatalf("Get(%q, %d): %v", key, from, err)
	}
	b, err := io.ReadAll(body)
	if err = errors.Join(err, body.Close()); err != nil {
		t.Fatalf("Get(%q, %d): %v", key, from, err)
	}
	if o.Key != key || o.Size != from+int64(len(b)) || o.ETag == "" || o.Requests < 1 || o.ModifiedOn <= 0 {
		t.Errorf("Get(%q, %d) answers %+v and %d bytes", key, from, o, len(b))
	}
	return b, o
}

// wantObject checks that an object is the one that was put.
func wantObject(t *testing.T, s stages.ObjectStore, key string, body []byte, etag string) {
	t.Helper()
	b, o := get(t, s, key, 0)
	if !bytes.Equal(b, body) || o.ETag != etag {
		t.Errorf("the object %q has %d bytes and ETag %s, want the %d bytes with ETag %s", key, len(b), o.ETag, len(body), etag)
	}
}

func wantKeys(t *testing.T, s stages.ObjectStore, prefix string, want ...string) []messages.Object {
	t.Helper()
	list, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatalf("List(%q): %v", prefix, err)
	}
	var got []string
	for _, o := range list {
		got = append(got, o.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("List(%q) is %q, want %q", prefix, got, want)
	}
	return list
}

func testPutGetDelete(t *testing.T, s stages.ObjectStore) {
	o := put(t, s, "a/b", []byte("hello"), messages.Condition{})
	wantObject(t, s, "a/b", []byte("hello"), o.ETag)
	o = put(t, s, "a/b", []byte("replaced"), messages.Condition{})
	wantObject(t, s, "a/b", []byte("replaced"), o.ETag)
	if err := s.Delete(t.Context(), "a/b"); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	wantKeys(t, s, "")
	_, _, err := s.Get(t.Context(), "a/b", 0)
	wantClass(t, err, messages.ErrNotFound)
}

func testGetFrom(t *testing.T, s stages.ObjectStore) {
	body := pattern(300_000, 1)
	put(t, s, "x", body, messages.Condition{})
	for _, from := range []int64{0, 1, 100_000, 299_999, 300_000} {
		if got, _ := get(t, s, "x", from); !bytes.Equal(got, body[from:]) {
			t.Errorf("from byte %d there are %d other bytes", from, len(got))
		}
	}
	for _, from := range []int64{-1, 300_001} {
		body, _, err := s.Get(t.Context(), "x", from)
		if err == nil {
			_ = body.Close()
		}
		wantClass(t, err, messages.ErrRejected)
	}
}

func testNotFound(t *testing.T, s stages.ObjectStore) {
	for _, from := range []int64{0, 5} {
		_, _, err := s.Get(t.Context(), "nothing/here", from)
		wantClass(t, err, messages.ErrNotFound)
	}
	if err := s.Delete(t.Context(), "nothing/here"); err != nil {
		t.Errorf("Delete of what does not exist: %v", err)
	}
	wantKeys(t, s, "nothing")
}

func testETag(t *testing.T, s stages.ObjectStore) {
	one := put(t, s, "x", []byte("one"), messages.Condition{})
	two := put(t, s, "x", []byte("two"), messages.Condition{})
	if one.ETag == two.ETag {
		t.Errorf("other content has the same ETag %s", one.ETag)
	}
	if _, o := get(t, s, "x", 1); o.ETag != two.ETag {
		t.Errorf("Get has ETag %s, Put had %s", o.ETag, two.ETag)
	}
	if list := wantKeys(t, s, "x", "x"); list[0].ETag != two.ETag || list[0].Size != 3 || list[0].ModifiedOn <= 0 {
		t.Errorf("List has %+v, Put had %+v", list[0], two)
	}
}

func testIfAbsent(t *testing.T, s stages.ObjectStore) {
	o := put(t, s, "x", []byte("first"), messages.Condition{IfAbsent: true})
	_, err := s.Put(t.Context(), "x", unseekable{strings.NewReader("second")}, messages.Condition{IfAbsent: true})
	wantClass(t, err, messages.ErrConflict)
	wantObject(t, s, "x", []byte("first"), o.ETag)
	if err := s.Delete(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	put(t, s, "x", []byte("third"), messages.Condition{IfAbsent: true})
}

func testIfMatch(t *testing.T, s stages.ObjectStore) {
	one := put(t, s, "x", []byte("one"), messages.Condition{})
	two := put(t, s, "x", []byte("two"), messages.Condition{IfMatch: one.ETag})
	_, err := s.Put(t.Context(), "x", unseekable{strings.NewReader("three")}, messages.Condition{IfMatch: one.ETag})
	wantClass(t, err, messages.ErrConflict)
	wantObject(t, s, "x", []byte("two"), two.ETag)
	// An ETag that Get or List gave is as good as the one that Put gave.
	_, o := get(t, s, "x", 0)
	put(t, s, "x", []byte("four"), messages.Condition{IfMatch: o.ETag})
	o = wantKeys(t, s, "", "x")[0]
	put(t, s, "x", []byte("five"), messages.Condition{IfMatch: o.ETag})
	_, err = s.Put(t.Context(), "y", unseekable{strings.NewReader("six")}, messages.Condition{IfMatch: two.ETag})
	wantClass(t, err, messages.ErrConflict)
	wantKeys(t, s, "", "x")
}

func testRaceIfAbsent(t *testing.T, s stages.ObjectStore) {
	var (
		wg      sync.WaitGroup
		winners atomic.Int64
		body    atomic.Value
	)
	for i := range 16 {
		wg.Go(func() {
			mine := fmt.Sprint("writer ", i)
			for range 20 {
				_, err := s.Put(t.Context(), "x", unseekable{strings.NewReader(mine)}, messages.Condition{IfAbsent: true})
				switch {
				case err == nil:
					winners.Add(1)
					body.Store(mine)
					return
				case errors.Is(err, messages.ErrConflict):
					return
				case !errors.Is(err, messages.ErrUnavailable): // a server may ask to try again
					t.Errorf("Put: %v", err)
					return
				}
			}
			t.Error("the store is unavailable every time")
		})
	}
	wg.Wait()
	if n := winners.Load(); n != 1 {
		t.Fatalf("%d of 16 writers won", n)
	}
	if got, _ := get(t, s, "x", 0); string(got) != body.Load() {
		t.Errorf("the object is %q, the winner wrote %q", got, body.Load())
	}
}

func testRaceIfMatch(t *testing.T, s stages.ObjectStore) {
	const writers, each = 8, 4
	put(t, s, "x", []byte("0"), messages.Condition{})
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done, tries := 0, 0; done < each; tries++ {
				if tries > 2000 {
					t.Error("a writer never wins")
					return
				}
				body, o, err := s.Get(t.Context(), "x", 0)
				if err != nil {
					t.Errorf("Get: %v", err)
					return
				}
				b, err := io.ReadAll(body)
				_ = body.Close()
				n, perr := strconv.Atoi(string(b))
				if err != nil || perr != nil {
					t.Errorf("the object is %q: %v, %v", b, err, perr)
					return
				}
				_, err = s.Put(t.Context(), "x", unseekable{strings.NewReader(strconv.Itoa(n + 1))}, messages.Condition{IfMatch: o.ETag})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, messages.ErrConflict) && !errors.Is(err, messages.ErrUnavailable):
					t.Errorf("Put: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got, _ := get(t, s, "x", 0); string(got) != strconv.Itoa(writers*each) {
		t.Errorf("after %d increments the object is %s", writers*each, got)
	}
}

func testUnseekable(t *testing.T, s stages.ObjectStore) {
	r, w := io.Pipe()
	body := pattern(100_000, 2)
	go func() {
		for chunk := range slices.Chunk(body, 977) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
		_ = w.Close()
	}()
	o, err := s.Put(t.Context(), "x", r, messages.Condition{})
	_ = r.Close()
	if err != nil || o.Size != int64(len(body)) {
		t.Fatalf("Put of a pipe: %+v, %v", o, err)
	}
	wantObject(t, s, "x", body, o.ETag)
}

func testEmptyBody(t *testing.T, s stages.ObjectStore) {
	o := put(t, s, "x", nil, messages.Condition{IfAbsent: true})
	wantObject(t, s, "x", nil, o.ETag)
	put(t, s, "x", nil, messages.Condition{IfMatch: o.ETag})
	wantKeys(t, s, "", "x")
}

func testLargeBody(t *testing.T, s stages.ObjectStore) {
	body := pattern(large, 3)
	o := put(t, s, "x", body, messages.Condition{IfAbsent: true})
	wantObject(t, s, "x", body, o.ETag)
	if got, _ := get(t, s, "x", 9<<20+5); !bytes.Equal(got, body[9<<20+5:]) {
		t.Error("the end of the object differs")
	}
	body = pattern(large, 4)
	o = put(t, s, "x", body, messages.Condition{IfMatch: o.ETag})
	wantObject(t, s, "x", body, o.ETag)
}

func testLargeLoses(t *testing.T, s stages.ObjectStore) {
	old := put(t, s, "x", []byte("old"), messages.Condition{})
	for _, cond := range []messages.Condition{{IfAbsent: true}, {IfMatch: put(t, s, "other", []byte("other"), messages.Condition{}).ETag}} {
		_, err := s.Put(t.Context(), "x", unseekable{bytes.NewReader(pattern(large, 5))}, cond)
		wantClass(t, err, messages.ErrConflict)
		wantObject(t, s, "x", []byte("old"), old.ETag)
	}
	wantKeys(t, s, "", "other", "x")
}

func testBodyFails(t *testing.T, s stages.ObjectStore) {
	old := put(t, s, "x", []byte("old"), messages.Condition{})
	broken := errors.New("the disk is gone")
	for _, n := range []int{0, 10, 9 << 20} {
		for _, key := range []string{"x", "y"} {
			body := unseekable{io.MultiReader(bytes.NewReader(pattern(n, 6)), failing{broken})}
			if _, err := s.Put(t.Context(), key, body, messages.Condition{}); !errors.Is(err, broken) {
				t.Errorf("a body that fails after %d bytes gives %v", n, err)
			}
		}
	}
	wantObject(t, s, "x", []byte("old"), old.ETag)
	wantKeys(t, s, "", "x")
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func testReplacedWhileRead(t *testing.T, s stages.ObjectStore) {
	before, after := pattern(large, 7), pattern(large+1, 8)
	o := put(t, s, "x", before, messages.Condition{})
	body, info, err := s.Get(t.Context(), "x", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	first := make([]byte, 1000)
	if _, err := io.ReadFull(body, first); err != nil {
		t.Fatal(err)
	}
	put(t, s, "x", after, messages.Condition{IfMatch: o.ETag})
	rest, err := io.ReadAll(body)
	// A store may break off, but never mix.
	if err == nil && (info.ETag != o.ETag || !bytes.Equal(append(first, rest...), before)) {
		t.Errorf("what was read is neither the old object nor an error")
	}
}

func testStoreCancelled(t *testing.T, s stages.ObjectStore) {
	old := put(t, s, "x", []byte("old"), messages.Condition{})
	ctx := cancelled()
	_, err := s.Put(ctx, "x", unseekable{strings.NewReader("new")}, messages.Condition{})
	wantCancelled(t, "Put", err)
	body, _, err := s.Get(ctx, "x", 0)
	if err == nil {
		_ = body.Close()
	}
	wantCancelled(t, "Get", err)
	_, err = s.List(ctx, "")
	wantCancelled(t, "List", err)
	wantCancelled(t, "Delete", s.Delete(ctx, "x"))
	wantObject(t, s, "x", []byte("old"), old.ETag)
}

// cancelling cancels once it was read up to its end, and never ends itself.
type cancelling struct {
	r      io.Reader
	ctx    context.Context //nolint:containedctx // a body lives as long as its call
	cancel context.CancelFunc
}

func (c cancelling) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	c.cancel()
	<-c.ctx.Done()
	return len(p), nil // as if there were more
}

func testStoreCancelledMiddle(t *testing.T, s stages.ObjectStore) {
	old := put(t, s, "x", []byte("old"), messages.Condition{})
	for _, n := range []int{10, 9 << 20} {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := s.Put(ctx, "x", cancelling{bytes.NewReader(pattern(n, 9)), ctx, cancel}, messages.Condition{})
		wantCancelled(t, fmt.Sprintf("Put, after %d bytes,", n), err)
	}
	wantObject(t, s, "x", []byte("old"), old.ETag)
	wantKeys(t, s, "", "x")
}

func testList(t *testing.T, s stages.ObjectStore) {
	wantKeys(t, s, "")
	for _, key := range []string{"snapshots/b", "snapshots/a", "snapshots-old", "manifest", "snapshots/a.2", "snapshots/B", "snapshots/z/deep"} {
		put(t, s, key, []byte(key), messages.Condition{})
	}
	wantKeys(t, s, "", "manifest", "snapshots-old", "snapshots/B", "snapshots/a", "snapshots/a.2", "snapshots/b", "snapshots/z/deep")
	wantKeys(t, s, "snapshots/", "snapshots/B", "snapshots/a", "snapshots/a.2", "snapshots/b", "snapshots/z/deep")
	wantKeys(t, s, "snapshots/a", "snapshots/a", "snapshots/a.2")
	wantKeys(t, s, "snapshots/z/deep", "snapshots/z/deep")
	wantKeys(t, s, "snapshots/y")
	wantKeys(t, s, "Manifest")
}

func testListMany(t *testing.T, s stages.ObjectStore) {
	var want []string
	for i := range 2100 {
		key := fmt.Sprintf("many/%04d", i)
		put(t, s, key, []byte{byte(i)}, messages.Condition{})
		want = append(want, key)
	}
	put(t, s, "one", nil, messages.Condition{})
	wantKeys(t, s, "many/", want...)
	wantKeys(t, s, "many/20", want[2000:]...)
}

func testKeys(t *testing.T, s stages.ObjectStore) {
	keys := []string{
		"plain", "with space", " ", "a/b/c/d", "plus+plus", "per%cent", "%2F", "ünï/ço/🙂", `quo"te'`, "a=b&c", "UPPER", "upper", "til~de", "(paren)", "star*",
		"ques?tion", "ha#sh", "co:lon", "semi;colon", "at@", "com,ma", "dol$lar", ".hidden", "trailing.", "..x", "a/..x", "back`tick", "<angle>", "[brackets]", "{braces}", "ca^ret", "pi|pe",
		strings.Repeat("long", 30),
	}
	for _, key := range keys {
		put(t, s, key, []byte("of "+key), messages.Condition{IfAbsent: true})
	}
	for _, key := range keys {
		if got, _ := get(t, s, key, 0); string(got) != "of "+key {
			t.Errorf("under %q there is %q", key, got)
		}
	}
	slices.Sort(keys)
	wantKeys(t, s, "", keys...)
	for _, key := range keys {
		if err := s.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete(%q): %v", key, err)
		}
	}
	wantKeys(t, s, "")
}

func testKeysOutside(t *testing.T, s stages.ObjectStore) {
	for _, key := range []string{"", "/", "/x", "..", ".", "../x", "a/../../x", "a/../x", "./x", "a//x", "a/", "a/..", "bad\xffutf8"} {
		_, err := s.Put(t.Context(), key, unseekable{strings.NewReader("x")}, messages.Condition{})
		wantClass(t, err, messages.ErrRejected)
		_, _, err = s.Get(t.Context(), key, 0)
		wantClass(t, err, messages.ErrRejected)
		wantClass(t, s.Delete(t.Context(), key), messages.ErrRejected)
	}
	wantKeys(t, s, "")
}
