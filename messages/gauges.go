package messages

// Gauges is how a database stands at one moment, in numbers for a monitor.
type Gauges struct {
	// Dirty rows are to be uploaded; Waiting documents want a parent; Dead ones, and
	// rows, were set aside; Conflicts are kept.
	Dirty, Waiting, Dead, Conflicts int64
	// OldestDirtyMs is how long ago the oldest edit was made that is to be uploaded, in
	// milliseconds; 0 when there is none. Rows that were set aside do not count, and of
	// each table only the 10,000 that go up next.
	OldestDirtyMs int64
	// LastCycleOn is when the last cycle came to its end, SnapshotOn when the newest
	// snapshot was made that this device knows of, both in Unix milliseconds; 0: never.
	LastCycleOn, SnapshotOn int64
	// SnapshotBytes is the snapshot's size in the store.
	SnapshotBytes int64
	// ClockOffsetMs is the server's clock minus ours.
	ClockOffsetMs int64
}
