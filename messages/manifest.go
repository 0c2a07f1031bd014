package messages

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ManifestFormat is the version of the manifest and of the objects it names. Format
// 1 knew only whole snapshots that are not encrypted; it is still read.
const ManifestFormat = 2

// ManifestKey is the object that names the current snapshot.
const ManifestKey = "manifest.json"

// Snapshot describes one snapshot of a database file.
type Snapshot struct {
	// Generation is its name, in the order of making.
	Generation string `json:"generation"`
	// Format is the one it was made in, see ManifestFormat; 0 is 1.
	Format int `json:"format,omitempty"`
	// Key is the object that holds it.
	Key string `json:"key"`
	// Size is the object's, RawSize the database file's, in bytes.
	Size    int64 `json:"size"`
	RawSize int64 `json:"rawSize"`
	// SHA256 of the object, RawSHA256 of the database file, in hexadecimal.
	SHA256    string `json:"sha256"`
	RawSHA256 string `json:"rawSha256,omitempty"`
	// Parts are the objects that a snapshot of changes builds on, in their order:
	// a whole one, then what changed from each to the next. A whole one has none.
	Parts []Part `json:"parts,omitempty"`
	// Encrypted: its objects are.
	Encrypted bool `json:"encrypted,omitempty"`
	// Scope is the remote's that the rows were synced with; "" when it cannot tell.
	Scope string `json:"scope,omitempty"`
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

// Part is one object of a snapshot and the generation it was made for.
type Part struct {
	Generation string `json:"generation"`
	Key        string `json:"key"`
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256"`
}

// Chain are all objects that a restore of the snapshot reads, in their order; the last
// one is its own.
func (s Snapshot) Chain() []Part {
	return append(slices.Clone(s.Parts), Part{s.Generation, s.Key, s.Size, s.SHA256})
}

// Download is how much a restore of it reads, in bytes.
func (s Snapshot) Download() int64 {
	var n int64
	for _, p := range s.Chain() {
		n += p.Size
	}
	return n
}

// Header is what an object of format 2 says of itself, inside of its encryption: an
// object that was put in another's place, or a manifest that was changed, does not
// pass.
type Header struct {
	Format     int    `json:"format"`
	Generation string `json:"generation"`
	// Previous is the generation that the changes are against; "" of a whole one.
	Previous       string           `json:"previous,omitempty"`
	Scope          string           `json:"scope,omitempty"`
	Device         string           `json:"device"`
	MadeOn         int64            `json:"madeOn"`
	RawSize        int64            `json:"rawSize"`
	RawSHA256      string           `json:"rawSha256"`
	PageSize       int              `json:"pageSize"`
	Seen           Vector           `json:"seen,omitempty"`
	DownloadedTill map[string]int64 `json:"downloadedTill,omitempty"`
	Bookkeeping    int              `json:"bookkeeping"`
	UserVersion    int64            `json:"userVersion"`
	Dangling       int64            `json:"dangling,omitempty"`
}

// Header is the one that the snapshot's own object has.
func (s Snapshot) Header(pageSize int) Header {
	h := Header{
		Format: s.Format, Generation: s.Generation, Scope: s.Scope, Device: s.Device, MadeOn: s.MadeOn, RawSize: s.RawSize, RawSHA256: s.RawSHA256,
		PageSize: pageSize, Seen: s.Seen, DownloadedTill: s.DownloadedTill, Bookkeeping: s.Bookkeeping, UserVersion: s.UserVersion, Dangling: s.Dangling,
	}
	if n := len(s.Parts); n > 0 {
		h.Previous = s.Parts[n-1].Generation
	}
	return h
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
func (s Snapshot) Objects() []string {
	var keys []string
	for _, p := range s.Chain() {
		keys = append(keys, p.Key)
	}
	return keys
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

// maxParts bounds what a hostile manifest makes a restore read.
const maxParts = 64

func (s Snapshot) validate() error {
	switch {
	case s.Generation == "":
		return errors.New("a snapshot has no generation")
	case s.Format < 0 || s.Format > ManifestFormat:
		return fmt.Errorf("snapshot %s has format %d, which this program does not know: upgrade it", s.Generation, s.Format)
	case s.RawSize <= 0:
		return fmt.Errorf("snapshot %s has no size", s.Generation)
	case s.Format < 2 && (len(s.Parts) > 0 || s.Encrypted):
		return fmt.Errorf("snapshot %s is of a format that has no parts and no encryption", s.Generation)
	case s.Format >= 2 && !isSHA256(s.RawSHA256):
		return fmt.Errorf("snapshot %s has no checksum of the file", s.Generation)
	case len(s.Parts) > maxParts:
		return fmt.Errorf("snapshot %s consists of more than %d objects", s.Generation, maxParts)
	}
	for _, p := range s.Chain() {
		if err := p.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (p Part) validate() error {
	switch {
	case p.Generation == "":
		return errors.New("a part of a snapshot has no generation")
	case !inFolder(p.Key):
		return fmt.Errorf("snapshot %s points outside its folder: %q", p.Generation, p.Key)
	case p.Size <= 0:
		return fmt.Errorf("snapshot %s has no size", p.Generation)
	case !isSHA256(p.SHA256):
		return fmt.Errorf("snapshot %s has no checksum", p.Generation)
	}
	return nil
}

func isSHA256(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
