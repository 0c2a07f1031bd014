package tidemark_test

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/licensecheck"
)

// goList asks about packages: the modules of others that they need, with the folder of
// their source, and what the packages themselves import.
func goList(t *testing.T, args ...string) (modules map[string]string, imports map[string]bool) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"list", "-deps", "-json=Module,Imports"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	modules, imports = map[string]string{}, map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			Module *struct {
				Path, Dir string
				Main      bool
			}
			Imports []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return modules, imports
		} else if err != nil {
			t.Fatal(err)
		}
		switch {
		case p.Module == nil: // the standard library
		case p.Module.Main:
			for _, i := range p.Imports {
				imports[i] = true
			}
		default:
			modules[p.Module.Path] = p.Module.Dir
		}
	}
}

// shipped are the packages that somebody can import or run, without those for tests.
func shipped(t *testing.T) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(p string) bool {
		return strings.Contains(p, "/integration") || strings.HasSuffix(p, "/adaptertest")
	})
}

var inTicks = regexp.MustCompile("`([^`]+)`")

func TestEveryDependencyIsExplained(t *testing.T) {
	raw, err := os.ReadFile("DEPENDENCIES.md")
	if err != nil {
		t.Fatal(err)
	}
	where := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "`") {
			continue
		}
		for _, m := range inTicks.FindAllStringSubmatch(cells[1], -1) {
			if where[m[1]] != "" || strings.TrimSpace(cells[3]) == "" {
				t.Errorf("DEPENDENCIES.md names %s twice, or without a reason", m[1])
			}
			where[m[1]] = strings.TrimSpace(cells[2])
		}
	}
	out, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	_, imports := goList(t, shipped(t)...)
	direct, used := map[string]bool{}, map[string]bool{}
	for _, r := range mod.Require {
		direct[r.Path] = !r.Indirect
	}
	for i := range imports { // it is of the module with the longest path
		for m := i; m != "."; m = path.Dir(m) {
			if direct[m] {
				used[m] = true
				break
			}
		}
	}
	for _, r := range mod.Require {
		if r.Indirect {
			continue
		}
		switch place := where[r.Path]; {
		case place == "":
			t.Errorf("go.mod requires %s: say in DEPENDENCIES.md why", r.Path)
		case used[r.Path] != (place != "tests"):
			t.Errorf("DEPENDENCIES.md has %s at %q; imported by what we ship: %v", r.Path, place, used[r.Path])
		}
	}
	for m := range where {
		if !direct[m] {
			t.Errorf("DEPENDENCIES.md explains %s, which go.mod does not require", m)
		}
	}
}

// allowed licences ask for no more than that their text goes along.
var allowed = []string{"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC"}

// Every module that ends up in a binary of ours or of an embedder has a licence that
// lets both be given away.
func TestLicences(t *testing.T) {
	modules, _ := goList(t, shipped(t)...)
	for _, m := range slices.Sorted(maps.Keys(modules)) {
		found := licences(t, modules[m])
		if len(found) == 0 {
			t.Errorf("%s: no licence was recognised: read it, and replace the module if it is none of %v", m, allowed)
		}
		for _, l := range found {
			if !slices.Contains(allowed, l) {
				t.Errorf("%s: licence %s is not among %v", m, l, allowed)
			}
		}
	}
	if len(modules) < 20 {
		t.Errorf("only %d modules: go list did not see them", len(modules))
	}
}

// licences are those whose texts lie in a module's top folder.
func licences(t *testing.T, dir string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(name, "LICEN") && !strings.HasPrefix(name, "COPYING") || strings.Contains(name, "3RD-PARTY") {
			continue // what a module says of others is looked up at those, if they are linked at all
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range licensecheck.Scan(raw).Match {
			if !slices.Contains(found, m.ID) {
				found = append(found, m.ID)
			}
		}
	}
	return found
}
