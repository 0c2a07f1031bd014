package messages

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// hidden is what stands in the place of a secret.
const hidden = "…"

// maxQuoted bounds what is kept of a far side's words, in bytes.
const maxQuoted = 2000

// looksSecret knows credentials by their looks, wherever they are quoted: tokens, keys,
// signed URLs, passwords in URLs. What is in the first group stays.
var looksSecret = []*regexp.Regexp{
	regexp.MustCompile(`(-----BEGIN [A-Z ]*PRIVATE KEY-----)[^"]*`),
	regexp.MustCompile(`(?i)(AGE-SECRET-KEY-)[0-9a-z-]+`),
	regexp.MustCompile(`(?i)(\b(?:bearer|basic)[\s:]+)[a-z0-9._~+/=-]{4,}`),
	regexp.MustCompile(`()\beyJ[\w-]{6,}(?:\.[\w-]+)*`), // a JSON web token
	regexp.MustCompile(`(\bya29\.)[\w.-]+`),             // an access token of Google's
	regexp.MustCompile(`(?i)((?:authorization|x-amz-[a-z-]*(?:token|signature|credential))["'\]]*\s*[:=]+[\s"'\[]*(?:[a-z0-9-]+\s+)?(?:credential=)?)[^\s"'&,;<>\])}]+`),
	regexp.MustCompile(`(?i)((?:token|signature|secret|password|passphrase|private_key|assertion|credential|access_?key)(?:=|["'\]]+\s*[:=]+\s*)["'\[]*)[^\s"'&,;<>\])}]+`),
	regexp.MustCompile(`()[^\s/@"'()]+:[^\s/@"']*@`), // user:password@host
}

// redacted is an error that says less than its cause.
type redacted struct {
	error
	text string
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.error }

// hide takes out a secret, and what is left of one that somebody cut off.
func hide(text, secret string) string {
	start := secret[:min(len(secret), 16)]
	if !strings.Contains(text, start) {
		return text
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, start)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString(hidden)
		rest := secret[len(start):]
		for rest != "" && after != "" && rest[0] == after[0] {
			rest, after = rest[1:], after[1:]
		}
		text = after
	}
}

// longValue is the length in bytes from which a row's value is taken out wherever it
// stands: no word of an error is that long.
const longValue = 16

// hideValue takes out a row's value where nobody can take it for a word of the error
// itself: in quotes, or as a word that is no name and no number.
func hideValue(text, value string, names []string) string {
	if len(value) >= longValue {
		return hide(text, value)
	}
	_, notNumber := strconv.ParseFloat(value, 64)
	word := notNumber != nil && !slices.Contains(names, value)
	first, _ := utf8.DecodeRuneInString(value)
	last, _ := utf8.DecodeLastRuneInString(value)
	var b strings.Builder
	for at := 0; ; {
		i := strings.Index(text[at:], value)
		if i < 0 {
			b.WriteString(text[at:])
			return b.String()
		}
		i += at
		before, _ := utf8.DecodeLastRuneInString(text[:i])
		after, _ := utf8.DecodeRuneInString(text[i+len(value):])
		quoted := before == after && strings.ContainsRune("\"'`", before)
		whole := !(inWord(before) && inWord(first)) && !(inWord(after) && inWord(last))
		b.WriteString(text[at:i])
		if quoted || word && whole {
			b.WriteString(hidden)
		} else {
			b.WriteString(value)
		}
		at = i + len(value)
	}
}

func inWord(r rune) bool {
	return r != utf8.RuneError && (r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r))
}

// Redact takes out of an error's text what looks like a credential and each of secrets
// that has at least four bytes, and keeps its first 2,000 bytes. Adapters give everything
// to it that a server, a proxy or an SDK says: such a text may quote the request. What
// errors.Is and errors.As find is still the original.
func Redact(err error, secrets ...string) error {
	return redact(err, secrets, hide)
}

// RedactRows does what Redact does, for an error that may quote rows. Their values, of at
// least four bytes, go where they stand in quotes, where they are words, and from 16
// bytes on wherever they stand. What the error says itself stays: a word that is one of
// names, such as a table's or a column's, and a shorter number.
func RedactRows(err error, values, names []string) error {
	return redact(err, values, func(text, value string) string { return hideValue(text, value, names) })
}

func redact(err error, secrets []string, hide func(text, secret string) string) error {
	if err == nil {
		return nil
	}
	said := err.Error()
	text := said[:min(len(said), 8*maxQuoted)]
	// The longest first: one may be a part of another.
	secrets = slices.Clone(secrets)
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	for _, s := range secrets {
		if len(s) >= 4 {
			text = hide(text, s)
		}
	}
	for _, p := range looksSecret {
		text = p.ReplaceAllString(text, "${1}"+hidden)
	}
	if len(text) > maxQuoted {
		end := maxQuoted
		for end > 0 && !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end] + hidden
	}
	if text == said {
		return err
	}
	return &redacted{err, text}
}
