package tidemark_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tidemark-sync/tidemark"

// boundary is one line of DESIGN.md's table of who may import whom. depguard
// sees the imports of a file; here it is everything that ends up in the binary.
type boundary struct {
	// of is a package of ours; with "/..." every package below the folder, except
	// those in except.
	of     string
	except []string
	// only, when set, lists what its files may import beside the standard library.
	only []string
	// never is what must not be reached, however indirectly, and why.
	never map[string]string
}

const (
	whyDriver = "the application picks the SQLite driver"
	whyVendor = "vendor SDKs live in adapters/, an embedder with another remote does not link them"
)

var boundaries = []boundary{
	{
		of:   module + "/messages",
		only: []string{},
	},
	{
		of:   module + "/stages",
		only: []string{module + "/messages"},
	},
	{
		of: module + "/persistence",
		only: []string{
			module + "/messages",
			"github.com/uptrace/bun",
			"github.com/klauspost/compress",
		},
		never: map[string]string{
			"modernc.org/sqlite":          whyDriver,
			"github.com/mattn/go-sqlite3": whyDriver,
			"cloud.google.com/go":         whyVendor,
			"github.com/aws":              whyVendor,
			"google.golang.org/grpc":      whyVendor,
			"filippo.io/age":              whyVendor,
			"github.com/ThreeDotsLabs":    "the root alone knows the bus",
			"go.uber.org/zap":             "one place logs, the root's middleware",
		},
	},
	{
		of: module,
		never: map[string]string{
			"modernc.org/sqlite":          whyDriver,
			"github.com/mattn/go-sqlite3": whyDriver,
			"cloud.google.com/go":         whyVendor,
			"github.com/aws":              whyVendor,
			"google.golang.org/grpc":      whyVendor,
			"filippo.io/age":              whyVendor,
			"go.opentelemetry.io":         whyVendor,
			"github.com/prometheus":       whyVendor,
			module + "/adapters":          "adapters are handed to the root by the application",
		},
	},
	{
		of:     module + "/adapters/...",
		except: []string{module + "/adapters/adaptertest"},
		never: map[string]string{
			module:                  "adapters are handed to the root package, they never call it",
			module + "/stages":      "satisfy the stage's port structurally; assert it in the test",
			module + "/persistence": "adapters do not reach into the local database",
			module + "/adapters":    "adapters do not know each other",
		},
	},
	{
		of: module + "/cmd/pipeline",
		never: map[string]string{
			module + "/adapters/adaptertest": "the conformance suites are for tests",
		},
	},
}

// TestBoundaries holds every package to DESIGN.md's table of imports.
func TestBoundaries(t *testing.T) {
	packages := listPackages(t)

	for _, b := range boundaries {
		held := b.packages(packages)
		if len(held) == 0 {
			t.Errorf("%s: there is no such package; a rule about a package that was renamed or removed guards nothing", b.of)
		}
		for forbidden := range b.never {
			if within(forbidden, module) && !exists(packages, forbidden) {
				t.Errorf("%s must not reach %s, and there is no such package: mend the rule", b.of, forbidden)
			}
		}
		for _, path := range held {
			for _, imported := range packages[path].Imports {
				if b.only != nil && !packages[imported].Standard && !withinAny(imported, b.only) {
					t.Errorf("%s imports %s; beside the standard library it may import only %s", path, imported, list(b.only))
				}
			}
			for forbidden, why := range b.never {
				if chain := reach(packages, path, forbidden); chain != nil {
					t.Errorf("%s reaches %s: %s\n\t%s", path, forbidden, why, strings.Join(chain, "\n\t  imports "))
				}
			}
		}
	}
}

// TestBoundariesNotice makes sure that a rule which is broken is reported: a
// chain of imports is found, and what a package holds itself is not held against
// it.
func TestBoundariesNotice(t *testing.T) {
	packages := map[string]listed{
		module + "/adapters/a": {Imports: []string{"fmt", "vendor.test/sdk", module + "/adapters/a/wire"}},
		module + "/adapters/b": {Imports: []string{module + "/adapters/a"}},
		module:                 {Imports: []string{module + "/adapters/b"}},
		"vendor.test/sdk":      {Imports: []string{"vendor.test/grpc"}},
		"vendor.test/sdkother": {},
	}
	for _, tt := range []struct {
		from, forbidden string
		want            int // packages in the chain
	}{
		{module + "/adapters/b", "vendor.test/grpc", 4},
		{module + "/adapters/b", module + "/adapters", 2},
		{module + "/adapters/a", module + "/adapters", 0},
		{"vendor.test/sdkother", "vendor.test/sdk", 0},
		{module + "/adapters/a", module, 0},
		{module, module + "/adapters", 2},
	} {
		if chain := reach(packages, tt.from, tt.forbidden); len(chain) != tt.want {
			t.Errorf("from %s to %s: got the chain %v, want one of %d packages", tt.from, tt.forbidden, chain, tt.want)
		}
	}
}

// listed is what go list tells of a package.
type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

// listPackages returns our packages and all they are built from, tests left out.
func listPackages(t *testing.T) map[string]listed {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Standard,Imports", "./...")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}

	packages := make(map[string]listed)
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("read the output of go list: %v", err)
		}
		packages[p.ImportPath] = p
	}
}

// packages returns the import paths that the rule is about.
func (b boundary) packages(all map[string]listed) []string {
	var held []string
	folder, below := strings.CutSuffix(b.of, "/...")
	for path := range all {
		if path == b.of || below && within(path, folder) && !withinAny(path, b.except) {
			held = append(held, path)
		}
	}
	slices.Sort(held)
	return held
}

// reach returns the shortest chain of imports from a package to a forbidden one,
// nil when there is none.
func reach(packages map[string]listed, from, forbidden string) []string {
	importer := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		for _, path := range packages[queue[0]].Imports {
			if _, seen := importer[path]; seen {
				continue
			}
			importer[path] = queue[0]
			if isForbidden(path, from, forbidden) {
				var chain []string
				for ; path != ""; path = importer[path] {
					chain = append(chain, path)
				}
				slices.Reverse(chain)
				return chain
			}
			queue = append(queue, path)
		}
	}
	return nil
}

// isForbidden reports whether path is what a rule for the package from forbids:
// the package of that name or one below it. A package inside the forbidden folder
// may have folders of its own, and the root is forbidden without all that is ours
// below it.
func isForbidden(path, from, forbidden string) bool {
	if forbidden == module {
		return path == module
	}
	return within(path, forbidden) && !(within(from, forbidden) && within(path, from))
}

// within reports whether path is the package or in a folder below it.
func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func withinAny(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return within(path, f) })
}

// exists reports whether there is a package of that name or below it.
func exists(packages map[string]listed, name string) bool {
	for path := range packages {
		if within(path, name) {
			return true
		}
	}
	return false
}

func list(packages []string) string {
	if len(packages) == 0 {
		return "nothing"
	}
	return strings.Join(packages, ", ")
}
