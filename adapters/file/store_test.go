package file_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/messages"
)

func TestFailuresLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	broken := errors.New("broken")
	for _, key := range []string{"x", "../x", strings.Repeat("ü", 100)} {
		if _, err := s.Put(t.Context(), key, io.MultiReader(strings.NewReader("half"), failing{broken}), messages.Condition{}); err == nil {
			t.Errorf("Put(%q) succeeded", key)
		}
	}
	if _, err := s.Put(t.Context(), "x", strings.NewReader("x"), messages.Condition{IfMatch: "y"}); !errors.Is(err, messages.ErrConflict) {
		t.Error(err)
	}
	if left := unfinished(t, dir); len(left) != 2 {
		t.Errorf("unfinished files stay: %v", left)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestOpenSparesWhatOthersWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Put(t.Context(), "x", r, messages.Condition{})
		done <- err
	}()
	if _, err := w.Write([]byte("first half, ")); err != nil {
		t.Fatal(err)
	}
	other := openStore(t, dir) // clears away what is nobody's
	if _, err := w.Write([]byte("second half")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), <-done); err != nil {
		t.Fatal(err)
	}
	body, _, err := other.Get(t.Context(), "x", 6)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || string(got) != "half, second half" {
		t.Errorf("the object is %q, %v", got, err)
	}
}

func TestDamagedObject(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	if _, err := s.Put(t.Context(), "x", strings.NewReader("content"), messages.Condition{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "objects", "x")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, whole[:10], whole[:len(whole)-1], bytes.ToUpper(whole), append(whole, 'x')} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Get(t.Context(), "x", 0); !errors.Is(err, messages.ErrRejected) || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("of a file of %d bytes Get says %v", len(bad), err)
		}
	}
	// Files of other programs are none of ours.
	if err := os.WriteFile(filepath.Join(dir, "objects", "Thumbs.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "x", strings.NewReader("again"), messages.Condition{}); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(t.Context(), ""); err != nil || len(list) != 1 || list[0].Size != 5 {
		t.Errorf("List is %+v, %v", list, err)
	}
}

func FuzzEscape(f *testing.F) {
	for _, key := range []string{"a/b", "Ünï 🙂", ".hidden", "%2f", "..", "a/../b", "x.", "CON"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		name, err := file.Escape(key)
		if err != nil {
			return
		}
		if name != filepath.Base(name) || name == "." || name == ".." || strings.ToLower(name) != name {
			t.Errorf("%q became the file name %q", key, name)
		}
		if again, ok := file.Unescape(name); !ok || again != key {
			t.Errorf("%q became %q and then %q", key, name, again)
		}
	})
}
