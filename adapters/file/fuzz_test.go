package file_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/messages"
)

// FuzzEncode: stored fields come back as they were.
func FuzzEncode(f *testing.F) {
	f.Add("text", int64(math.MinInt64), math.Inf(-1))
	f.Add("\x00", int64(-1), math.Copysign(0, -1))
	f.Add("", int64(0), math.NaN())
	f.Fuzz(func(t *testing.T, s string, n int64, x float64) {
		fields := map[string]any{"": nil, s: s, "b" + s: []byte(s), "n": n, "x": x, "yes": true, "no": false, "empty": []byte{}}
		again(t, fields)
	})
}

func again(t *testing.T, fields map[string]any) {
	t.Helper()
	got, err := file.Decode(file.Encode(fields))
	if err != nil {
		t.Fatalf("%#v: %v", fields, err)
	}
	if len(got) != len(fields) {
		t.Errorf("%#v came back as %#v", fields, got)
	}
	for name, v := range fields {
		if x, is := v.(float64); is {
			v, got[name] = math.Float64bits(x), math.Float64bits(got[name].(float64))
		}
		if !reflect.DeepEqual(v, got[name]) {
			t.Errorf("%q: %#v came back as %#v", name, v, got[name])
		}
	}
}

// folders are a remote and a store with something in them, as bytes by path.
var folders = sync.OnceValues(func() (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "tidemark-fuzz")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := fill(dir); err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, path := range []string{"remote.sqlite", "objects/manifest.json", "objects/snapshots%2fg"} {
		if out[path], err = os.ReadFile(filepath.Join(dir, path)); err != nil {
			return nil, err
		}
	}
	return out, nil
})

func fill(dir string) error {
	ctx := context.Background()
	r, err := file.OpenRemote(dir)
	if err != nil {
		return err
	}
	version := int64(0)
	for n := range int64(6) {
		done, err := r.Commit(ctx, commit("a", n+1, version, string(rune('p'+n)), string(rune('A'+n))))
		if err != nil {
			return err
		}
		version = done.UpdateTime
	}
	if err := r.Close(); err != nil {
		return err
	}
	s, err := file.OpenStore(dir)
	if err != nil {
		return err
	}
	for _, key := range []string{"manifest.json", "snapshots/g"} {
		if _, err := s.Put(ctx, key, bytes.NewReader(bytes.Repeat([]byte(key), 40)), messages.Condition{}); err != nil {
			return err
		}
	}
	return s.Close()
}

// damage writes a folder with some bytes of one file changed, and its end cut off.
func damage(t *testing.T, path string, changes []byte, cut uint16) (dir string) {
	t.Helper()
	files, err := folders()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "objects"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, raw := range files {
		if name == path {
			raw = bytes.Clone(raw)
			for ; len(changes) >= 4; changes = changes[4:] {
				raw[int(binary.LittleEndian.Uint16(changes))%len(raw)] ^= changes[2]
			}
			raw = raw[:max(0, len(raw)-int(cut))]
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// classed fails on an error that does not say what to do about it.
func classed(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && messages.Class(err) == "bug" {
		t.Errorf("an error of no class: %v", err)
	}
	return err == nil
}

// FuzzDamagedRemote: whatever happened to the file, every call answers, and an error
// has its class.
func FuzzDamagedRemote(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add([]byte{0, 0, 1, 0}, uint16(0))                                     // not SQLite's header
	f.Add([]byte{24, 0, 0xff, 0, 68, 0, 0xff, 0}, uint16(0))                 // another application id
	f.Add([]byte{28, 0, 0x80, 0}, uint16(0))                                 // more pages than there are
	f.Add([]byte{16, 0, 0xff, 0, 18, 0, 3, 0}, uint16(0))                    // another page size
	f.Add([]byte{100, 0, 0xff, 0, 103, 0, 0xff, 0}, uint16(0))               // the schema's page
	f.Add([]byte{0, 0x10, 0xff, 0, 1, 0x20, 7, 0, 5, 0x30, 9, 0}, uint16(0)) // other pages
	f.Add([]byte{}, uint16(4096))
	f.Add([]byte{}, uint16(65535))
	f.Fuzz(func(t *testing.T, changes []byte, cut uint16) {
		ctx := t.Context()
		r, err := file.OpenRemote(damage(t, "remote.sqlite", changes, cut))
		if !classed(t, err) {
			return
		}
		defer func() { _ = r.Close() }()
		list, err := r.Devices(ctx, 0)
		classed(t, err)
		expect := int64(0)
		for _, d := range list.Devices {
			expect = d.UpdateTime
		}
		_, err = r.Device(ctx, "a")
		classed(t, err)
		for _, q := range []messages.Query{{Table: "docs"}, {Table: "docs", ReadTime: list.ReadTime, Device: "a", Limit: 3}} {
			_, err = r.Read(ctx, q, func(d messages.Document) error {
				if d.Table != "docs" {
					t.Errorf("a document of %q", d.Table)
				}
				return nil
			})
			classed(t, err)
		}
		_, err = r.Documents(ctx, "docs", []string{"p", "A", "z"}, 0)
		classed(t, err)
		_, err = r.Commit(ctx, commit("a", 9, expect, "new"))
		classed(t, err)
	})
}

// FuzzDamagedObject: an object is whole or an error.
func FuzzDamagedObject(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add([]byte{0, 0, 1, 0}, uint16(0))
	f.Add([]byte{90, 0, 0x10, 0}, uint16(0)) // its size
	f.Add([]byte{100, 0, 0x0d, 0}, uint16(0))
	f.Add([]byte{}, uint16(1))
	f.Add([]byte{}, uint16(65535))
	f.Fuzz(func(t *testing.T, changes []byte, cut uint16) {
		ctx := t.Context()
		s, err := file.OpenStore(damage(t, "objects/manifest.json", changes, cut))
		if !classed(t, err) {
			return
		}
		defer func() { _ = s.Close() }()
		body, o, err := s.Get(ctx, "manifest.json", 0)
		if classed(t, err) {
			raw, err := io.ReadAll(body)
			classed(t, err)
			if int64(len(raw)) != o.Size {
				t.Errorf("an object of %d bytes has %d", o.Size, len(raw))
			}
			if err := body.Close(); err != nil {
				t.Error(err)
			}
		}
		_, err = s.List(ctx, "")
		classed(t, err)
		_, err = s.Put(ctx, "manifest.json", bytes.NewReader([]byte("x")), messages.Condition{IfMatch: o.ETag})
		classed(t, err)
		if _, err = s.Put(ctx, "manifest.json", bytes.NewReader([]byte("whole again")), messages.Condition{}); err != nil {
			t.Fatalf("a damaged object cannot be replaced: %v", err)
		}
		classed(t, s.Delete(ctx, "manifest.json"))
	})
}
