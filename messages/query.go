package messages

// Position is where a download stands: the last document that was applied.
type Position struct {
	Stamp Stamp
	ID    string
}

// Query asks for documents of one table, all as of ReadTime. With a Device it
// reads that device's documents with a stamp after the Position, in order of
// (stamp, id); the first Position of a device that was seen up to n is
// {Stamp{device, n}, ""} and means: everything with a number above n. Without a
// Device it reads the whole table in order of id, after Position.ID.
//
// With Tombstones, of a device's documents only the deleted ones come, with a number
// up to Till; others are not billed, and Fields may be empty.
type Query struct {
	Table    string
	Device   string
	After    Position
	ReadTime int64
	// Tombstones asks for deletes only, up to the number Till; only with a Device.
	Tombstones bool
	Till       int64
	// Limit bounds the answer; 0 is no limit.
	Limit int
}

// Page is the answer to a lookup by document ids. A document that does not
// exist is missing from Documents.
type Page struct {
	Documents []Document
	Reads     int64
}
