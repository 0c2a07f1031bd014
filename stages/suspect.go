package stages

import (
	"fmt"

	"github.com/tidemark-sync/tidemark/messages"
)

// suspicion is what only somebody else can have done to the store.
type suspicion int

const (
	nothing suspicion = iota
	emptied
	foreign // its snapshots are of another scope
	rolledBack
	keyMissing // this device would put an open snapshot in the place of encrypted ones
	opened     // a snapshot is not encrypted, and this device has a key
)

// suspect compares the manifest's current snapshot, the zero one where there is none,
// with what this device knows, and says so in a sentence.
func suspect(st messages.BackupStanding, current messages.Snapshot) (suspicion, string) {
	switch {
	case current.Generation == "" && st.Generation == "":
		return nothing, ""
	case current.Generation == "":
		return emptied, fmt.Sprintf("the store has no manifest, and this device knows of snapshot %s: it was emptied, or it is another store", st.Generation)
	case current.Scope != "" && st.Scope != "" && current.Scope != st.Scope:
		return foreign, fmt.Sprintf("the snapshots in the store are of another scope, %s, and this is %s, so this device makes none: give it a store of its own", current.Scope, st.Scope)
	case current.Encrypted && !st.Encrypts:
		return keyMissing, "the snapshots in the store are encrypted and this device has no key, so it makes none: give it the key (--key-file, TIDEMARK_KEY_FILE or TIDEMARK_PASSPHRASE)"
	case st.Generation != "" && !current.Seen.Covers(st.BackedUp):
		return rolledBack, fmt.Sprintf("the manifest in the store is older than snapshot %s, which this device knows: somebody put an older one back, or it is another store", st.Generation)
	case st.Encrypts && !current.Encrypted:
		return opened, fmt.Sprintf("snapshot %s in the store is not encrypted: a device without the key made it", current.Generation)
	}
	return nothing, ""
}
