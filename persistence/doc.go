// Package persistence is the local side: it reflects the application's schema,
// attaches the tracked columns and triggers to it, keeps the bookkeeping tables
// in the same SQLite file, applies pages of documents, lists dirty rows, and makes
// and restores snapshots of the file. It works with any SQLite driver that bun
// accepts; it opens none itself.
package persistence
