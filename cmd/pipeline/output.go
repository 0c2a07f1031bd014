package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// output is standard output. It remembers its first failure: who reads a Report from
// a full disk must not be told that all is well.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

func (o *output) failed() error {
	if o.err == nil {
		return nil
	}
	return fmt.Errorf("write to standard output: %w", o.err)
}

func (o *output) printf(format string, args ...any) { _, _ = fmt.Fprintf(o, format, args...) }

func (o *output) json(v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return errors.Join(err, o.failed())
	}
	o.printf("%s\n", raw)
	return nil
}

// line prints one object on a line of its own: what is long is read while it is
// written.
func (o *output) line(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return errors.Join(err, o.failed())
	}
	o.printf("%s\n", raw)
	return o.failed()
}

// plain makes a text harmless for a terminal: what an application calls its tables,
// or a server answers, may hold control characters.
func plain(s string) string {
	var b strings.Builder
	for _, r := range strings.TrimSpace(strings.ToValidUTF8(s, "\uFFFD")) {
		switch {
		case r == '\n':
			b.WriteString("\n  ")
		case r == '\t':
			b.WriteByte(' ')
		case !unicode.IsPrint(r):
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// folded is a text in lines of at most width columns, all of them indented, after a
// heading.
func folded(indent int, heading, text string, width int) string {
	var lines []string
	line := heading + strings.Repeat(" ", max(0, indent-utf8.RuneCountInString(heading)))
	empty := true
	for word := range strings.SplitSeq(strings.ReplaceAll(plain(text), "\n  ", " "), " ") { // two spaces may be a file's name
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, line)
			line, empty = strings.Repeat(" ", indent), true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	return strings.Join(append(lines, line), "\n")
}

// screen is how many columns a terminal has, and 0 where w is none: what a script or a
// log reads keeps one line a message.
func screen(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width >= 20 {
		return width
	}
	return 80
}

// message is a text for people at a terminal of so many columns: broken into lines, or
// one line where there is no terminal. What has lines of its own keeps them.
func message(indent int, heading, text string, width int) string {
	if width == 0 {
		return heading + plain(text)
	}
	var lines []string
	for i, l := range strings.Split(strings.TrimSpace(text), "\n") {
		if i > 0 {
			heading = strings.Repeat(" ", indent)
		}
		lines = append(lines, folded(indent, heading, l, width))
	}
	return strings.Join(lines, "\n")
}

// complain writes a message to standard error.
func (a *app) complain(indent int, heading, text string) {
	fmt.Fprintln(a.err, message(indent, heading, text, screen(a.err)))
}

// fit is plain on one line of at most width characters.
func fit(s string, width int) string {
	s = strings.ReplaceAll(plain(s), "\n  ", " ")
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// count is "1 row", "2 rows" and "12,345 rows".
func count(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(n) + " " + many
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func size(bytes int64) string {
	switch f := float64(bytes); {
	case bytes < 1000:
		return count(bytes, "byte", "bytes")
	case bytes < 1_000_000:
		return fmt.Sprintf("%.1f kB", f/1e3)
	case bytes < 1_000_000_000:
		return fmt.Sprintf("%.1f MB", f/1e6)
	default:
		return fmt.Sprintf("%.2f GB", f/1e9)
	}
}

// shell quotes an argument for a POSIX shell.
func shell(s string) string {
	safe := func(r rune) bool {
		return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("_-./:=@%+,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func duration(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", max(1, d.Milliseconds()))
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
