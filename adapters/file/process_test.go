package file_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/messages"
)

// childEnv makes the test binary one of several processes on a folder: the job,
// the folder and the process's name, in lines.
const childEnv = "TIDEMARK_FILE_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		job := strings.Split(spec, "\n")
		if err := children[job[0]](job[1], job[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var children = map[string]func(dir, name string) error{
	"commit": commitForever,
	"put":    putForever,
	"count":  count,
}

func child(t *testing.T, job, dir, name string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{job, dir, name}, "\n"))
	return cmd
}

// killed runs a child until it has printed some lines, kills it in the middle of
// whatever it does next, and returns all that it printed.
func killed(t *testing.T, cmd *exec.Cmd, lines int) []string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var printed []string
	in := bufio.NewScanner(out)
	for in.Scan() {
		if printed = append(printed, in.Text()); len(printed) == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(printed) < lines {
		t.Fatalf("the child ended by itself after %d lines: %s", len(printed), &stderr)
	}
	return printed
}

// commitForever commits 40 documents at a time and prints each acknowledged
// number.
func commitForever(dir, name string) error {
	ctx := context.Background()
	r, err := file.OpenRemote(dir)
	if err != nil {
		return err
	}
	record, err := r.Device(ctx, name)
	if err != nil {
		return err
	}
	for n, v := record.Seq+1, record.UpdateTime; ; n++ {
		var ids []string
		for i := range 40 {
			ids = append(ids, fmt.Sprintf("%s %d %d", name, n, i))
		}
		done, err := r.Commit(ctx, commit(name, n, v, ids...))
		if err != nil {
			return err
		}
		v = done.UpdateTime
		fmt.Fprintln(os.Stdout, n)
	}
}

func TestRemoteSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for round := range 6 {
		printed := killed(t, child(t, "commit", dir, "a"), 5+round*3)
		acknowledged, err := strconv.ParseInt(printed[len(printed)-1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		r, err := file.OpenRemote(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Check(t.Context(), r); err != nil {
			t.Error(err)
		}
		record, err := r.Device(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if record.Seq < acknowledged || record.Seq > acknowledged+1 {
			t.Errorf("commit %d was acknowledged, the record says %d", acknowledged, record.Seq)
		}
		docs := int64(0)
		if _, err := r.Read(t.Context(), messages.Query{Table: "docs", Device: "a"}, func(messages.Document) error { docs++; return nil }); err != nil {
			t.Fatal(err)
		}
		if docs != 40*record.Seq {
			t.Errorf("%d documents are there after %d commits", docs, record.Seq)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// putForever puts objects of changing size, all bytes of one object alike.
func putForever(dir, _ string) error {
	ctx := context.Background()
	s, err := file.OpenStore(dir)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		body := bytes.Repeat([]byte{byte('a' + n%26)}, 300_000+n%7*100_000)
		if _, err := s.Put(ctx, "snapshot", bytes.NewReader(body), messages.Condition{}); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, n)
	}
}

func TestStoreSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for round := range 6 {
		killed(t, child(t, "put", dir, ""), 2+round)
		s, err := file.OpenStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		body, o, err := s.Get(t.Context(), "snapshot", 0)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		_ = body.Close()
		if sum := sha256.Sum256(data); o.ETag != `"`+hex.EncodeToString(sum[:])+`"` || int64(len(data)) != o.Size || len(bytes.Trim(data, string(data[:1]))) != 0 {
			t.Errorf("the object is neither the old nor the new one: %+v", o)
		}
		if left := unfinished(t, dir); len(left) != 2 {
			t.Errorf("unfinished files of the killed process stay: %v", left)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// unfinished lists what lies in the folder of unfinished files: an open store has
// its session and its lock there.
func unfinished(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	root := filepath.Join(dir, "unfinished")
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if path != root {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const countEach = 15

// count counts up in one document and in one object that all processes share.
func count(dir, name string) error {
	ctx := context.Background()
	r, err := file.OpenRemote(dir)
	if err != nil {
		return err
	}
	s, err := file.OpenStore(dir)
	if err != nil {
		return err
	}
	var version int64
	for done := 0; done < countEach; {
		page, err := r.Documents(ctx, "docs", []string{"counter"}, 0)
		if err != nil {
			return err
		}
		c := commit(name, int64(done)+1, version, "counter")
		w := &c.Writes[0]
		w.Document.Fields["n"] = int64(1)
		if len(page.Documents) == 1 {
			w.Expect = page.Documents[0].UpdateTime
			w.Document.Fields["n"] = page.Documents[0].Fields["n"].(int64) + 1
		}
		committed, err := r.Commit(ctx, c)
		if errors.Is(err, messages.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		version = committed.UpdateTime
		done++
	}
	for done := 0; done < countEach; {
		cond, n := messages.Condition{IfAbsent: true}, 0
		body, o, err := s.Get(ctx, "counter", 0)
		if err == nil {
			data, rerr := io.ReadAll(body)
			cond = messages.Condition{IfMatch: o.ETag}
			n, err = strconv.Atoi(string(data))
			err = errors.Join(err, rerr, body.Close())
		} else if errors.Is(err, messages.ErrNotFound) {
			err = nil
		}
		if err != nil {
			return err
		}
		_, err = s.Put(ctx, "counter", strings.NewReader(strconv.Itoa(n+1)), cond)
		if errors.Is(err, messages.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		done++
	}
	return errors.Join(r.Close(), s.Close())
}

func TestProcessesShareAFolder(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made by the first")
	var all []*exec.Cmd
	for i := range 4 {
		cmd := child(t, "count", dir, fmt.Sprint("p", i))
		cmd.Stderr = &bytes.Buffer{}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	for _, cmd := range all {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, cmd.Stderr)
		}
	}
	r, s := openRemote(t, dir), openStore(t, dir)
	page, err := r.Documents(t.Context(), "docs", []string{"counter"}, 0)
	if err != nil || len(page.Documents) != 1 || page.Documents[0].Fields["n"] != int64(4*countEach) {
		t.Errorf("the document is %+v, %v", page, err)
	}
	body, _, err := s.Get(t.Context(), "counter", 0)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(body)
	if err = errors.Join(err, body.Close()); err != nil || string(data) != strconv.Itoa(4*countEach) {
		t.Errorf("the object is %s, %v", data, err)
	}
	if left := unfinished(t, dir); len(left) != 2 {
		t.Errorf("unfinished files stay: %v", left)
	}
}
