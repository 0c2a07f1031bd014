package tidemark

import (
	"context"

	"github.com/uptrace/bun"

	"github.com/tidemark-sync/tidemark/persistence"
)

// Table is the owner's choice for one table.
type Table struct {
	Name string
	// Exclude leaves the table out of sync, until it is named with Include.
	Exclude bool
	// Include takes a table back that was excluded. It is compared with the server's as
	// a whole, and all its rows are dirty.
	Include bool
	// Policy says who wins a conflict; the default is LastWriterWins.
	Policy Policy
	// Unique says what becomes of two rows that got the same unique key on two
	// devices; the default is Adopt.
	Unique UniquePolicy
}

// Policy says who wins when a row was changed here and, by somebody else, on the
// server. The loser is kept in the conflicts table.
type Policy = persistence.Policy

// The policies.
const (
	LastWriterWins = persistence.LastWriterWins
	ServerWins     = persistence.ServerWins
	ClientWins     = persistence.ClientWins
	// MergeByField keeps the edits of both sides where they changed different columns,
	// against the version both started from; where they changed the same one, the later
	// edit wins. Its trigger names the table's columns: before ALTER TABLE DROP COLUMN,
	// drop the triggers of that table whose names start with tidemark_; the next cycle
	// brings them back.
	MergeByField = persistence.MergeByField
	// ByApplication asks the Resolver of the table, see WithResolver.
	ByApplication = persistence.ByApplication
)

// UniquePolicy says what becomes of two rows that got the same unique key on two
// devices.
type UniquePolicy = persistence.UniquePolicy

// The policies for unique keys.
const (
	Adopt    = persistence.Adopt
	SetAside = persistence.SetAside
)

// Attached says what Attach did and what it noticed.
type Attached = persistence.Attached

// Attach makes an existing SQLite database ready for sync: every table (those that
// tables excludes excepted) gets the tracked columns, indexes and triggers, and all
// its rows are marked dirty. It is one transaction, and doing it again does only
// what is new: call it after the application changed its schema (Sync does so by
// itself). Rows whose parent is missing are reported, not an error.
func Attach(ctx context.Context, db *bun.DB, tables ...Table) (Attached, error) {
	o := persistence.AttachOptions{Options: map[string]persistence.TableOptions{}}
	for _, t := range tables {
		if t.Exclude {
			o.Exclude = append(o.Exclude, t.Name)
			continue
		}
		if t.Include {
			o.Include = append(o.Include, t.Name)
			if t.Policy == "" && t.Unique == "" {
				continue // it keeps what it had
			}
		}
		o.Options[t.Name] = persistence.TableOptions{Policy: t.Policy, Unique: t.Unique}
	}
	return persistence.Attach(ctx, db, o)
}

// Reset lets an attached database start over with another remote: every row is dirty
// again, and what was known of the old server is forgotten.
func Reset(ctx context.Context, db *bun.DB) error {
	local, err := persistence.Open(ctx, db, persistence.DeviceInfo{})
	if err != nil {
		return err
	}
	return local.Reset(ctx)
}

// ReadStatus reads how an attached database stands, without a remote and without
// writing to it.
func ReadStatus(ctx context.Context, db *bun.DB) (Status, error) {
	return statusOf(ctx, persistence.View(db))
}
