package integration

import (
	"fmt"
	"math/rand/v2"
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
	devices int
	strict  bool // every clock is right, and the model knows who was last
	actions []simAction
}

func makeSimStory(seed uint64) simStory {
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := simStory{seed: seed, schema: rnd.IntN(len(simSchemas)), devices: 2 + rnd.IntN(3), strict: rnd.IntN(2) == 0}
	total := 0
	for _, w := range simKindWeights {
		total += w
	}
	for range 15 + rnd.IntN(50) {
		n, kind := rnd.IntN(total), simKind(0)
		for n >= simKindWeights[kind] {
			n -= simKindWeights[kind]
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
	fmt.Fprintf(&b, "seed %d: schema %s, %d devices, strict %v, %d steps", s.seed, simSchemas[s.schema].name, s.devices, s.strict, len(s.actions))
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
