package messages

// Write is one document in a Commit.
type Write struct {
	Document Document
	// Expect is the document's update_time that must still hold, in Unix
	// microseconds; 0 demands that the document does not exist.
	Expect int64
	// Purge removes the document instead of writing it.
	Purge bool
}

// Commit is written as a whole or not at all: the documents, and the device's
// record on top of the version its owner wrote last. Fields that a Write does not
// name keep their value on the server.
type Commit struct {
	Device Device
	// Expect is the record's update_time that must still hold; 0 demands that
	// the record does not exist.
	Expect int64
	// Announce sets the record's uploadedOn to the server's time: other devices
	// find the commit by it. True exactly when Device.Seq was raised.
	Announce bool
	// Remove removes the record instead of writing it, on the same condition.
	Remove bool
	Writes []Write
}

// Committed is the acknowledgement. The documents and the record share one
// UpdateTime.
type Committed struct {
	UpdateTime int64
	// Writes and Deletes are what was billed.
	Writes  int64
	Deletes int64
}
