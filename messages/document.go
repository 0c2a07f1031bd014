package messages

// Document is one row as the server holds it.
type Document struct {
	Table string
	// ID is the document id: the clientId that was minted with the row.
	ID string
	// CreatedOn and UpdatedOn are the row's, in Unix milliseconds.
	CreatedOn int64
	UpdatedOn int64
	// UpdatedBy is the installation id of the device that uploaded this version.
	UpdatedBy string
	// UploadedOn is the server's time of the upload in Unix milliseconds. The
	// server sets it; in a Write it is ignored.
	UploadedOn int64
	// Deleted marks a tombstone. It keeps the fields it had.
	Deleted bool
	// Survivor names, on the tombstone of a row that was merged into another
	// because of a UNIQUE collision, the document that lives on.
	Survivor string
	// Stamp is zero when somebody who is no device wrote the document.
	Stamp Stamp
	// UpdateTime is the version: the server's commit time in Unix microseconds.
	// In a Write it is ignored.
	UpdateTime int64
	// Fields are the data columns under their own names. A value is nil, int64,
	// float64, string (valid UTF-8), []byte, bool, or Unsupported for what no
	// SQLite column can hold. A foreign key is the parent's document id.
	Fields map[string]any
}

// Unsupported stands for a value that the server has and SQLite cannot hold; it
// names the server's type ("map", "timestamp", …).
type Unsupported struct{ Type string }

// Limits of one document and one commit, from Firestore's published quotas. A
// commit stays well below the 4 MiB message limit that gRPC servers default to.
const (
	MaxDocumentBytes = 1 << 20
	MaxCommitBytes   = 3 << 20
	MaxCommitWrites  = 500
)

// Size estimates the document's stored size in bytes by Firestore's rules: names
// and strings are their UTF-8 length plus one, numbers 8, null and bool 1.
func (d *Document) Size() int {
	n := len(d.Table) + len(d.ID) + 2 + 16 // name
	n += 160 + len(d.UpdatedBy)*2 + len(d.Survivor)
	for k, v := range d.Fields {
		n += len(k) + 1 + valueSize(v)
	}
	return n + 32
}

func valueSize(v any) int {
	switch v := v.(type) {
	case string:
		return len(v) + 1
	case []byte:
		return len(v)
	case int64, float64:
		return 8
	default:
		return 1
	}
}
