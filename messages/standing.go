package messages

// Standing is where this installation stands with the server.
type Standing struct {
	InstallationID string
	// Seq is the number of our last acknowledged commit with documents.
	Seq int64
	// RecordVersion is the update_time (µs) of our record when we wrote it last; 0
	// when we never did.
	RecordVersion int64
	// Tokens are the unresolved writes of our record; at most one has landed.
	Tokens []string
	// CheckedTill is the read time (µs) of the last check whose downloads all
	// finished: min(downloadedTill). 0 when there was none.
	CheckedTill int64
	// Whole are the tables that have to be read whole.
	Whole []string
	// Tables are all tables that take part, parents first.
	Tables []string
	Seen   Vector
}

// Target is a device of which more is there than we have seen.
type Target struct {
	Device string
	Seq    int64
	Tables map[string]int64
}

// ClockReading is what the local clock said, in Unix ms, when a question was asked
// and when it was answered.
type ClockReading struct{ Asked, Answered int64 }

// Source is one read that a table's download consists of: a device's log after a
// position, or, with no Device, the whole table.
type Source struct {
	Device string
	After  Position
}

// Settlement is what settling a download came to. Lookup names documents that
// have to be read (at the download's read time) before it can go on: parents that
// were deleted here and got a child elsewhere.
type Settlement struct {
	Lookup map[string][]string
	Counts Counts
	// Again: the cut was not consistent; check devices again at once.
	Again bool
}

// Moved is what became of a commit whose precondition did not hold. Leave are the
// writes that must not be tried again as they are.
type Moved struct {
	Leave map[DocumentKey]bool
	// Stuck: another round would find them as they are.
	Stuck  bool
	Counts Counts
}

// Cursor is how far an upload has come: which dirty rows it has looked at.
type Cursor struct {
	// Tombstones: the rows are done, the deletes are next, children before parents.
	Tombstones bool
	// Table is the index of the table in its order, After the last id looked at.
	Table int
	After string
	// Held are the documents that stay behind this time, by table and id.
	Held map[DocumentKey]bool
	// Counts are the rows that wait or were set aside on the way.
	Counts Counts
}

// DocumentKey names a document across tables.
type DocumentKey struct{ Table, ID string }

// Hold leaves a document behind for this upload.
func (c *Cursor) Hold(table, id string) {
	if c.Held == nil {
		c.Held = map[DocumentKey]bool{}
	}
	c.Held[DocumentKey{table, id}] = true
}

// BackupStanding is what decides whether this device may and should back up.
type BackupStanding struct {
	// Open: a download is half done.
	Open bool
	// Dirty counts what is left to upload, rows that were set aside excepted.
	Dirty int64
	// Seen is the vector a snapshot made now would have.
	Seen Vector
	// BackedUp is that of the newest snapshot we know, Generation its name ("" when
	// we know none) and Maker the device that made it: Big Brother.
	BackedUp   Vector
	Generation string
	Maker      string
	// Changed counts the rows applied or uploaded since, ChangedBytes their size.
	Changed      int64
	ChangedBytes int64
	// Device is our own installation id.
	Device string
	// Now, KnownSince (when we learnt of that snapshot) and DueSince (since when we
	// wait for Big Brother to make the next one; 0: we do not) are Unix ms by the
	// remote's clock, as this device estimates it: its own clock may be wrong by years.
	Now, KnownSince, DueSince int64
	// Scope is the remote's, "" when it cannot tell.
	Scope string
	// Encrypts: a snapshot made here is encrypted.
	Encrypts bool
	// Look: whether that snapshot is in the store is to be looked up, although nothing
	// is due. It is another store, or the owner wants to know.
	Look bool
}

// Health is a database's state for people: what status shows.
type Health struct {
	InstallationID string
	Tables         int
	Dirty          int64
	Waiting        int64
	Dead           int64
	Conflicts      int64
	ClockOffsetMs  int64
	// CheckedTill is the server's time (µs) up to which everything is here.
	CheckedTill int64
	Open        bool
	Seen        Vector
	Generation  string
	BackedUpOn  int64
	Maker       string
	// Encrypted: that snapshot is; nil when it is not known.
	Encrypted *bool
	// ForgottenOn is when this device was forgotten, Unix ms; 0: it was not.
	ForgottenOn int64
}
