package persistence

import "strings"

// quote makes an SQL identifier of any name.
func quote(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// literal makes an SQL string literal. It is for the texts of triggers, which
// cannot have parameters; everything else binds.
func literal(s string) string {
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

// fold is how SQLite compares names: only ASCII letters have no case.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, name)
}

// token is one lexical element of an SQL text.
type token struct {
	kind       tokenKind
	text       string // a name without its quotes, anything else as written
	start, end int
}

type tokenKind uint8

const (
	bareName   tokenKind = iota // also keywords
	quotedName                  // "x", [x] or `x`
	otherToken                  // a literal, number or operator
)

// is reports whether the token is that keyword or that operator.
func (t token) is(s string) bool { return t.kind != quotedName && strings.EqualFold(t.text, s) }

// tokens splits SQL that SQLite has accepted already. Comments and white space are
// left out.
func tokens(sql string) []token {
	var out []token
	for i := 0; i < len(sql); {
		c, start := sql[i], i
		switch {
		case strings.IndexByte(" \t\r\n\f", c) >= 0:
			i++
			continue
		case strings.HasPrefix(sql[i:], "--"):
			i = after(sql, i, "\n")
			continue
		case strings.HasPrefix(sql[i:], "/*"):
			i = after(sql, i+2, "*/")
			continue
		case c == '\'' || c == '"' || c == '`':
			i = closing(sql, i+1, c)
			t := token{otherToken, sql[start:i], start, i}
			if c != '\'' {
				q := string(c)
				t.kind, t.text = quotedName, strings.ReplaceAll(sql[start+1:max(i-1, start+1)], q+q, q)
			}
			out = append(out, t)
		case c == '[':
			i = after(sql, i, "]")
			out = append(out, token{quotedName, strings.TrimSuffix(sql[start+1:i], "]"), start, i})
		case nameByte(c):
			for i < len(sql) && nameByte(sql[i]) {
				i++
			}
			kind := bareName
			if c >= '0' && c <= '9' {
				kind = otherToken
			}
			out = append(out, token{kind, sql[start:i], start, i})
		default:
			i++
			out = append(out, token{otherToken, sql[start:i], start, i})
		}
	}
	return out
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '$' || c >= 0x80
}

// after is the position behind the next occurrence of s.
func after(sql string, from int, s string) int {
	if n := strings.Index(sql[from:], s); n >= 0 {
		return from + n + len(s)
	}
	return len(sql)
}

// closing is the position behind the quote q that ends a quoted text; a doubled
// one is part of it.
func closing(sql string, i int, q byte) int {
	for i < len(sql) {
		if sql[i] == q {
			if i+1 == len(sql) || sql[i+1] != q {
				return i + 1
			}
			i++
		}
		i++
	}
	return len(sql)
}

// indexParts takes a CREATE INDEX statement apart: the SQL of each term without
// its COLLATE and direction, and that of the WHERE clause ("" when there is none).
func indexParts(sql string) (terms []string, where string) {
	depth, start := 0, -1
	toks := tokens(sql)
	var term []token
	flush := func() {
		if n := len(term); n > 1 && (term[n-1].is("ASC") || term[n-1].is("DESC")) {
			term = term[:n-1]
		}
		if n := len(term); n > 2 && term[n-2].is("COLLATE") {
			term = term[:n-2]
		}
		if len(term) > 0 {
			terms = append(terms, sql[term[0].start:term[len(term)-1].end])
		}
		term = nil
	}
	for i, t := range toks {
		switch {
		case t.is("("):
			depth++
			if depth == 1 && start < 0 {
				start = i
				continue
			}
		case t.is(")"):
			depth--
			if depth == 0 && start >= 0 {
				flush()
				if i+1 < len(toks) && toks[i+1].is("WHERE") {
					where = sql[toks[i+1].end:toks[len(toks)-1].end]
				}
				return terms, strings.TrimSpace(where)
			}
		case t.is(",") && depth == 1:
			flush()
			continue
		}
		if start >= 0 {
			term = append(term, t)
		}
	}
	return terms, ""
}
