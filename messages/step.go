package messages

import "time"

// Step is one line of the step ledger: what a stage did, for one table or for
// all, in one attempt. It commits together with the stage's effect.
type Step struct {
	Cycle   string `json:"cycle"`
	Round   int    `json:"round"`
	Stage   string `json:"stage"`
	Table   string `json:"table,omitempty"`
	Attempt int    `json:"attempt"`
	// Started is by the local clock.
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"took"`
	Counts  Counts        `json:"counts"`
	Error   string        `json:"error,omitempty"`
	TraceID string        `json:"traceId,omitempty"`
}

// Counts is what a step moved and what it cost.
type Counts struct {
	// Tables has the rows moved, per table.
	Tables map[string]TableCounts `json:"tables,omitempty"`
	Billed Billed                 `json:"billed,omitzero"`
	Store  StoreUse               `json:"store,omitzero"`
	// Bytes is the size of the documents read and written, as Firestore counts it.
	Bytes int64 `json:"bytes,omitempty"`
	// Snapshot is the generation of a snapshot that the step made.
	Snapshot string `json:"snapshot,omitempty"`
	// Warnings are what a person should look at, in whole sentences.
	Warnings []string `json:"warnings,omitempty"`
}

// Table adds c to the counts of one table.
func (c *Counts) Table(name string, t TableCounts) {
	if t == (TableCounts{}) {
		return
	}
	if c.Tables == nil {
		c.Tables = map[string]TableCounts{}
	}
	c.Tables[name] = c.Tables[name].Plus(t)
}

// Add adds everything in o.
func (c *Counts) Add(o Counts) {
	for t, n := range o.Tables {
		c.Table(t, n)
	}
	c.Bytes += o.Bytes
	c.Billed.Reads += o.Billed.Reads
	c.Billed.Writes += o.Billed.Writes
	c.Billed.Deletes += o.Billed.Deletes
	c.Store.Puts += o.Store.Puts
	c.Store.Gets += o.Store.Gets
	c.Store.BytesUp += o.Store.BytesUp
	c.Store.BytesDown += o.Store.BytesDown
	c.Warnings = append(c.Warnings, o.Warnings...)
}

// TableCounts counts the rows of one table. Downloaded documents were read from
// the server, Applied ones changed the local database; Waiting ones want a parent
// and Dead ones were set aside.
type TableCounts struct {
	Downloaded int64 `json:"downloaded"`
	Applied    int64 `json:"applied"`
	Uploaded   int64 `json:"uploaded"`
	Conflicts  int64 `json:"conflicts"`
	Waiting    int64 `json:"waiting"`
	Dead       int64 `json:"dead"`
}

// Plus adds two counts.
func (t TableCounts) Plus(o TableCounts) TableCounts {
	return TableCounts{
		t.Downloaded + o.Downloaded, t.Applied + o.Applied, t.Uploaded + o.Uploaded,
		t.Conflicts + o.Conflicts, t.Waiting + o.Waiting, t.Dead + o.Dead,
	}
}

// Billed counts Firestore operations.
type Billed struct {
	Reads   int64 `json:"reads"`
	Writes  int64 `json:"writes"`
	Deletes int64 `json:"deletes"`
}

// StoreUse counts requests and bytes of the snapshot store.
type StoreUse struct {
	Puts      int64 `json:"puts"`
	Gets      int64 `json:"gets"`
	BytesUp   int64 `json:"bytesUp"`
	BytesDown int64 `json:"bytesDown"`
}

// The stages by name, as they stand in the ledger, in reports and in traces.
const (
	StageCheckDevices = "check devices"
	StageDownload     = "download"
	StageSettle       = "settle"
	StageUpload       = "upload"
	StageRegister     = "register"
	StagePurge        = "purge"
	StageBackUp       = "back up"
)
