package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// simKind is what happens in one step of a story.
type simKind int

const (
	simEdit simKind = iota
	simSync
	simWait
	simClone
	simRestore
	simKeep
	simRollback
	simNew
	simVanish
	simDeliver
	simClock
	simUpgrade
	simKinds
)

var simKindNames = [simKinds]string{"edit", "sync", "wait", "clone", "restore", "keep", "rollback", "new", "vanish", "deliver", "clock", "upgrade"}

// how often each happens
var simKindWeights = [simKinds]int{simEdit: 48, simSync: 34, simWait: 4, simClone: 2, simRestore: 2, simKeep: 2, simRollback: 2, simNew: 2, simVanish: 1, simDeliver: 2, simClock: 2, simUpgrade: 1}

// simAction is one step. Everything that chance decides in it comes from its own
// seed, so that it stays what it is when steps before it are taken out.
type simAction struct {
	kind   simKind
	device uint32 // of those that are there, modulo their number
	seed   uint64
}

func (a simAction) rnd() *rand.Rand { return rand.New(rand.NewPCG(a.seed, uint64(a.kind))) }

func (a simAction) String() string {
	return fmt.Sprintf("%s %d %#x", simKindNames[a.kind], a.device, a.seed)
}

// simStory is all that happens: a seed makes it, and it makes everything else.
type simStory struct {
	seed    uint64
	schema  int
	policy  int // which of simPolicies the tables have
	devices int
	strict  bool // every clock is right, and the model knows who was last
	narrow  int  // the server takes no more documents at once; 0: as many as come
	picky   bool // the server does not take some rows until there is peace
	focus   *simFocus
	actions []simAction
}

// simFocus makes stories in which one thing happens often that is rare in others.
type simFocus struct {
	schemas []string
	weights map[simKind]int // of the steps; nil: the usual
	faults  []string        // one of them happens in every cycle; nil: the usual
}

func makeSimStory(seed uint64, focus *simFocus) simStory {
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := simStory{seed: seed, schema: rnd.IntN(simUsual), devices: 2 + rnd.IntN(3), strict: rnd.IntN(2) == 0, focus: focus}
	server := rand.New(rand.NewPCG(seed, 3))
	if server.IntN(3) == 0 {
		s.narrow = 1 + server.IntN(4)
	}
	s.picky = server.IntN(4) == 0
	named := func(name string) int {
		return slices.IndexFunc(simSchemas, func(s simSchema) bool { return s.name == name })
	}
	policies := rand.New(rand.NewPCG(seed, 4))
	switch n := policies.IntN(12); {
	case n < 2:
		s.schema = named(simFields.name)
	case focus != nil:
	case n < 4:
		s.policy = 1 + policies.IntN(len(simPolicies)-1)
	case n < 5:
		s.schema = named("heads")
	}
	weights := simKindWeights
	if focus != nil && focus.schemas != nil {
		s.schema = named(focus.schemas[seed%uint64(len(focus.schemas))])
	}
	if focus != nil && focus.weights != nil {
		weights = [simKinds]int{}
		for k, w := range focus.weights {
			weights[k] = w
		}
	}
	total := 0
	for _, w := range weights {
		total += w
	}
	for range 15 + rnd.IntN(50) {
		n, kind := rnd.IntN(total), simKind(0)
		for n >= weights[kind] {
			n -= weights[kind]
			kind++
		}
		s.actions = append(s.actions, simAction{kind, rnd.Uint32(), rnd.Uint64()})
	}
	return s
}

func (s simStory) without(from, to int) simStory {
	out := s
	out.actions = append(append([]simAction{}, s.actions[:from]...), s.actions[to:]...)
	return out
}

func (s simStory) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: schema %s with policies %d, %d devices, strict %v, at most %d documents at once, picky server %v, %d steps", s.seed, simSchemas[s.schema].name, s.policy, s.devices, s.strict, s.narrow, s.picky, len(s.actions))
	return b.String()
}

// shrink looks for the shortest story that fails in the same way, within a number of
// attempts: it leaves out ever smaller parts.
func (s simStory) shrink(attempts int, fails func(simStory) bool) simStory {
	for size := max(len(s.actions)/2, 1); ; size = max(size/2, 1) {
		shorter := false
		for from := 0; from < len(s.actions) && attempts > 0; {
			try := s.without(from, min(from+size, len(s.actions)))
			attempts--
			if fails(try) {
				s, shorter = try, true
				continue
			}
			from += size
		}
		if attempts <= 0 || size == 1 && !shorter {
			return s
		}
	}
}
