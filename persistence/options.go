package persistence

import (
	"context"
	"encoding/json"
	"fmt"
)

// Policy says who wins when a row was changed here and, by somebody else, on the
// server.
type Policy string

// The policies. The empty Policy is LastWriterWins.
const (
	LastWriterWins Policy = "last-writer-wins"
	ServerWins     Policy = "server-wins"
	ClientWins     Policy = "client-wins"
	// MergeByField keeps the edits of both sides where they changed different columns,
	// against the version that both started from; where they changed the same column,
	// the later edit wins. A trigger keeps that version from the first edit of a row
	// until it is uploaded. It names the table's columns: drop the triggers of such a
	// table that start with tidemark_ before an ALTER TABLE DROP COLUMN, the next Attach
	// brings them back.
	MergeByField Policy = "merge-by-field"
	// ByApplication asks the application's Resolver.
	ByApplication Policy = "by-application"
)

// keepsBase reports whether the policy needs the version that both sides started
// from.
func (p Policy) keepsBase() bool { return p == MergeByField || p == ByApplication }

// TableOptions are the owner's choices for one table, kept in tidemark_tables.
type TableOptions struct {
	Policy Policy       `json:"policy,omitempty"`
	Unique UniquePolicy `json:"unique,omitempty"`
}

// UniquePolicy says what becomes of two rows that got the same unique key on two
// devices.
type UniquePolicy string

// The policies. The empty UniquePolicy is Adopt.
const (
	// Adopt merges them: the smaller document id lives on, children move to it, and
	// the other row is kept as a conflict.
	Adopt UniquePolicy = "adopt"
	// SetAside keeps the row that is here and puts the other's document into the dead
	// letters.
	SetAside UniquePolicy = "set-aside"
)

func loadOptions(ctx context.Context, q queryer) (map[string]TableOptions, error) {
	rows, err := q.QueryContext(ctx, `SELECT tableName, options FROM tidemark_tables`)
	if err != nil {
		return nil, fmt.Errorf("read the tables' options: %w", explain(err))
	}
	defer rows.Close()
	out := map[string]TableOptions{}
	for rows.Next() {
		var name, raw string
		if err := rows.Scan(&name, &raw); err != nil {
			return nil, fmt.Errorf("read the tables' options: %w", err)
		}
		var o TableOptions
		if err := json.Unmarshal([]byte(raw), &o); err != nil {
			return nil, fmt.Errorf("the options of table %q are damaged: attach again: %w", name, err)
		}
		out[name] = o
	}
	return out, rows.Err()
}

// validate refuses policies that do not exist.
func (o TableOptions) validate() error {
	switch o.Policy {
	case "", LastWriterWins, ServerWins, ClientWins, MergeByField, ByApplication:
	default:
		return fmt.Errorf("unknown policy %q: take last-writer-wins, server-wins, client-wins, merge-by-field or by-application", o.Policy)
	}
	switch o.Unique {
	case "", Adopt, SetAside:
	default:
		return fmt.Errorf("unknown policy for unique keys %q: take adopt or set-aside", o.Unique)
	}
	return nil
}
