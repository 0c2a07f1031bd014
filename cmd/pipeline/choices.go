package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tidemark-sync/tidemark"
)

// choices are the policies in force, by the tables that are synced.
type choices map[string]tidemark.Policy

// choices reads them from an attached database.
func (db *database) choices(ctx context.Context) (choices, error) {
	c := choices{}
	rows, err := db.DB.DB.QueryContext(ctx, `SELECT tableName, coalesce(json_extract(options, '$.policy'), '') FROM tidemark_tables WHERE excluded = 0`)
	if err != nil {
		return c, db.failed(explain(err))
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var p tidemark.Policy
		if err := rows.Scan(&name, &p); err != nil {
			return c, db.failed(explain(err))
		}
		if p == "" {
			p = tidemark.LastWriterWins
		}
		c[name] = p
	}
	return c, db.failed(explain(rows.Err()))
}

// inForce says who wins conflicts.
func (c choices) inForce() string {
	var parts []string
	others := false
	for _, t := range sortedKeys(c) {
		if p := c[t]; p != tidemark.LastWriterWins {
			parts = append(parts, t+" "+string(p))
		} else {
			others = true
		}
	}
	switch {
	case len(parts) == 0:
		return string(tidemark.LastWriterWins)
	case others:
		parts = append(parts, "all others "+string(tidemark.LastWriterWins))
	}
	return strings.Join(parts, ", ")
}

// unheeded says what the settings ask for and only attach does; "" when there is
// nothing.
func (c choices) unheeded(s settings) string {
	var parts []string
	for _, t := range sortedKeys(s.policies) {
		for name, p := range c {
			if strings.EqualFold(name, t) && p != s.policies[t] {
				parts = append(parts, fmt.Sprintf("for %s for table %s, where it is %s", s.policies[t], name, p))
			}
		}
	}
	for _, t := range s.exclude {
		for name := range c {
			if strings.EqualFold(name, t) {
				parts = append(parts, "to exclude table "+name+", which is synced")
			}
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "the settings ask " + strings.Join(parts, ", and ") + ": `pipeline attach` does it"
}

// inhabited fails when the application has made no table yet.
func (db *database) inhabited(ctx context.Context) error {
	var yes bool
	err := db.DB.DB.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*' AND name NOT GLOB 'tidemark_*')`).Scan(&yes)
	if err == nil && !yes {
		err = errors.New("it has no table yet: let your app create its tables first; nothing was done")
	}
	return db.failed(explain(err))
}

// otherObjects are what looks like a table and is none that could be synced.
func (db *database) otherObjects(ctx context.Context) ([]string, error) {
	return db.names(ctx, `SELECT name || iif(type = 'view', ' (view)', ' (virtual)') FROM sqlite_master
		WHERE (type = 'view' OR type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%') AND name NOT GLOB 'tidemark_*' ORDER BY name`)
}

// excluded lists the tables that are there and left out of sync.
func (db *database) excluded(ctx context.Context) ([]string, error) {
	return db.names(ctx, `SELECT name FROM sqlite_master WHERE type = 'table' AND lower(name) IN (SELECT lower(tableName) FROM tidemark_tables WHERE excluded = 1) ORDER BY name`)
}

func (db *database) names(ctx context.Context, query string) ([]string, error) {
	rows, err := db.DB.DB.QueryContext(ctx, query)
	if err != nil {
		return nil, db.failed(explain(err))
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, db.failed(explain(err))
		}
		out = append(out, name)
	}
	return out, db.failed(explain(rows.Err()))
}
