//go:build unix

package main

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// What the command makes is for its user alone, whatever the umask says: restored
// databases and what is kept of the old ones, keys, folders for remote and store, and
// all that lies beside a database. The database itself is the application's.
func TestModesOfFiles(t *testing.T) {
	t.Parallel()
	s := &stopping{t: t, dir: t.TempDir()}
	s.write("a", `CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT)`, `INSERT INTO book (title) VALUES ('x')`)
	run := func(args ...string) {
		t.Helper()
		cmd := s.command(t.Context(), args...)
		words := append([]string{"-c", `umask 000 && exec "$0" "$@"`}, cmd.Args...)
		cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh"}, words...)
		cmd.Err = nil
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("pipeline %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	at := func(name string) []string { return append(s.urls(name), "--key-file", "key.txt") }
	run("keygen", "-o", "key.txt")
	run("attach", "--db", "a.db")
	run(append([]string{"sync"}, at("a")...)...)
	s.write("a", `UPDATE book SET title = 'y'`)
	run(append([]string{"sync"}, at("a")...)...)
	restore := []string{"restore", "--db", "b.db", "--store", "file://" + s.dir + "/store", "--key-file", "key.txt"}
	run(restore...)
	run(append([]string{"sync"}, at("b")...)...)
	s.write("b", `INSERT INTO book (title) VALUES ('z')`)
	run(append(restore, "--keep-unsynced")...)

	ours := map[string]bool{}
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == s.dir || filepath.Base(path) == "a.db" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		name, _ := filepath.Rel(s.dir, path)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
		ours[name] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"key.txt", "a.db.tidemark-lock", "a.db.tidemark-pages", "b.db", "remote/remote.sqlite", "store/objects"} {
		if !ours[name] {
			t.Errorf("%s is not there: %v", name, ours)
		}
	}
	if len(ours) < 12 {
		t.Errorf("only %d files: %v", len(ours), ours)
	}
}
