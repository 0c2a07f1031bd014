package persistence_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sqlWord tells a text that is part of a statement: its keywords are in capitals.
var sqlWord = regexp.MustCompile(`(^|[^A-Za-z])(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|PRAGMA|FROM|WHERE|JOIN|VALUES|ATTACH|VACUUM|SET|INTO|ON) `)

// trusted are the parameters that are pieces of SQL made of quoted names, with the
// function that they belong to.
var trusted = []string{
	"exists: query",     // a whole statement, looked at where it is made
	"setClock: table",   // of plan.name, which is quoted, and one of ours
	"declarations: c",   // of a list of words that stands there; compared, not run
	"moveTo: verb",      // two words that stand there
	"insertSQL: verb",   // words of ours, with plan.or
	"updateSQL: first",  // columns of ours
	"Reset: table",      // of a list that stands there
	"indexes: rest",     // three texts that stand there
	"notes: except",     // two texts that stand there
	"hold: id",          // likewise
	"countRows: schema", // a name of ours
}

// Names of tables and columns are the application's, and somebody chose them who means
// ill. Where SQL is put together, every part that is no literal has to come out of a
// function (quote, literal, strings.Join over what is quoted), out of a field of ours
// that holds such a text (lower case), or out of a variable that does. What fails is a
// schema's own text (t.Name, r.Table, columns[i]) beside a piece of SQL, directly or by
// way of a variable, a parameter or a Sprintf.
func TestNamesInSQLAreQuoted(t *testing.T) {
	if bad := unquoted(t, "bad.go", `package p
		func f(t Table, name string) {
			use("DELETE FROM " + t.Name)
			use("DELETE FROM " + quote(t.Name) + " WHERE " + t.Columns[0] + " = 1")
			n := t.Name
			use(`+"`INSERT INTO `"+` + n)
			use("DROP TABLE " + name)
			use(fmt.Sprintf("SELECT %s FROM x", t.Name))
			for _, c := range t.Columns { use("UPDATE x SET " + c) }
		}`); len(bad) != 6 {
		t.Errorf("of six unquoted names these are noticed: %q", bad)
	}
	files := 0
	for _, pattern := range []string{"*.go", "../*.go", "../cmd/pipeline/*.go", "../adapters/file/*.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			files++
			for _, b := range unquoted(t, f, nil) {
				t.Error(b)
			}
		}
	}
	if files < 60 {
		t.Errorf("only %d files", files)
	}
}

func unquoted(t *testing.T, name string, src any) (bad []string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]bool{}
	for _, i := range file.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		packages[path[strings.LastIndexByte(path, '/')+1:]] = true
	}
	for _, d := range file.Decls {
		within := "a variable"
		if f, ok := d.(*ast.FuncDecl); ok {
			within = f.Name.Name
		}
		ast.Inspect(d, func(n ast.Node) bool {
			var parts []ast.Expr
			switch n := n.(type) {
			case *ast.BinaryExpr:
				parts = summands(n)
			case *ast.CallExpr:
				if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Sprintf" {
					parts = n.Args
				}
			}
			if !slices.ContainsFunc(parts, isSQL) {
				return true
			}
			for _, p := range parts {
				if why := suspect(p, within, packages); why != "" {
					bad = append(bad, fmt.Sprintf("%s: %s stands in SQL as it is: quote it", set.Position(p.Pos()), why))
				}
			}
			_, sum := n.(*ast.BinaryExpr)
			return !sum // its parts are looked at
		})
	}
	return bad
}

func summands(e ast.Expr) []ast.Expr {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return summands(e.X)
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return append(summands(e.X), summands(e.Y)...)
		}
	}
	return []ast.Expr{e}
}

func isSQL(e ast.Expr) bool {
	l, ok := e.(*ast.BasicLit)
	return ok && l.Kind == token.STRING && sqlWord.MatchString(l.Value)
}

// suspect names a part that may be a schema's own text; "" is none.
func suspect(e ast.Expr, within string, packages map[string]bool) string {
	switch e := e.(type) {
	case *ast.IndexExpr:
		return "an element of a list"
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok && packages[x.Name] || !e.Sel.IsExported() {
			return "" // a constant; a field of ours
		}
		return "the field " + e.Sel.Name
	case *ast.Ident:
		if e.Obj == nil || slices.Contains(trusted, within+": "+e.Name) {
			return "" // of another file of the package: a constant
		}
		switch d := e.Obj.Decl.(type) {
		case *ast.Field:
			return fmt.Sprintf("the parameter %q of %s", e.Name, within)
		case *ast.AssignStmt:
			for i, l := range d.Lhs {
				if l, ok := l.(*ast.Ident); !ok || l.Name != e.Name {
					continue
				}
				from := d.Rhs[min(i, len(d.Rhs)-1)]
				if u, ok := from.(*ast.UnaryExpr); ok && u.Op == token.RANGE {
					return fmt.Sprintf("the variable %q of a range in %s", e.Name, within)
				}
				for _, p := range summands(from) {
					if id, ok := p.(*ast.Ident); ok && id.Name == e.Name {
						continue
					}
					if why := suspect(p, within, packages); why != "" {
						return fmt.Sprintf("%s (as %q)", why, e.Name)
					}
				}
			}
		}
	}
	return ""
}
