package messages

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ManifestFormat is the version of the manifest and of the objects it names.
const ManifestFormat = 1

// ManifestKey is the object that names the current snapshot.
const ManifestKey = "manifest.json"

// Snapshot describes one snapshot of a database file.
type Snapshot struct {
	// Generation is its name, in the order of making.
	Generation string `json:"generation"`
	// Key is the object that holds it.
	Key string `json:"key"`
	// Size is the object's, RawSize the database file's, in bytes.
	Size    int64 `json:"size"`
	RawSize int64 `json:"rawSize"`
	// SHA256 of the object, in hexadecimal.
	SHA256 string `json:"sha256"`
	// Seen is how far it has every device's changes, its maker's included.
	// Freshness is compared by it, never by a clock.
	Seen Vector `json:"seen"`
	// DownloadedTill per table, Unix µs.
	DownloadedTill map[string]int64 `json:"downloadedTill"`
	// Device is the installation id of the maker.
	Device string `json:"device"`
	// MadeOn is Unix ms by the remote's clock, as its maker estimated it.
	MadeOn int64 `json:"madeOn"`
	// Rows is how many rows each table has.
	Rows map[string]int64 `json:"rows,omitempty"`
	// Bookkeeping is the version of tidemark's own tables in it, UserVersion the
	// application's PRAGMA user_version.
	Bookkeeping int   `json:"bookkeeping"`
	UserVersion int64 `json:"userVersion"`
	// Dangling is how many foreign-key violations the database had already.
	Dangling int64 `json:"dangling,omitempty"`
}

// Manifest names the current snapshot and the older ones that are kept, newest
// first.
type Manifest struct {
	Format  int        `json:"format"`
	Current Snapshot   `json:"current"`
	Older   []Snapshot `json:"older,omitempty"`
	// Retired are objects that no snapshot needs any more. They stay for a while: a
	// restore may be reading them.
	Retired []Retired `json:"retired,omitempty"`
	// SweptOn is when the store was last listed for objects that no manifest names,
	// Unix ms by the remote's clock.
	SweptOn int64 `json:"sweptOn,omitempty"`
	// Conditional: the store was tried and honours conditional writes.
	Conditional bool `json:"conditional,omitempty"`
}

// Retired is an object that waits for its removal.
type Retired struct {
	Key string `json:"key"`
	// On is since when no snapshot needs it, Unix ms by the remote's clock.
	On int64 `json:"on"`
}

// Snapshots are all that can be restored, newest first.
func (m Manifest) Snapshots() []Snapshot {
	return append([]Snapshot{m.Current}, m.Older...)
}

// Objects are the keys of all objects that a restore of s reads.
func (s Snapshot) Objects() []string { return []string{s.Key} }

// ParseManifest reads and checks a manifest; what it cannot trust is ErrRejected.
func ParseManifest(b []byte) (Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("the manifest is not readable: %w: %w", ErrRejected, err)
	}
	if m.Format > ManifestFormat {
		return m, fmt.Errorf("the manifest has format %d and this program knows %d: upgrade it: %w", m.Format, ManifestFormat, ErrRejected)
	}
	if m.Format < 1 {
		return m, fmt.Errorf("the manifest has no format: %w", ErrRejected)
	}
	for _, s := range m.Snapshots() {
		if err := s.validate(); err != nil {
			return m, fmt.Errorf("the manifest is not valid: %w: %w", ErrRejected, err)
		}
	}
	for _, r := range m.Retired {
		if !inFolder(r.Key) {
			return m, fmt.Errorf("the manifest is not valid: %w: a retired object lies outside the snapshots' folder: %q", ErrRejected, r.Key)
		}
	}
	return m, nil
}

// SnapshotPrefix is where snapshots lie; a manifest may name nothing else.
const SnapshotPrefix = "snapshots/"

func inFolder(key string) bool {
	name, ok := strings.CutPrefix(key, SnapshotPrefix)
	return ok && name != "" && name != "." && !strings.ContainsAny(name, "/\\\x00") && !strings.Contains(name, "..")
}

func (s Snapshot) validate() error {
	switch {
	case s.Generation == "":
		return errors.New("a snapshot has no generation")
	case !inFolder(s.Key):
		return fmt.Errorf("snapshot %s points outside its folder: %q", s.Generation, s.Key)
	case s.Size <= 0 || s.RawSize <= 0:
		return fmt.Errorf("snapshot %s has no size", s.Generation)
	case len(s.SHA256) != 64 || strings.Trim(s.SHA256, "0123456789abcdef") != "":
		return fmt.Errorf("snapshot %s has no checksum", s.Generation)
	}
	return nil
}
