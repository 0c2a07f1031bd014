package integration

import (
	"flag"
	"fmt"
	"strings"
	"testing"
)

var (
	simSeeds   = flag.Int("seeds", 10, "how many random fleets the simulation runs")
	simSeed    = flag.Uint64("seed", 1, "the first seed of the simulation")
	simOnly    = flag.String("variant", "", "the part of a variant's name to run")
	simSearch  = flag.Bool("search", false, "count from -seed on how many seeds each missing remedy takes")
	simShrink  = flag.Int("shrink", 300, "how many runs the search for the shortest story that fails may take")
	simVerbose = flag.Bool("story", false, "print the story of every seed")
)

// TestSimulation lets random fleets work, fail and heal, and then checks that they
// agree with each other, with the server, and with what their users did.
func TestSimulation(t *testing.T) {
	lab := newSimLab(t)
	var sum simCounts
	for i := range *simSeeds {
		story := makeSimStory(*simSeed+uint64(i), nil)
		w := lab.run(story, nil)
		sum.cycles += w.counts.cycles
		sum.faults += w.counts.faults
		sum.edits += w.counts.edits
		sum.devices += w.counts.devices
		sum.conflicts += w.counts.conflicts
		if *simVerbose {
			t.Logf("%s\n%s", story, strings.Join(w.trace, "\n"))
		}
		if w.class == "" {
			continue
		}
		shortest := story.shrink(*simShrink, func(s simStory) bool { return lab.run(s, nil).class == w.class })
		last := lab.run(shortest, nil)
		var steps strings.Builder
		for _, a := range shortest.actions {
			fmt.Fprintln(&steps, " ", a)
		}
		t.Errorf("%s\n%s\nthe shortest story that fails so (%d of %d steps):\n%s\nwhat happened in it:\n%s\n%s\nreplay with: go test ./integration -run Simulation -seeds 1 -seed %d",
			story, strings.Join(w.problems, "\n"), len(shortest.actions), len(story.actions), steps.String(), strings.Join(last.trace, "\n"), strings.Join(last.problems, "\n"), story.seed)
	}
	t.Logf("%d seeds from %d: %+v", *simSeeds, *simSeed, sum)
}

// The same seed is the same story to the last call, row and bill.
func TestAStoryRepeatsItself(t *testing.T) {
	lab := newSimLab(t)
	for i := range uint64(4) {
		story := makeSimStory(1000+i, nil)
		a, b := lab.run(story, nil), lab.run(story, nil)
		for n := range max(len(a.trace), len(b.trace)) {
			if n >= len(a.trace) || n >= len(b.trace) || a.trace[n] != b.trace[n] {
				t.Errorf("%s: step %d of %d and %d:\n%s\n%s", story, n, len(a.trace), len(b.trace),
					strings.Join(a.trace[max(0, n-3):min(n+2, len(a.trace))], "\n"), strings.Join(b.trace[max(0, n-3):min(n+2, len(b.trace))], "\n"))
				break
			}
		}
		if a.dump != b.dump {
			t.Errorf("%s: the server's documents differ:\n%s\n%s", story, a.dump, b.dump)
		}
	}
}

// simBound is within how many seeds a missing remedy must be noticed.
const simBound = 200

// TestAMissingRemedyIsNoticed takes out one remedy at a time. It begins at a seed that
// has shown each; with -search it counts them from -seed on.
func TestAMissingRemedyIsNoticed(t *testing.T) {
	lab := newSimLab(t)
	for i := range simVariants {
		v := &simVariants[i]
		if !strings.Contains(v.name, *simOnly) {
			continue
		}
		caught := ""
		n := 0
		for n < simBound && caught == "" {
			n++
			from := v.from
			if *simSearch {
				from = *simSeed
			}
			if w := lab.run(makeSimStory(from+uint64(n)-1, v.focus), v); w.class != "" {
				caught = w.problems[0]
			}
		}
		if caught == "" {
			t.Errorf("%s: nobody noticed in %d seeds", v.name, n)
			continue
		}
		t.Logf("| %s | %d | %.150s", v.name, n, caught)
	}
}
