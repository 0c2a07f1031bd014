package file_test

import (
	"path/filepath"
	"testing"

	"github.com/tidemark-sync/tidemark/adapters/adaptertest"
	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/stages"
)

var (
	_ stages.DeviceReader   = (*file.Remote)(nil)
	_ stages.DocumentReader = (*file.Remote)(nil)
	_ stages.Committer      = (*file.Remote)(nil)
	_ stages.ObjectStore    = (*file.Store)(nil)
)

func openRemote(t *testing.T, dir string) *file.Remote {
	t.Helper()
	r, err := file.OpenRemote(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestRemote(t *testing.T) {
	t.Parallel()
	adaptertest.Remote(t, func(t *testing.T) adaptertest.RemotePort {
		t.Helper()
		return openRemote(t, filepath.Join(t.TempDir(), `ünï ?#%41 "x"`))
	}, adaptertest.Features{ReadTimeTooOld: true})
}

func openStore(t *testing.T, dir string) *file.Store {
	t.Helper()
	s, err := file.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestObjectStore(t *testing.T) {
	t.Parallel()
	adaptertest.ObjectStore(t, func(t *testing.T) stages.ObjectStore {
		t.Helper()
		return openStore(t, filepath.Join(t.TempDir(), `ünï ?#%41 "x"`))
	})
}
