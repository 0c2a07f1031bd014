package main

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

// hidden stands for a secret that somebody put where none belongs.
const hidden = "hUnTer2"

// FuzzURL: a URL works or is refused with the name of the setting, and what is
// refused is not repeated.
func FuzzURL(f *testing.F) {
	for _, u := range []string{
		"firestore://project/users/alice?database=d", "firestore://example.com:notes/users/%61lice/", "firestore://alice:|@project/users/alice", "firestore://p/users/alice?token=|", "firestore://p/users/alice?|",
		"firestore://p/users/alice?|==", "firestore://p/users/alice#|", "firestore://p/users/%|", "firestore://p/users/alice?database=a&database=|", "firestore://p/users/a?%|", "firestore://p/users/a?a;|=1",
		"s3://bucket/prefix?region=eu&endpoint=http://127.0.0.1:9000", "s3://AKIA:|@bucket/x", "s3://bucket/x?endpoint=https://u:|@example.com", "s3://bucket/x?endpoint=%zz|", "s3://bucket/x?X-Amz-Signature=|",
		"file:///tmp/remote", "file://localhost/a/../b", "file:///a?b=|", "file://|/x", "file:///%00|", "|", "://|", "ftp://|", "file:///" + strings.Repeat("a", 5000),
	} {
		before, after, _ := strings.Cut(u, "|")
		f.Add(before, after)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		for from, parse := range map[string]func(setting) (address, error){"--remote": parseRemote, "TIDEMARK_STORE": parseStore} {
			for _, secret := range []string{hidden, ""} {
				u, err := parse(setting{before + secret + after, from})
				if err == nil {
					if u.authority == "" && u.scheme != "file" || u.scheme == "" || strings.ContainsRune(u.path, 0) || strings.Contains(u.authority, "@") {
						t.Errorf("%q is taken as %+v", before+secret+after, u)
					}
					continue
				}
				text := err.Error()
				if !strings.HasPrefix(text, from+" is no URL that works: ") {
					t.Errorf("%q does not name the setting", text)
				}
				if secret != "" && strings.Contains(text, secret) && !isParameter(before+secret+after, secret) {
					t.Errorf("%q repeats what it refuses", text)
				}
				if !utf8.ValidString(text) {
					t.Errorf("%q is no text", text)
				}
			}
		}
	})
}

// isParameter reports whether the word is (part of) the name of a parameter that has
// a value: such a name is shown.
func isParameter(u, word string) bool {
	_, query, _ := strings.Cut(u, "?")
	values, _ := url.ParseQuery(query)
	for name, v := range values {
		if strings.Contains(name, word) && strings.Trim(v[0], "=") != "" {
			return true
		}
	}
	return false
}

// FuzzConfig: a file of settings is read or refused with the line, and no value of it
// is shown.
func FuzzConfig(f *testing.F) {
	deep := strings.Repeat("[", 20_000)
	lines := []string{"a: &a [x, x, x, x, x, x, x, x, x]"}
	for c := 'b'; c < 'k'; c++ {
		lines = append(lines, fmt.Sprintf("%c: &%c [%s]", c, c, strings.TrimSuffix(strings.Repeat("*"+string(c-1)+", ", 9), ", ")))
	}
	bomb := strings.Join(lines, "\n")
	for _, c := range []string{
		"db: notes.db\nremote: file:///x\nevery: 5m\nexclude: [a, b]\n", "db: a.db\ndb: |\n", "password: |\n", "db: [|]\n", "every: |\n", "exclude: {a: |}\n", "exclude: &a [*a, |]\n", "db: *|\n", "db: &|\n", "db: !|\n", "db: !!int |\n",
		"db: \"|\n", "db: '|\n", "db: \"\\|\"\n", "%|\n", "? |\n", "? [|]\n: x\n", "- |\n", "|\n", "---\n---\n|", "db: |\xff\n", "\ufeffdb: |\n", "db: !!binary |\n", "<<: {db: |}\n", "db: |\t- |\n", "exclude: " + deep, deep + "|", "exclude:\n" + bomb, bomb + "|",
		"null", "~", "db: null", "exclude: [null]", "every: 1ns\n", "every: 9999999999h\n", "every: .inf\n", "db: >-\n  |\n", "remote: @|\n", "remote: `|\n", "{db: |, }", "{db: |", "{|: {", "db: a\n\tremote: |\n",
	} {
		before, after, _ := strings.Cut(c, "|")
		f.Add([]byte(before), []byte(after))
	}
	f.Fuzz(func(t *testing.T, before, after []byte) {
		for _, secret := range []string{hidden, ""} {
			raw := []byte(string(before) + secret + string(after))
			s := settings{every: defaultEvery}
			err := s.parse(raw, "tidemark.yaml")
			if err == nil {
				if s.every < defaultEvery/30 {
					t.Errorf("every is %v", s.every)
				}
				continue
			}
			text := err.Error()
			if secret != "" && strings.Contains(text, secret) && !strings.Contains(text, "there is no setting") && !strings.Contains(text, "is there twice") {
				t.Errorf("%q shows a value", text)
			}
			if !utf8.ValidString(text) || len(text) > 300 || strings.ContainsAny(text, "\n\x1b") {
				t.Errorf("%q is nothing to print", text)
			}
		}
	})
}
