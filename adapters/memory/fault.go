package memory

import (
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// The port calls by name.
const (
	OpDevices   = "devices"
	OpDevice    = "device"
	OpRead      = "read"
	OpDocuments = "documents"
	OpCommit    = "commit"
)

// Call is a port call that is about to be made.
type Call struct {
	Op string
	// N counts the calls of the handle, this one included.
	N int64
	// Query is set for OpRead, Commit for OpCommit; neither may be changed.
	Query  *messages.Query
	Commit *messages.Commit
}

// Fault is what goes wrong with one call; the zero Fault is nothing. Errors are
// returned wrapped in the call's name. What is set happens in the order of the
// fields.
type Fault struct {
	// Delay waits, or until the context ends: then nothing takes effect. A
	// commit's uploadedOn is from before the wait, as the cloud's is.
	Delay time.Duration
	// Backdate makes a commit's uploadedOn older than it is.
	Backdate time.Duration
	// Before fails the call; it takes no effect.
	Before error
	// Later fails a commit now and lets it take effect, if its preconditions hold
	// then, when Server.Deliver is called.
	Later error
	// Break ends a read with this error after BreakAfter documents.
	Break      error
	BreakAfter int
	// Repeat makes what travels arrive twice. A commit is sent again after it
	// landed, as clients do that heard no answer, and the second answer counts.
	// Documents come twice. Devices and Device give the handle's previous answer to
	// the same call once more.
	Repeat bool
	// Then runs after the effect and before the answer.
	Then func()
	// After fails the call although it took effect: a lost acknowledgement.
	After error
}
