package messages

// The messages of one sync cycle, in their order. Cycle is the cycle's id and
// Round counts how often it had to go round again to get in step (from 0).

// SyncRequested asks for one cycle.
type SyncRequested struct {
	Cycle string `json:"cycle"`
	Round int    `json:"round"`
	// Full compares every document with every row, not only what is new.
	Full bool `json:"full,omitempty"`
}

// DevicesChecked says which tables have something new, as of ReadTime (Unix µs).
type DevicesChecked struct {
	Cycle    string   `json:"cycle"`
	Round    int      `json:"round"`
	ReadTime int64    `json:"readTime"`
	Tables   []string `json:"tables"`
	Full     bool     `json:"full,omitempty"`
}

// TableRequested asks for the download of one table; all its parents are done.
type TableRequested struct {
	Cycle    string   `json:"cycle"`
	Round    int      `json:"round"`
	ReadTime int64    `json:"readTime"`
	Table    string   `json:"table"`
	Tables   []string `json:"tables"`
	Full     bool     `json:"full,omitempty"`
}

// TableDownloaded says that everything up to ReadTime of one table has arrived.
type TableDownloaded struct {
	Cycle    string   `json:"cycle"`
	Round    int      `json:"round"`
	ReadTime int64    `json:"readTime"`
	Table    string   `json:"table"`
	Tables   []string `json:"tables"`
	Full     bool     `json:"full,omitempty"`
}

// DownloadSettled says that what needed the whole cut has been decided: waiting
// rows, tombstones, unique keys. Again asks for another round after this one.
type DownloadSettled struct {
	Cycle string `json:"cycle"`
	Round int    `json:"round"`
	Again bool   `json:"again,omitempty"`
}

// DirtyUploaded says that every dirty row that could go up is up.
type DirtyUploaded struct {
	Cycle string `json:"cycle"`
	Round int    `json:"round"`
	Again bool   `json:"again,omitempty"`
}

// DeviceRegistered says that our record in Devices tells what it should.
type DeviceRegistered struct {
	Cycle string `json:"cycle"`
	Round int    `json:"round"`
	Again bool   `json:"again,omitempty"`
}

// TombstonesPurged says that deletes which every device has seen are gone from the
// server, if it was time to look.
type TombstonesPurged struct {
	Cycle string `json:"cycle"`
	Round int    `json:"round"`
	Again bool   `json:"again,omitempty"`
}

// BackupReady ends the cycle. Generation is that of a snapshot made by this
// cycle, or empty.
type BackupReady struct {
	Cycle      string `json:"cycle"`
	Round      int    `json:"round"`
	Again      bool   `json:"again,omitempty"`
	Generation string `json:"generation,omitempty"`
}
