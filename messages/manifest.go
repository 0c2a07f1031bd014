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
	// MadeOn is Unix ms by the maker's clock, for people.
	MadeOn int64 `json:"madeOn"`
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
}

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
	for _, s := range append([]Snapshot{m.Current}, m.Older...) {
		if err := s.validate(); err != nil {
			return m, fmt.Errorf("the manifest is not valid: %w: %w", ErrRejected, err)
		}
	}
	return m, nil
}

// SnapshotPrefix is where snapshots lie; a manifest may name nothing else.
const SnapshotPrefix = "snapshots/"

func (s Snapshot) validate() error {
	name, ok := strings.CutPrefix(s.Key, SnapshotPrefix)
	switch {
	case s.Generation == "":
		return errors.New("a snapshot has no generation")
	case !ok || name == "" || strings.ContainsAny(name, "/\\") || strings.Contains(name, ".."):
		return fmt.Errorf("snapshot %s points outside its folder: %q", s.Generation, s.Key)
	case s.Size <= 0 || s.RawSize <= 0:
		return fmt.Errorf("snapshot %s has no size", s.Generation)
	case len(s.SHA256) != 64 || strings.Trim(s.SHA256, "0123456789abcdef") != "":
		return fmt.Errorf("snapshot %s has no checksum", s.Generation)
	}
	return nil
}
