package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
)

// asked runs a forget that asks, and answers it after something was done.
func (s *stopping) asked(between func(), answer string, args ...string) (stdout, stderr string, err error) {
	s.t.Helper()
	cmd := s.command(s.t.Context(), args...)
	var out bytes.Buffer
	cmd.Stdout = &out
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	pipe, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	said := bufio.NewReader(pipe)
	var before strings.Builder
	for !strings.HasSuffix(before.String(), " to go on: ") {
		c, err := said.ReadByte()
		if err != nil {
			s.t.Fatalf("it did not ask: %s", before.String())
		}
		before.WriteByte(c)
	}
	between()
	if _, err := io.WriteString(in, answer+"\n"); err != nil {
		s.t.Fatal(err)
	}
	after, _ := io.ReadAll(said)
	err = cmd.Wait()
	return out.String(), before.String() + string(after), err
}

// A row that the application writes while the question is open is not what was agreed to.
func TestForgetARowWhileItAsks(t *testing.T) {
	t.Parallel()
	for _, extra := range [][]string{nil, {"--scope"}} {
		s := &stopping{t: t, dir: t.TempDir()}
		s.write("a", `CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT)`)
		s.run("attach", "--db", s.file("a"))
		s.sync("a")
		answer := "forget"
		if extra != nil {
			answer = s.dir + "/remote"
		}
		args := append(append([]string{"forget"}, extra...), s.urls("a")...)
		_, stderr, err := s.asked(func() { s.write("a", `INSERT INTO book (title) VALUES ('late')`) }, answer, args...)
		if err == nil || !strings.Contains(stderr, "--discard-unsynced") {
			t.Errorf("%v: it says %v\n%s", extra, err, stderr)
		}
		if _, err := os.Stat(s.file("a")); err != nil {
			t.Fatalf("%v: the row is lost: %v", extra, err)
		}
		s.sync("a") // nothing was done
		s.write("b", `CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT)`)
		s.run("attach", "--db", s.file("b"))
		s.sync("b")
		if got := s.value("b", `SELECT group_concat(title) FROM book`); got != "late" {
			t.Errorf("%v: the other device has %q", extra, got)
		}
	}
}
