package persistence

import (
	"context"
	"fmt"
)

// Prefix starts the name of everything of ours in the application's file.
const Prefix = "tidemark_"

// formatVersion is the version of the bookkeeping tables below.
const formatVersion = 1

// The bookkeeping tables. They live beside the application's data so that an
// effect and its record commit together; none of them is synced.
//
// tidemark_state is read by every trigger: applying is set and cleared inside the
// engine's own transaction, so no other connection ever sees it set.
var bookkeeping = []string{
	`CREATE TABLE IF NOT EXISTS tidemark_state (
		id INTEGER PRIMARY KEY CHECK (id = 1),
		applying INTEGER NOT NULL DEFAULT 0,
		clockOffset INTEGER NOT NULL DEFAULT 0,      -- ms to add to the local clock to get the server's
		clockCheckedOn INTEGER NOT NULL DEFAULT 0,   -- ms of the server's clock when that was measured last; 0: never
		installationId TEXT NOT NULL DEFAULT '',
		formatVersion INTEGER NOT NULL,
		seq INTEGER NOT NULL DEFAULT 0,              -- of our last acknowledged commit with documents
		recordVersion INTEGER NOT NULL DEFAULT 0,    -- update_time (µs) of our Devices record; 0: none yet
		recordTables TEXT NOT NULL DEFAULT '{}',     -- table → seq that last touched it, as in the record
		registeredOn INTEGER NOT NULL DEFAULT 0,     -- ms, when the record last told what we have seen
		checkedAt INTEGER NOT NULL DEFAULT 0,        -- µs, read time that open targets come from; 0: none open
		firstAt INTEGER NOT NULL DEFAULT 0,          -- µs, read time of the first check of an open whole-table read
		cutBroken INTEGER NOT NULL DEFAULT 0,        -- an open whole-table read was resumed at a later read time
		fence TEXT NOT NULL DEFAULT '{}',            -- device → number up to which we have purged its tombstones
		purgedOn INTEGER NOT NULL DEFAULT 0,         -- ms, when we last looked for some to purge
		deletesAllowed INTEGER NOT NULL DEFAULT 0,   -- the owner has agreed to a download that deletes much
		heldRows INTEGER NOT NULL DEFAULT 0,         -- dirty rows that the last upload had to leave behind
		scope TEXT NOT NULL DEFAULT '',              -- of the remote that the numbers are from
		schemaVersion INTEGER NOT NULL DEFAULT -1,   -- PRAGMA schema_version when we attached last
		backedUp TEXT NOT NULL DEFAULT '{}',         -- the vector of the snapshot we know of
		backedUpOn INTEGER NOT NULL DEFAULT 0,       -- ms, when
		generation TEXT NOT NULL DEFAULT '',         -- its generation
		maker TEXT NOT NULL DEFAULT '',              -- the installation id that made it
		changedRows INTEGER NOT NULL DEFAULT 0       -- rows applied or uploaded since that snapshot
	)`,
	// Whose turn it is to back up, as seen from here. The times are by the remote's
	// clock; all of it is about one generation and void for another.
	`CREATE TABLE IF NOT EXISTS tidemark_turn (
		id INTEGER PRIMARY KEY CHECK (id = 1),
		generation TEXT NOT NULL,
		knownSince INTEGER NOT NULL,                 -- ms, when we learnt of it
		dueSince INTEGER NOT NULL DEFAULT 0,         -- ms, since when we wait for Big Brother; 0: we do not
		changedBytes INTEGER NOT NULL DEFAULT 0      -- of the rows applied or uploaded since
	)`,
	`CREATE TABLE IF NOT EXISTS tidemark_tables (
		tableName TEXT PRIMARY KEY,
		columns TEXT NOT NULL,                       -- JSON list of the data columns that were attached
		excluded INTEGER NOT NULL DEFAULT 0,
		options TEXT NOT NULL DEFAULT '{}'           -- JSON, the owner's choices for the table
	) WITHOUT ROWID`,
	// downloadedTill is the read time (µs) up to which the table is complete; NULL
	// asks for a whole read before anything is uploaded from it.
	`CREATE TABLE IF NOT EXISTS tidemark_DownloadedTracker (
		tableName TEXT PRIMARY KEY,
		downloadedTill INTEGER,
		scannedTo TEXT NOT NULL DEFAULT '',          -- document id an open whole read has reached
		gained TEXT NOT NULL DEFAULT '[]',           -- JSON list of columns the whole read is for
		rebuilt INTEGER NOT NULL DEFAULT 0,          -- the rows have lost their identities: the whole read gives them back
		completeTill INTEGER NOT NULL DEFAULT 0      -- read time (µs) up to which it was complete before a whole read was asked for; 0: not known
	) WITHOUT ROWID`,
	`CREATE TABLE IF NOT EXISTS tidemark_seen (
		device TEXT PRIMARY KEY,
		seq INTEGER NOT NULL
	) WITHOUT ROWID`,
	// What the last check found and is not settled yet: the numbers that seen
	// moves to when every table is done.
	`CREATE TABLE IF NOT EXISTS tidemark_targets (
		device TEXT PRIMARY KEY,
		seq INTEGER NOT NULL,
		tables TEXT NOT NULL                         -- JSON, table → seq
	) WITHOUT ROWID`,
	`CREATE TABLE IF NOT EXISTS tidemark_positions (
		device TEXT NOT NULL,
		tableName TEXT NOT NULL,
		seq INTEGER NOT NULL,
		documentId TEXT NOT NULL,
		PRIMARY KEY (device, tableName)
	) WITHOUT ROWID`,
	`CREATE TABLE IF NOT EXISTS tidemark_tombstones (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		createdOn INTEGER,
		updatedOn INTEGER NOT NULL,
		updatedBy TEXT NOT NULL,
		serverId TEXT,
		isDirty INTEGER NOT NULL DEFAULT 1,
		serverVersion INTEGER,
		survivor TEXT NOT NULL DEFAULT '',
		localKey TEXT NOT NULL DEFAULT '',           -- the key it had here, where foreign keys refer to the table
		above INTEGER NOT NULL DEFAULT 0,            -- updatedOn of the version that was deleted, when everybody may have it: what corrects a clock leaves the delete later
		PRIMARY KEY (tableName, clientId)
	) WITHOUT ROWID`,
	`CREATE INDEX IF NOT EXISTS tidemark_tombstones_dirty ON tidemark_tombstones (tableName, clientId) WHERE isDirty = 1`,
	`CREATE INDEX IF NOT EXISTS tidemark_tombstones_key ON tidemark_tombstones (tableName, localKey) WHERE isDirty = 1 AND localKey <> ''`,
	// Rows that an INSERT OR REPLACE (or UPDATE OR REPLACE) may be about to delete
	// without firing a trigger, under the key by which the new row would replace
	// them; keyNo 0 is the primary key. Confirmed afterwards against what really
	// vanished. What an OR IGNORE or an upsert noted stays behind, until the same
	// key is written again or sweep clears it.
	`CREATE TABLE IF NOT EXISTS tidemark_replaced (
		tableName TEXT NOT NULL,
		keyValue TEXT NOT NULL,                      -- starts with keyNo
		clientId TEXT NOT NULL,
		keyNo INTEGER NOT NULL,
		createdOn INTEGER,
		updatedOn INTEGER,
		serverId TEXT,
		serverVersion INTEGER,
		PRIMARY KEY (tableName, keyValue, clientId)
	) WITHOUT ROWID`,
	// Rows that the update trigger is marking at this very moment: keeps an
	// application's trigger and ours from calling each other for ever.
	`CREATE TABLE IF NOT EXISTS tidemark_marking (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		at INTEGER NOT NULL,
		PRIMARY KEY (tableName, clientId)
	) WITHOUT ROWID`,
	// Rows whose INTEGER PRIMARY KEY was taken here: the number in their document is
	// another one.
	`CREATE TABLE IF NOT EXISTS tidemark_renumbered (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		localKey INTEGER NOT NULL,
		PRIMARY KEY (tableName, clientId)
	) WITHOUT ROWID`,
	// Rows that the application's own triggers changed while documents were applied;
	// they are put back to what their documents say.
	`CREATE TABLE IF NOT EXISTS tidemark_touched (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		PRIMARY KEY (tableName, clientId)
	) WITHOUT ROWID`,
	// Parents that a dirty row referred to when we last agreed with the server:
	// their tombstones wait for the row. parentId is filled in when the parent is
	// deleted ('' until then), for a trigger may name no table but its own and so
	// cannot look the parent up; '?' is a row of tidemark_replaced not yet confirmed.
	`CREATE TABLE IF NOT EXISTS tidemark_left (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		parentTable TEXT NOT NULL,
		parentKey TEXT NOT NULL,
		parentId TEXT NOT NULL,
		PRIMARY KEY (tableName, clientId, parentTable, parentKey, parentId)
	) WITHOUT ROWID`,
	`CREATE INDEX IF NOT EXISTS tidemark_left_parent ON tidemark_left (parentTable, parentKey, parentId)`,
	`CREATE INDEX IF NOT EXISTS tidemark_left_id ON tidemark_left (parentTable, parentId)`,
	// What a dirty row was when we last agreed with the server, for tables whose policy
	// needs it. value has no type, so that it is kept as it is.
	`CREATE TABLE IF NOT EXISTS tidemark_bases (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		columnName TEXT NOT NULL,
		value,
		PRIMARY KEY (tableName, clientId, columnName)
	) WITHOUT ROWID`,
	// Deleted rows that we keep alive for a child, until that is uploaded: what their
	// tombstones said.
	`CREATE TABLE IF NOT EXISTS tidemark_revivals (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		deletedOn INTEGER NOT NULL,
		deletedBy TEXT NOT NULL,
		serverVersion INTEGER NOT NULL,
		PRIMARY KEY (tableName, clientId)
	) WITHOUT ROWID`,
	// Behind the fence: rows that the whole read has not found on the server yet. Those
	// it does not find were deleted, and their tombstones purged.
	`CREATE TABLE IF NOT EXISTS tidemark_absent (
		tableName TEXT NOT NULL,
		clientId TEXT NOT NULL,
		PRIMARY KEY (tableName, clientId)
	) WITHOUT ROWID`,
	// Documents that were received and cannot be applied yet. kind: 'waiting' for a
	// parent, 'collides' on a unique key, 'tombstone' until the download's end.
	`CREATE TABLE IF NOT EXISTS tidemark_inbox (
		tableName TEXT NOT NULL,
		documentId TEXT NOT NULL,
		kind TEXT NOT NULL,
		updateTime INTEGER NOT NULL,
		reason TEXT NOT NULL DEFAULT '',
		document BLOB NOT NULL,
		PRIMARY KEY (tableName, documentId)
	) WITHOUT ROWID`,
	`CREATE TABLE IF NOT EXISTS tidemark_dead_letters (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		tableName TEXT NOT NULL DEFAULT '',
		documentId TEXT NOT NULL DEFAULT '',
		topic TEXT NOT NULL DEFAULT '',
		handler TEXT NOT NULL DEFAULT '',
		payload BLOB,
		metadata TEXT NOT NULL DEFAULT '{}',
		class TEXT NOT NULL,
		reason TEXT NOT NULL,
		attempts INTEGER NOT NULL DEFAULT 1,
		firstOn INTEGER NOT NULL,
		lastOn INTEGER NOT NULL,
		cycle TEXT NOT NULL DEFAULT '',
		traceparent TEXT NOT NULL DEFAULT '',
		state TEXT NOT NULL DEFAULT 'dead',          -- dead, discarded
		updatedOn INTEGER NOT NULL DEFAULT 0         -- of the row that was refused; an edit tries again, and 0, which asks for it
	)`,
	// One letter a document and handler, whatever its state.
	`DROP INDEX IF EXISTS tidemark_dead_letters_row`,
	`CREATE UNIQUE INDEX IF NOT EXISTS tidemark_dead_letters_once ON tidemark_dead_letters (handler, tableName, documentId) WHERE documentId <> ''`,
	// Those that somebody wants to be tried again: looked for all the time, seldom there.
	`CREATE INDEX IF NOT EXISTS tidemark_dead_letters_asked ON tidemark_dead_letters (handler) WHERE updatedOn = 0`,
	`CREATE TABLE IF NOT EXISTS tidemark_conflicts (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		tableName TEXT NOT NULL,
		documentId TEXT NOT NULL,
		winner TEXT NOT NULL,                        -- local, server, merged, restored
		reason TEXT NOT NULL,
		localVersion BLOB,                           -- the row as it was here
		serverVersion BLOB,                          -- the document
		detectedOn INTEGER NOT NULL,
		restoredOn INTEGER                           -- ms, when the owner wanted it back
	)`,
	// A token is saved before each write of our record; the journal says what the
	// commit held, for when its acknowledgement is lost.
	`CREATE TABLE IF NOT EXISTS tidemark_tokens (
		token TEXT PRIMARY KEY,
		seq INTEGER NOT NULL,
		sentOn INTEGER NOT NULL,
		journal BLOB NOT NULL
	)`,
	// The step ledger: a stage's effect and its row commit together.
	`CREATE TABLE IF NOT EXISTS tidemark_ledger (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		cycle TEXT NOT NULL,
		round INTEGER NOT NULL,
		stage TEXT NOT NULL,
		tableName TEXT NOT NULL DEFAULT '',
		attempt INTEGER NOT NULL DEFAULT 1,
		startedOn INTEGER NOT NULL,                  -- ms
		tookUs INTEGER NOT NULL,
		counts TEXT NOT NULL DEFAULT '{}',
		error TEXT NOT NULL DEFAULT '',
		traceId TEXT NOT NULL DEFAULT ''
	)`,
	// What was billed on each day (UTC), for when the ledger has been trimmed.
	`CREATE TABLE IF NOT EXISTS tidemark_cost (
		day TEXT PRIMARY KEY,                        -- 2026-11-24
		cycles INTEGER NOT NULL DEFAULT 0,
		reads INTEGER NOT NULL DEFAULT 0,
		writes INTEGER NOT NULL DEFAULT 0,
		deletes INTEGER NOT NULL DEFAULT 0,
		puts INTEGER NOT NULL DEFAULT 0,
		gets INTEGER NOT NULL DEFAULT 0,
		bytesUp INTEGER NOT NULL DEFAULT 0,          -- to the store
		bytesDown INTEGER NOT NULL DEFAULT 0
	) WITHOUT ROWID`,
	`CREATE INDEX IF NOT EXISTS tidemark_ledger_cycle ON tidemark_ledger (cycle, round, stage, tableName)`,
}

// laterColumns are those that a table above did not have from the beginning.
var laterColumns = []struct{ table, name, declaration string }{
	{"tidemark_conflicts", "restoredOn", "INTEGER"},
	{"tidemark_state", "snapshotSize", "INTEGER NOT NULL DEFAULT 0"}, // bytes, of the snapshot we know of
	{"tidemark_state", "forgottenOn", "INTEGER NOT NULL DEFAULT 0"},  // ms, when this device was forgotten; 0: it was not
	{"tidemark_DownloadedTracker", "completeTill", "INTEGER NOT NULL DEFAULT 0"},
	{"tidemark_tombstones", "above", "INTEGER NOT NULL DEFAULT 0"},
	{"tidemark_state", "snapshotEncrypted", "INTEGER"},      // whether it is; NULL: not known
	{"tidemark_state", "store", "TEXT NOT NULL DEFAULT ''"}, // that it is in; '': not known
	{"tidemark_state", "handling", "TEXT"},                  // the row that applying inserts or deletes at the moment, see handling
}

// createBookkeeping creates our tables where they are missing and the one row of
// tidemark_state. Idempotent.
func createBookkeeping(ctx context.Context, q queryer) error {
	for _, ddl := range bookkeeping {
		if _, err := q.ExecContext(ctx, ddl); err != nil {
			return fmt.Errorf("create the bookkeeping tables: %w", err)
		}
	}
	for _, c := range laterColumns {
		var there bool
		err := q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pragma_table_info(?) WHERE name = ?)`, c.table, c.name).Scan(&there)
		if err == nil && !there {
			_, err = q.ExecContext(ctx, "ALTER TABLE "+c.table+" ADD COLUMN "+c.name+" "+c.declaration)
		}
		if err != nil {
			return fmt.Errorf("create the bookkeeping tables: %w", err)
		}
	}
	if _, err := q.ExecContext(ctx, `INSERT OR IGNORE INTO tidemark_state (id, formatVersion) VALUES (1, ?)`, formatVersion); err != nil {
		return fmt.Errorf("create the bookkeeping tables: %w", err)
	}
	var v int
	if err := q.QueryRowContext(ctx, `SELECT formatVersion FROM tidemark_state`).Scan(&v); err != nil {
		return fmt.Errorf("read the bookkeeping version: %w", err)
	}
	if v > formatVersion {
		return fmt.Errorf("the database was used by a newer tidemark (bookkeeping version %d, this one knows %d): upgrade this program", v, formatVersion)
	}
	return nil
}
