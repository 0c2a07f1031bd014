package messages

// Device is an installation's record in the Devices collection. It is written
// in the same commit as the documents it announces.
type Device struct {
	// ID is the installation id and the record's document id.
	ID string
	// Seq is the number of this device's last commit that carried documents or a
	// fence. Every document it wrote has a Stamp with a number up to it.
	Seq int64
	// Tables has, per table, the Seq that last touched it.
	Tables map[string]int64
	// UploadedOn is the server's time in Unix milliseconds of the commit that
	// last raised Seq; 0 when there was none.
	UploadedOn int64
	// Token is random, new in every write of the record: it tells a lost
	// acknowledgement from a stranger's write.
	Token string
	// Name, Platform and Version describe the installation to people.
	Name     string
	Platform string
	Version  string
	// Seen is how far this device has read every other one.
	Seen Vector
	// Fence is, per writer, how far tombstones may have been purged.
	Fence Vector
	// Forgotten: the device will not come back. Its numbers stay, because others
	// compare them; it no longer holds back a purge. The record with the id
	// ForgottenScope says so of the whole scope.
	Forgotten bool
	// UpdateTime is the record's version in Unix microseconds. In a Commit it is
	// ignored.
	UpdateTime int64
}

// ForgottenScope is the id of the record that stays when a whole scope was forgotten,
// so that devices which hear of it late stop. No installation id is like it.
const ForgottenScope = "forgotten"

// DeviceList is the answer to one query on Devices.
type DeviceList struct {
	Devices []Device
	// ReadTime is the server's time in Unix microseconds at which the answer
	// holds; downloads that follow read at exactly this time.
	ReadTime int64
	// Reads is what the query was billed: one for an empty answer.
	Reads int64
}
