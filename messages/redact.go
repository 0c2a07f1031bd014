package messages

import (
	"regexp"
	"slices"
	"strings"
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

// Redact takes out of an error's text what looks like a credential and each of secrets
// that has at least four bytes, and keeps its first 2,000 bytes. Adapters give everything
// to it that a server, a proxy or an SDK says: such a text may quote the request. What
// errors.Is and errors.As find is still the original.
func Redact(err error, secrets ...string) error {
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
