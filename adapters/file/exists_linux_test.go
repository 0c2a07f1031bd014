package file_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/messages"
)

// A store that only its owner may open is not one that does not exist.
func TestAStoreOfAnotherUser(t *testing.T) {
	t.Parallel()
	above := t.TempDir()
	dir := filepath.Join(above, "store")
	if err := os.MkdirAll(filepath.Join(dir, "objects"), 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		if err := os.Chmod(dir, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	} else {
		for _, d := range []string{above, filepath.Dir(above)} {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		runtime.LockOSThread() // it is this thread that becomes nobody
		if err := syscall.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Setfsuid(0); err == nil {
				runtime.UnlockOSThread()
			}
		})
	}
	for what, err := range map[string]error{"the store": file.StoreExists(dir), "a folder in it": file.Exists(filepath.Join(dir, "objects"))} {
		if !errors.Is(err, messages.ErrUnauthorized) {
			t.Errorf("%s of another user: %v", what, err)
		}
	}
}
