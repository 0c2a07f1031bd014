package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

// simVariant is a tidemark without one of its remedies: what the remedy is for must
// then happen, and be seen.
type simVariant struct {
	name   string
	from   uint64    // the first seed that shows what it is for
	focus  *simFocus // of the stories that can show it soon; nil: all
	remote func(w *simWorld, d *simDevice, r tidemark.Remote) tidemark.Remote
	opened func(db *sql.DB, s *simSchema) error
	before func(w *simWorld, d *simDevice) error // each cycle
	after  func(w *simWorld, d *simDevice) error
}

// simAltered changes what travels.
type simAltered struct {
	tidemark.Remote

	devices   func(since int64) int64
	list      func(list *messages.DeviceList)
	document  func(d *messages.Document) bool // false: it is not seen
	commit    func(ctx context.Context, c *messages.Commit)
	refused   func(ctx context.Context, c *messages.Commit) // and then tried once more
	documents func(page *messages.Page)
}

func (a *simAltered) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	if a.devices != nil {
		since = a.devices(since)
	}
	list, err := a.Remote.Devices(ctx, since)
	if a.list != nil {
		a.list(&list)
	}
	return list, err
}

func (a *simAltered) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	return a.Remote.Read(ctx, q, func(d messages.Document) error {
		if a.document != nil && !a.document(&d) {
			return nil
		}
		return yield(d)
	})
}

func (a *simAltered) Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	page, err := a.Remote.Documents(ctx, table, ids, readTime)
	if a.documents != nil && readTime != 0 {
		a.documents(&page)
	}
	return page, err
}

func (a *simAltered) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	c.Writes = slices.Clone(c.Writes)
	if a.commit != nil {
		a.commit(ctx, &c)
	}
	done, err := a.Remote.Commit(ctx, c)
	if errors.Is(err, messages.ErrConflict) && a.refused != nil {
		a.refused(ctx, &c)
		done, err = a.Remote.Commit(ctx, c)
	}
	return done, err
}

func altered(change func(w *simWorld, d *simDevice, a *simAltered)) func(*simWorld, *simDevice, tidemark.Remote) tidemark.Remote {
	return func(w *simWorld, d *simDevice, r tidemark.Remote) tidemark.Remote {
		a := &simAltered{Remote: r}
		change(w, d, a)
		return a
	}
}

// expectNow makes a commit demand what is there anyway.
func expectNow(ctx context.Context, d *simDevice, c *messages.Commit, which func(w *messages.Write) bool) {
	for i := range c.Writes {
		if w := &c.Writes[i]; which(w) {
			page, err := d.remote.Documents(ctx, w.Document.Table, []string{w.Document.ID}, 0)
			w.Expect = 0
			if err == nil && len(page.Documents) > 0 {
				w.Expect = page.Documents[0].UpdateTime
			}
		}
	}
}

// statements are run when a device's database is opened, once; %s is each table.
func statements(queries ...string) func(*sql.DB, *simSchema) error {
	return func(db *sql.DB, s *simSchema) error {
		for _, q := range queries {
			tables := []string{""}
			if strings.Contains(q, "%[1]s") {
				tables = tables[:0]
				for i := range s.tables {
					tables = append(tables, s.tables[i].name)
				}
			}
			for _, t := range tables {
				full := q
				if t != "" {
					full = fmt.Sprintf(q, t)
				}
				if _, err := db.ExecContext(context.Background(), full); err != nil && !strings.Contains(err.Error(), "no such table") {
					return err
				}
			}
		}
		return asAttached(db)
	}
}

// asAttached keeps tidemark from putting back what a variant has changed.
func asAttached(db *sql.DB) error {
	_, err := db.ExecContext(context.Background(), `UPDATE tidemark_state SET schemaVersion = (SELECT schema_version FROM pragma_schema_version)`)
	return err
}

// withoutTriggers drops tidemark's triggers of one kind.
func withoutTriggers(kinds ...string) func(*sql.DB, *simSchema) error {
	return func(db *sql.DB, _ *simSchema) error {
		for _, kind := range kinds {
			var list sql.NullString
			if err := db.QueryRowContext(context.Background(), `SELECT group_concat(name, ';') FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'tidemark\_%\_' || ? ESCAPE '\'`, kind).Scan(&list); err != nil {
				return err
			}
			for name := range strings.SplitSeq(list.String, ";") {
				if name == "" {
					continue
				}
				if _, err := db.ExecContext(context.Background(), `DROP TRIGGER "`+name+`"`); err != nil {
					return err
				}
			}
		}
		return asAttached(db)
	}
}

// withIdleTriggers leaves tidemark's triggers of some kinds there, where a cycle would make
// them anew, and takes from them what they do.
func withIdleTriggers(kinds ...string) func(*sql.DB, *simSchema) error {
	return func(db *sql.DB, _ *simSchema) error {
		for _, kind := range kinds {
			var idle sql.NullString
			if err := db.QueryRowContext(context.Background(), `SELECT group_concat('DROP TRIGGER "' || name || '"; CREATE TRIGGER "' || name || '" BEFORE DELETE ON "' || tbl_name || '" WHEN false BEGIN SELECT 1; END;', ' ')
				FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'tidemark\_%\_' || ? ESCAPE '\'`, kind).Scan(&idle); err != nil {
				return err
			}
			if _, err := db.ExecContext(context.Background(), idle.String); err != nil {
				return err
			}
		}
		return asAttached(db)
	}
}

// overtaken: what a cycle has learnt from the server is no longer true when it uploads.
var overtaken = []string{"another device syncs before"}

var simVariants = []simVariant{
	{from: 4, name: "no overlap of 300 s in the check (H1, H3)", focus: &simFocus{faults: []string{"it is backdated"}, weights: map[simKind]int{simEdit: 40, simSync: 60}}, remote: altered(func(_ *simWorld, _ *simDevice, a *simAltered) {
		a.devices = func(since int64) int64 {
			if since > 1 {
				since += 300_000
			}
			return since
		}
	})},
	{from: 8, name: "what was seen moves before the download has ended (H1)", after: func(_ *simWorld, d *simDevice) error {
		_, err := d.app.Exec(`INSERT INTO tidemark_seen SELECT device, seq FROM tidemark_targets WHERE true ON CONFLICT (device) DO UPDATE SET seq = max(tidemark_seen.seq, excluded.seq)`)
		return err
	}},
	{from: 1, name: "documents are found by updatedOn instead of by number (H2, H4)", remote: altered(func(_ *simWorld, d *simDevice, a *simAltered) {
		a.document = func(doc *messages.Document) bool {
			var till sql.NullInt64
			_ = d.app.QueryRow(`SELECT min(downloadedTill) FROM tidemark_DownloadedTracker`).Scan(&till)
			return doc.UpdatedOn > till.Int64/1000
		}
	})},
	{from: 11, name: "the document id is minted at upload (H5)", before: func(w *simWorld, d *simDevice) error {
		for i := range w.schema.tables {
			if t := &w.schema.tables[i]; !t.young || !d.old {
				for _, q := range []string{
					`UPDATE tidemark_state SET applying = 1`,
					`UPDATE ` + t.name + ` SET clientId = lower(hex(randomblob(16))) WHERE serverId IS NULL AND isDirty = 1`,
					`UPDATE tidemark_state SET applying = 0`,
				} {
					if _, err := d.app.Exec(q); err != nil && !strings.Contains(err.Error(), "no such column") { // of a table not yet attached
						return err
					}
				}
			}
		}
		return nil
	}},
	{from: 72, name: "a create does not demand that there is no document (H5)", focus: &simFocus{schemas: []string{"lists", "policies"}, faults: overtaken, weights: map[simKind]int{simEdit: 50, simSync: 25, simClone: 25}}, remote: altered(func(_ *simWorld, d *simDevice, a *simAltered) {
		a.commit = func(ctx context.Context, c *messages.Commit) {
			expectNow(ctx, d, c, func(w *messages.Write) bool { return w.Expect == 0 })
		}
	})},
	{from: 27, name: "isDirty is cleared although the row was edited meanwhile (H6)", opened: statements(
		`CREATE TRIGGER IF NOT EXISTS tidemark_variant_%[1]s AFTER UPDATE OF serverVersion ON %[1]s WHEN NEW.isDirty = 1 AND EXISTS (SELECT 1 FROM tidemark_tokens) AND (SELECT applying FROM tidemark_state) = 1
			BEGIN UPDATE %[1]s SET isDirty = 0 WHERE clientId = NEW.clientId; END`,
	)},
	{from: 9, name: "an update does not demand the version we last saw (H7)", focus: &simFocus{faults: overtaken, weights: map[simKind]int{simEdit: 50, simSync: 50}}, remote: altered(func(_ *simWorld, d *simDevice, a *simAltered) {
		a.commit = func(ctx context.Context, c *messages.Commit) {
			expectNow(ctx, d, c, func(w *messages.Write) bool { return w.Expect != 0 })
		}
	})},
	{from: 16, name: "our own record is not looked at", remote: altered(func(_ *simWorld, d *simDevice, a *simAltered) {
		a.list = func(list *messages.DeviceList) {
			var me string
			_ = d.app.QueryRow(`SELECT installationId FROM tidemark_state`).Scan(&me)
			list.Devices = slices.DeleteFunc(list.Devices, func(r messages.Device) bool { return r.ID == me })
		}
	})},
	{from: 61, name: "the record is written on top of anybody's (clones)", focus: &simFocus{faults: overtaken, weights: map[simKind]int{simEdit: 45, simSync: 45, simClone: 10}}, remote: altered(func(w *simWorld, _ *simDevice, a *simAltered) {
		a.commit = func(_ context.Context, c *messages.Commit) {
			for _, r := range w.server.DumpDevices() {
				if r.ID == c.Device.ID {
					c.Expect = r.UpdateTime
				}
			}
		}
	})},
	{from: 9, name: "deletes leave no tombstone on the server", remote: altered(func(_ *simWorld, _ *simDevice, a *simAltered) {
		a.commit = func(_ context.Context, c *messages.Commit) {
			for i := range c.Writes {
				c.Writes[i].Purge = c.Writes[i].Document.Deleted && c.Writes[i].Expect != 0
			}
		}
	})},
	{from: 72, name: "a deleted parent is not looked up for its child", focus: &simFocus{schemas: []string{"heads"}, weights: map[simKind]int{simEdit: 40, simSync: 30, simNew: 15, simVanish: 15}}, remote: altered(func(_ *simWorld, _ *simDevice, a *simAltered) {
		a.documents = func(page *messages.Page) { page.Documents = nil }
	})},
	{from: 3, name: "INSERT OR REPLACE is not watched", opened: withoutTriggers("bi", "born", "bu", "key")},
	{from: 1, name: "triggers of the application delete while documents are applied", focus: &simFocus{schemas: []string{"triggers"}}, opened: withIdleTriggers("hi", "hd", "hu")},
	{from: 3, name: "a child that waits for its parent is forgotten", opened: statements(
		`CREATE TRIGGER IF NOT EXISTS variant_inbox AFTER INSERT ON tidemark_inbox WHEN NEW.kind = 'waiting' BEGIN DELETE FROM tidemark_inbox WHERE documentId = NEW.documentId; END`,
	)},
	{from: 8, name: "losers are not kept", opened: statements(
		`CREATE TRIGGER IF NOT EXISTS variant_conflicts AFTER INSERT ON tidemark_conflicts BEGIN DELETE FROM tidemark_conflicts WHERE id = NEW.id; END`,
	)},
	{from: 13, name: "a cut of two moments is settled as if it were one", focus: &simFocus{schemas: []string{"lists", "circles", "triggers"}, faults: []string{"the process dies before", "the process dies after", "cancelled after"}, weights: map[simKind]int{simEdit: 35, simSync: 40, simNew: 8, simWait: 17}}, opened: statements(
		`CREATE TRIGGER IF NOT EXISTS tidemark_variant_cut AFTER UPDATE OF cutBroken, firstAt ON tidemark_state WHEN NEW.cutBroken = 1 BEGIN UPDATE tidemark_state SET cutBroken = 0, firstAt = checkedAt; END`,
	)},
	{from: 9, name: "a delete loses against any edit", remote: altered(func(_ *simWorld, _ *simDevice, a *simAltered) {
		a.document = func(d *messages.Document) bool { return !d.Deleted || d.Survivor != "" }
	})},
	{from: 2, name: "merge by field does not know what the row was before", focus: &simFocus{schemas: []string{"fields"}}, opened: statements(
		`CREATE TRIGGER IF NOT EXISTS tidemark_variant_bases AFTER INSERT ON tidemark_bases BEGIN DELETE FROM tidemark_bases WHERE tableName = NEW.tableName AND clientId = NEW.clientId; END`,
	)},
	{from: 91, name: "what a row was before is not forgotten when its edit is up", focus: &simFocus{schemas: []string{"fields"}}, opened: statements(
		`CREATE TRIGGER IF NOT EXISTS tidemark_variant_stale BEFORE DELETE ON tidemark_bases BEGIN SELECT RAISE(IGNORE); END`,
	)},
	{from: 2, name: "what became of both sides is not uploaded", focus: &simFocus{schemas: []string{"fields"}}, opened: statements(
		`CREATE TRIGGER IF NOT EXISTS tidemark_variant_%[1]s AFTER UPDATE OF serverVersion ON %[1]s WHEN OLD.isDirty = 1 AND NEW.isDirty = 1 AND OLD.serverVersion < NEW.serverVersion AND (SELECT applying FROM tidemark_state) = 1
			BEGIN UPDATE %[1]s SET isDirty = 0 WHERE clientId = NEW.clientId; END`,
	)},
	{from: 2, name: "the application is asked, and the later edit wins", focus: &simFocus{schemas: []string{"fields"}}, opened: statements(
		`CREATE TRIGGER IF NOT EXISTS tidemark_variant_last BEFORE INSERT ON tidemark_conflicts WHEN NEW.winner = 'merged' AND NEW.tableName = 'tally'
			BEGIN UPDATE tally SET (v, most, words) = (SELECT NEW.localVersion ->> '$.fields.v', NEW.localVersion ->> '$.fields.most', NEW.localVersion ->> '$.fields.words')
			WHERE clientId = NEW.documentId; END`,
	)},
}
