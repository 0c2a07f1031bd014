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
)

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

// SetOptions stores the owner's choices for attached tables.
func (l *Local) SetOptions(ctx context.Context, options map[string]TableOptions) error {
	err := l.write(ctx, func(tx *tx) error {
		for name, o := range options {
			switch o.Policy {
			case "", LastWriterWins, ServerWins, ClientWins:
			default:
				return fmt.Errorf("table %q: unknown policy %q", name, o.Policy)
			}
			switch o.Unique {
			case "", Adopt, SetAside:
			default:
				return fmt.Errorf("table %q: unknown policy for unique keys %q", name, o.Unique)
			}
			raw, err := json.Marshal(o)
			if err != nil {
				return err
			}
			n, err := tx.run(`UPDATE tidemark_tables SET options = ? WHERE tableName = ? COLLATE NOCASE`, string(raw), name)
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("table %q: %w", name, ErrNotAttached)
			}
		}
		return nil
	})
	l.forget()
	if err != nil {
		return fmt.Errorf("store the tables' options: %w", err)
	}
	return nil
}
