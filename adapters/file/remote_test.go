package file_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/messages"
)

// commit is a device's nth commit, of one new document per id.
func commit(device string, n, expect int64, ids ...string) messages.Commit {
	c := messages.Commit{Device: messages.Device{ID: device, Seq: n, Token: fmt.Sprint(device, n)}, Expect: expect, Announce: true}
	for _, id := range ids {
		c.Writes = append(c.Writes, messages.Write{Document: messages.Document{
			Table: "docs", ID: id, UpdatedBy: device, Stamp: messages.Stamp{Device: device, Seq: n}, Fields: map[string]any{"n": n},
		}})
	}
	return c
}

func must(t *testing.T, r *file.Remote, c messages.Commit) int64 {
	t.Helper()
	done, err := r.Commit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return done.UpdateTime
}

func TestRemoteSurvivesReopening(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, err := file.OpenRemote(dir)
	if err != nil {
		t.Fatal(err)
	}
	v := must(t, r, commit("a", 1, 0, "x"))
	list, err := r.Devices(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	other := openRemote(t, dir)
	must(t, other, commit("b", 1, 0, "y"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Devices(t.Context(), 0); err == nil {
		t.Error("a closed remote answers")
	}
	r = openRemote(t, dir)
	page, err := r.Documents(t.Context(), "docs", []string{"x", "y"}, list.ReadTime)
	if err != nil || len(page.Documents) != 1 || page.Documents[0].UpdateTime != v {
		t.Errorf("at the read time from before there is %+v, %v", page, err)
	}
	again, err := r.Devices(t.Context(), 0)
	if err != nil || len(again.Devices) != 2 || again.ReadTime <= list.ReadTime {
		t.Errorf("Devices is %+v, %v", again, err)
	}
}

func TestFilesAreTheOwnersOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	must(t, openRemote(t, dir), commit("a", 1, 0, "x"))
	s := openStore(t, dir)
	if _, err := s.Put(t.Context(), "a/b", strings.NewReader("x"), messages.Condition{}); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		files++
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil || files < 8 {
		t.Errorf("%d files, %v", files, err)
	}
}

func TestHostileFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(path, content string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "plain"), "a file")
	write(filepath.Join(dir, "text", "remote.sqlite"), strings.Repeat("no database at all ", 1000))
	if err := os.MkdirAll(filepath.Join(dir, "folder", "remote.sqlite"), 0o700); err != nil {
		t.Fatal(err)
	}
	for path, script := range map[string]string{"foreign": `CREATE TABLE theirs (x)`, "newer": `CREATE TABLE clock (x); PRAGMA application_id = 1952738667; PRAGMA user_version = 99`} {
		write(filepath.Join(dir, path, "remote.sqlite"), "")
		db, err := sql.Open("sqlite", filepath.Join(dir, path, "remote.sqlite"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), script); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		class error
		says  string
	}{
		"plain":         {messages.ErrNotFound, "not a folder"},
		"plain/below":   {messages.ErrNotFound, ""},
		"nothing/below": {messages.ErrNotFound, "parent"},
		"text":          {messages.ErrNotFound, "another folder"},
		"folder":        {messages.ErrNotFound, "not a file"},
		"foreign":       {messages.ErrNotFound, "another program"},
		"newer":         {messages.ErrRejected, "upgrade"},
	} {
		r, err := file.OpenRemote(filepath.Join(dir, name))
		if err == nil {
			_ = r.Close()
		}
		if !errors.Is(err, tt.class) || !strings.Contains(fmt.Sprint(err), tt.says) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("OpenRemote(%q): %v", name, err)
		}
	}
	for _, name := range []string{"plain", "plain/below", "nothing/below"} {
		s, err := file.OpenStore(filepath.Join(dir, name))
		if err == nil {
			_ = s.Close()
		}
		if !errors.Is(err, messages.ErrNotFound) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("OpenStore(%q): %v", name, err)
		}
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for cause, class := range map[error]error{
		&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}:   messages.ErrUnauthorized,
		&fs.PathError{Op: "open", Path: "x", Err: syscall.EROFS}:    messages.ErrUnauthorized,
		&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}:  messages.ErrUnavailable,
		&fs.PathError{Op: "write", Path: "x", Err: syscall.EIO}:     messages.ErrUnavailable,
		&fs.PathError{Op: "mkdir", Path: "x", Err: syscall.ENOTDIR}: messages.ErrNotFound,
	} {
		err := file.Classify(t.Context(), cause)
		if !errors.Is(err, class) || !errors.Is(err, cause) || messages.Class(err) != class.Error() {
			t.Errorf("%v became %v", cause, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := file.Classify(ctx, errors.New("interrupted")); err != context.Canceled { //nolint:errorlint // exactly it
		t.Errorf("in a cancelled context: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 0)
	defer cancel()
	if err := file.Classify(ctx, errors.New("interrupted")); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, messages.ErrUnavailable) {
		t.Errorf("past the deadline: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	r := openRemote(t, t.TempDir())
	v := must(t, r, commit("a", 1, 0, "x"))
	if err := file.FillDisk(t.Context(), r, 1); err != nil {
		t.Fatal(err)
	}
	c := commit("a", 2, v, "y")
	c.Writes[0].Document.Fields["text"] = strings.Repeat("x", 500_000)
	_, err := r.Commit(t.Context(), c)
	if !errors.Is(err, messages.ErrUnavailable) || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("on a full disk Commit says %v", err)
	}
	if err := file.FillDisk(t.Context(), r, 1<<30); err != nil {
		t.Fatal(err)
	}
	must(t, r, c)
}

func TestFileThatWasTakenAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := openRemote(t, dir)
	v := must(t, r, commit("a", 1, 0, "x"))
	path := filepath.Join(dir, "remote.sqlite")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Commit(t.Context(), commit("a", 2, v, "y")); !errors.Is(err, messages.ErrNotFound) {
		t.Errorf("a commit to a file that is gone says %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Devices(t.Context(), 0); !errors.Is(err, messages.ErrNotFound) || !strings.Contains(err.Error(), "open it again") {
		t.Errorf("Devices of a file that was replaced says %v", err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	must(t, r, commit("a", 2, v, "y"))
}

func TestPagesNeedNoSorting(t *testing.T) {
	t.Parallel()
	r := openRemote(t, t.TempDir())
	at := messages.Stamp{Device: "a", Seq: 1}
	for _, q := range []messages.Query{
		{Table: "docs", ReadTime: 1, After: messages.Position{ID: "x"}},
		{Table: "docs", ReadTime: 1, Device: "a", After: messages.Position{Stamp: at}},
		{Table: "docs", ReadTime: 1, Device: "a", After: messages.Position{Stamp: at, ID: "x"}},
	} {
		plan, err := file.Plan(t.Context(), r, q)
		if err != nil || strings.Contains(plan, "TEMP B-TREE") || strings.Contains(plan, "SCAN") || !strings.Contains(plan, ">") {
			t.Errorf("%+v: %s, %v", q, plan, err)
		}
	}
}

func TestHistoryIsForgotten(t *testing.T) {
	t.Parallel()
	r := openRemote(t, t.TempDir())
	v := must(t, r, commit("a", 1, 0, "x", "y"))
	for n := int64(2); n <= 20; n++ {
		c := commit("a", n, v, "x")
		c.Writes[0].Expect = v
		v = must(t, r, c)
	}
	c := commit("a", 21, v, "y")
	c.Writes[0].Expect, c.Writes[0].Purge = must(t, r, commit("b", 1, 0, "z"))-1, true
	if _, err := r.Commit(t.Context(), c); !errors.Is(err, messages.ErrConflict) {
		t.Fatal(err)
	}
	if n, err := file.Versions(t.Context(), r); err != nil || n != 22 {
		t.Fatalf("%d versions are kept, %v", n, err)
	}
	if err := file.Age(t.Context(), r, (file.History + time.Hour).Microseconds()); err != nil {
		t.Fatal(err)
	}
	must(t, r, commit("a", 21, v))
	if n, err := file.Versions(t.Context(), r); err != nil || n != 3 {
		t.Errorf("%d versions are kept, %v", n, err)
	}
}

func TestClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	r := openRemote(t, t.TempDir())
	v := must(t, r, commit("a", 1, 0, "x"))
	future := time.Now().Add(24 * time.Hour).UnixMicro()
	if err := file.SetClock(t.Context(), r, future); err != nil {
		t.Fatal(err)
	}
	list, err := r.Devices(t.Context(), 0)
	if err != nil || list.ReadTime != future {
		t.Fatalf("Devices is %+v, %v", list, err)
	}
	if v = must(t, r, commit("a", 2, v, "y")); v != future+1 {
		t.Errorf("the commit's time is %d, want %d", v, future+1)
	}
	if later, err := r.Devices(t.Context(), future/1000-1); err != nil || len(later.Devices) != 1 {
		t.Errorf("whoever saw the future misses the commit: %+v, %v", later, err)
	}
	// A power cut may take the clock's last move back, but no commit.
	if err := file.SetClock(t.Context(), r, 1); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UnixMicro()
	if page, err := r.Documents(t.Context(), "docs", []string{"x"}, now); err != nil || len(page.Documents) != 1 {
		t.Errorf("at a time that was given out before: %+v, %v", page, err)
	}
	if v := must(t, r, commit("b", 1, 0)); v <= now {
		t.Errorf("a commit got the time %d, and %d was read", v, now)
	}
	if _, err := r.Documents(t.Context(), "docs", []string{"x"}, future); !errors.Is(err, messages.ErrReadTimeTooOld) {
		t.Errorf("a read time ahead of the clock: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(file.Encode(map[string]any{"a": int64(-5), "b": 1.5, "c": "x\x00", "d": []byte{1}, "e": nil, "f": true, "": false}))
	f.Add([]byte{1, 'a', 5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := file.Decode(b)
		if err != nil {
			return
		}
		again, err := file.Decode(file.Encode(fields))
		if err != nil || len(again) != len(fields) {
			t.Fatalf("%v became %v, %v", fields, again, err)
		}
		for k, v := range fields {
			if x, ok := v.(float64); ok && x != x {
				continue
			}
			if w, ok := v.([]byte); ok && bytes.Equal(w, again[k].([]byte)) {
				continue
			}
			if !reflect.DeepEqual(v, again[k]) {
				t.Fatalf("%q: %v became %v", k, v, again[k])
			}
		}
	})
}
