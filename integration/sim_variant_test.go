package integration

import (
	"database/sql"

	tidemark "github.com/tidemark-sync/tidemark"
)

// simVariant is a tidemark without one of its remedies.
type simVariant struct {
	name   string
	remote func(w *simWorld, d *simDevice, r tidemark.Remote) tidemark.Remote
	opened func(db *sql.DB, s *simSchema) error
	before func(db *sql.DB) error // each cycle
	after  func(db *sql.DB) error
}
