package messages

import "time"

// Event is something that happens in a cycle, for progress displays and metrics: one
// of CycleStarted, StageStarted, Progress, StageDone, StageFailed and CycleDone. Later
// versions may have more of them, and more fields.
type Event interface{ event() }

// Work is what an event or a span is about.
type Work struct {
	Cycle string
	Round int
	// Stage is one of the stages' names; "" is the cycle as a whole.
	Stage string
	// Table is set where a stage handles one table at a time.
	Table string
	// Attempt counts from 1.
	Attempt int
}

// CycleStarted begins a cycle.
type CycleStarted struct {
	Cycle string
	Full  bool
}

// StageStarted begins one attempt of a stage.
type StageStarted struct{ Work }

// Progress says how far an attempt is. A cycle tells it again and again, about every
// few hundred documents or every megabyte.
type Progress struct {
	Work
	Unit Unit
	// Done of Total; Total is 0 when nobody can know it.
	Done, Total int64
}

// Unit is what Progress counts.
type Unit string

// The units.
const (
	// DocumentsRead are documents that the server handed over.
	DocumentsRead Unit = "documents read"
	// RowsUploaded are rows and deletes that the server has acknowledged.
	RowsUploaded Unit = "rows uploaded"
	// BytesStored are bytes of a snapshot that went up.
	BytesStored Unit = "bytes stored"
)

// StageDone ends an attempt.
type StageDone struct {
	Work
	Took time.Duration
	// Billed and Store are what the attempt cost.
	Billed Billed
	Store  StoreUse
}

// StageFailed ends an attempt, too. Class is that of the error, see the function Class,
// or "local" (this device is at fault) or "cancelled"; the stage may be tried again.
type StageFailed struct {
	Work
	Took   time.Duration
	Billed Billed
	Store  StoreUse
	Class  string
	Err    error
}

// CycleDone ends a cycle, well or with an error.
type CycleDone struct {
	Cycle string
	Took  time.Duration
	// Counts is what it moved and what it cost.
	Counts Counts
	// InStep: everything that could move has moved.
	InStep bool
	// Class is that of Err, "" without one.
	Class string
	Err   error
}

func (CycleStarted) event() {}
func (StageStarted) event() {}
func (Progress) event()     {}
func (StageDone) event()    {}
func (StageFailed) event()  {}
func (CycleDone) event()    {}
