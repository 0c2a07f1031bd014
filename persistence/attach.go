package persistence

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/uptrace/bun"
)

// trackedColumn is one of the columns that Attach adds to a table.
type trackedColumn struct {
	name, declaration string
	affinities        []Affinity // what an application's own column of the name may have
}

var trackedColumns = []trackedColumn{
	{"createdOn", "INTEGER", []Affinity{AffinityInteger}},
	{"updatedOn", "INTEGER", []Affinity{AffinityInteger}},
	{"updatedBy", "TEXT", []Affinity{AffinityText}},
	{"serverId", "TEXT", []Affinity{AffinityText}},
	{"isDirty", "INTEGER NOT NULL DEFAULT 1", []Affinity{AffinityInteger, AffinityNumeric}}, // BOOLEAN is numeric
	{"clientId", "TEXT", []Affinity{AffinityText}},
	{"serverVersion", "INTEGER", []Affinity{AffinityInteger}},
}

func isTracked(name string) bool {
	return slices.ContainsFunc(trackedColumns, func(c trackedColumn) bool { return fold(c.name) == fold(name) })
}

// localOnly are tables of frameworks that describe this file and not the user's
// data: a migration that another device made must not look done here. They are
// attached only when AttachOptions name them.
var localOnly = []string{
	"android_metadata", "room_master_table", "__EFMigrationsHistory", "_litestream_lock", "_litestream_seq", "alembic_version",
	"bun_migration_locks", "bun_migrations", "django_migrations", "flyway_schema_history", "goose_db_version", "gorp_migrations",
	"knex_migrations", "knex_migrations_lock", "schema_migrations",
}

// AttachOptions choose what Attach takes.
type AttachOptions struct {
	// Exclude names tables that stay out; a later Attach remembers it.
	Exclude []string
	// Only, when it is not empty, names the tables to take; all others are
	// excluded. A table that was excluded comes back by being named here.
	Only []string
	// Include names tables that were excluded and come back; all others stay as they are.
	Include []string
	// Options are the owner's choices for tables, by name; a table that is not named
	// keeps those it has.
	Options map[string]TableOptions
	// InstallationID mints the id of a file that has none; nil is a random one.
	InstallationID func() string
}

// Attached tells what Attach found and did.
type Attached struct {
	// Tables are the attached tables, parents first.
	Tables []string
	// New were not attached before, Rebuilt had been and had lost their tracked
	// columns or triggers, Gained have new data columns; Vanished are gone.
	New, Rebuilt, Gained, Vanished []string
	// Excluded are the application's other tables.
	Excluded []string
	// Rows is how many rows were marked dirty.
	Rows int64
	// WAL: the file had no write-ahead log, and has one from now on.
	WAL bool
	// Dangling are references to rows that do not exist.
	Dangling []Dangling
	// Warnings are sentences for the owner.
	Warnings []string
}

// Dangling counts the rows of a table whose foreign key refers to nothing.
type Dangling struct {
	Table, Parent string
	Columns       []string
	Rows          int64
	First         string // the primary key or rowid of one of them, as SQL literals
}

// Attach prepares the application's tables for sync: it adds the tracked columns,
// fills them, and installs triggers, so that whatever any program writes from now
// on is tracked. All existing rows become dirty. It is idempotent, and is to be
// called again after the application migrated its schema. Either everything is done
// or nothing; what the application declared or wrote is not changed. The file gets a
// write-ahead log (journal mode WAL), so that nobody waits for a reader.
//
// An application's own columns that are called like tracked ones are taken over
// when their type fits and they hold nothing that would be lost.
func Attach(ctx context.Context, db *bun.DB, opts AttachOptions) (Attached, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return Attached{}, fmt.Errorf("attach: get a database connection: %w", err)
	}
	restore, err := prepareConn(ctx, conn.Conn)
	defer func() {
		restore()
		_ = conn.Close()
	}()
	if err != nil {
		return Attached{}, fmt.Errorf("attach: %w", err)
	}
	a := &attacher{ctx: ctx, q: conn.Conn, opts: opts}
	if err := a.inTransaction(a.run); err != nil {
		return Attached{}, fmt.Errorf("attach: %w", explain(err))
	}
	a.useWAL() // what is refused stays as it was
	if err := a.findDangling(); err != nil {
		return a.out, fmt.Errorf("attach: look for dangling references: %w", explain(err))
	}
	return a.out, nil
}

// attacher is one run of Attach.
type attacher struct {
	ctx  context.Context //nolint:containedctx // it lives inside one call
	q    *sql.Conn
	opts AttachOptions
	out  Attached

	schema   *Schema
	stored   map[string]storedTable
	objects  map[string][]masterObject // triggers and indexes by folded table, in the order of their creation
	excluded []string
	options  map[string]TableOptions
	// hadTriggers are the tables that came with triggers of ours, moved those whose
	// triggers were made for another name.
	hadTriggers, moved map[string]bool
}

// storedTable is a row of tidemark_tables.
type storedTable struct {
	columns  []string
	excluded bool
}

// masterObject is a trigger or an index as the database has it.
type masterObject struct {
	schemaObject
	table, kind string
	ours        bool
}

func (a *attacher) exec(query string, args ...any) (int64, error) {
	res, err := a.q.ExecContext(a.ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (a *attacher) all(queries ...string) error {
	for _, q := range queries {
		if _, err := a.exec(q); err != nil {
			return err
		}
	}
	return nil
}

func (a *attacher) exists(query string, args ...any) (bool, error) {
	var yes bool
	err := a.q.QueryRowContext(a.ctx, "SELECT EXISTS ("+query+")", args...).Scan(&yes)
	return yes, err
}

func (a *attacher) warn(format string, args ...any) {
	a.out.Warnings = append(a.out.Warnings, fmt.Sprintf(format, args...))
}

// useWAL lets readers and the writer work side by side. The mode is a property of
// the file; it cannot change inside a transaction.
func (a *attacher) useWAL() {
	var was, mode string
	err := a.q.QueryRowContext(a.ctx, "PRAGMA journal_mode").Scan(&was)
	if mode = was; err == nil && mode != "wal" && mode != "memory" {
		err = a.q.QueryRowContext(a.ctx, "PRAGMA journal_mode = WAL").Scan(&mode)
	}
	switch {
	case err != nil:
		a.warn("the database stays without a write-ahead log, so reads wait for writes: %v", explain(err))
	case mode != "wal" && mode != "memory":
		a.warn("the database stays in journal mode %q, so reads wait for writes", mode)
	default:
		a.out.WAL = mode != was
	}
}

func (a *attacher) inTransaction(fn func() error) error {
	if _, err := a.exec("BEGIN IMMEDIATE"); err != nil {
		_, _ = a.q.ExecContext(context.WithoutCancel(a.ctx), "ROLLBACK") // it may have begun all the same
		return err
	}
	err := fn()
	if err == nil {
		err = a.ctx.Err()
	}
	if err == nil {
		_, err = a.q.ExecContext(context.WithoutCancel(a.ctx), "COMMIT")
	}
	if err != nil {
		_, _ = a.q.ExecContext(context.WithoutCancel(a.ctx), "ROLLBACK") // fails when SQLite rolled back already
	}
	return err
}

func (a *attacher) run() error {
	if err := createBookkeeping(a.ctx, a.q); err != nil {
		return err
	}
	mint := a.opts.InstallationID
	if mint == nil {
		mint = newID
	}
	if _, err := a.exec(`UPDATE tidemark_state SET installationId = ? WHERE installationId = ''`, mint()); err != nil {
		return err
	}
	if err := a.read(); err != nil {
		return err
	}
	if err := a.choose(); err != nil {
		return err
	}
	if err := a.chooseOptions(); err != nil {
		return err
	}
	for _, t := range a.schema.Tables {
		if err := a.check(t); err != nil {
			return err
		}
	}
	if err := a.all(`UPDATE tidemark_state SET applying = 1`); err != nil {
		return err
	}
	for _, t := range a.schema.Tables {
		if err := a.renamed(t); err != nil {
			return err
		}
	}
	if err := a.forget(); err != nil {
		return err
	}
	for _, t := range a.schema.Tables { // all before any is made: a renamed table still has the names that another needs
		if err := a.dropObjects(t.Name, append(t.indexes(), t.triggers(a.watch(t))...)); err != nil {
			return fmt.Errorf("table %q: %w", t.Name, err)
		}
	}
	for _, t := range a.schema.Tables {
		if err := a.attach(t); err != nil {
			return fmt.Errorf("table %q: %w", t.Name, err)
		}
		a.out.Tables = append(a.out.Tables, t.Name)
	}
	if err := a.adoptChildren(); err != nil {
		return err
	}
	if err := a.storeOptions(); err != nil {
		return err
	}
	var version int64
	if err := a.q.QueryRowContext(a.ctx, "PRAGMA schema_version").Scan(&version); err != nil {
		return err
	}
	_, err := a.exec(`UPDATE tidemark_state SET applying = 0, schemaVersion = ?`, version)
	return err
}

// read collects what is there.
func (a *attacher) read() (err error) {
	if a.schema, err = Reflect(a.ctx, a.q); err != nil {
		return err
	}
	a.stored = map[string]storedTable{}
	err = eachRow(a.ctx, a.q, `SELECT tableName, columns, excluded FROM tidemark_tables`, func(scan func(...any) error) error {
		var name, columns string
		var t storedTable
		if err := scan(&name, &columns, &t.excluded); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(columns), &t.columns); err != nil {
			return fmt.Errorf("the columns of table %q in tidemark_tables are damaged: %w", name, err)
		}
		a.stored[name] = t
		return nil
	})
	if err != nil {
		return err
	}
	a.objects, a.hadTriggers, a.moved = map[string][]masterObject{}, map[string]bool{}, map[string]bool{}
	return eachRow(a.ctx, a.q, `SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master WHERE type IN ('trigger', 'index') ORDER BY rowid`,
		func(scan func(...any) error) error {
			var o masterObject
			if err := scan(&o.kind, &o.name, &o.table, &o.sql); err != nil {
				return err
			}
			o.ours = strings.HasPrefix(o.name, Prefix)
			a.objects[fold(o.table)] = append(a.objects[fold(o.table)], o)
			if o.ours && o.kind == "trigger" {
				a.hadTriggers[o.table] = true
				a.moved[o.table] = a.moved[o.table] || !strings.HasPrefix(o.name, objectName(o.table, ""))
			}
			return nil
		})
}

// choose decides which tables take part and reduces the schema to them.
func (a *attacher) choose() error {
	want, without, back := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, n := range a.opts.Only {
		if a.schema.Table(n) == nil {
			return fmt.Errorf("there is no table %q to take: check the name", n)
		}
		want[fold(n)] = true
	}
	for _, n := range a.opts.Include {
		if a.schema.Table(n) == nil {
			return fmt.Errorf("there is no table %q to include: check the name", n)
		}
		back[fold(n)] = true
	}
	for _, n := range a.opts.Exclude {
		_, known := a.stored[n]
		if a.schema.Table(n) == nil && !known {
			return fmt.Errorf("there is no table %q to exclude: check the name", n)
		}
		if want[fold(n)] || back[fold(n)] {
			return fmt.Errorf("table %q is both to be taken and to be excluded: choose one", n)
		}
		without[fold(n)] = true
	}
	for _, t := range a.schema.Tables {
		n := fold(t.Name)
		s, known := a.stored[t.Name]
		frameworks := len(want) == 0 && !back[n] && (!known || s.excluded) && slices.ContainsFunc(localOnly, func(l string) bool { return fold(l) == n })
		if frameworks && !known {
			a.warn("table %q describes this file and is left out", t.Name)
		}
		if without[n] || frameworks || !want[n] && !back[n] && (len(want) > 0 || s.excluded) {
			a.excluded = append(a.excluded, t.Name)
		}
	}
	a.schema.keep(func(t *Table) bool { return !slices.Contains(a.excluded, t.Name) })
	a.schema.arrange()
	a.out.Excluded = a.excluded
	a.out.Warnings = append(a.out.Warnings, a.schema.Warnings...)
	return nil
}

// ours reports whether the tracked columns of a table are of our making.
func (a *attacher) ours(t *Table) bool {
	_, stored := a.stored[t.Name]
	return stored || slices.ContainsFunc(a.objects[fold(t.Name)], func(o masterObject) bool { return o.ours })
}

// ourID selects what only we would write into clientId.
const ourID = `length(clientId) = 32 AND clientId NOT GLOB '*[^0-9a-f]*'`

// check refuses a table that cannot be attached, before anything is changed.
func (a *attacher) check(t *Table) error {
	const leave = "rename it, or exclude the table"
	if n := fold(t.Name); n == "new" || n == "old" {
		return fmt.Errorf("table %q is called like the rows that a trigger sees: %s", t.Name, leave)
	}
	if t.key()[0] == "" {
		return fmt.Errorf("table %q has no primary key and its columns hide the rowid: give it a primary key, or exclude it", t.Name)
	}
	for _, k := range t.uniqueKeys() {
		for _, term := range k.terms {
			if isTracked(term.column) {
				return fmt.Errorf("table %q: column %q has a name that tidemark needs, but is part of a key: %s", t.Name, term.column, leave)
			}
		}
	}
	for _, c := range trackedColumns {
		own, ok := t.tracked[fold(c.name)]
		if !ok {
			continue
		}
		if !slices.Contains(c.affinities, own.Affinity) {
			return fmt.Errorf("table %q: column %q has a name that tidemark needs, but the type %q: %s", t.Name, own.Name, own.Type, leave)
		}
		if a.ours(t) {
			continue
		}
		foreign := "typeof(" + quote(own.Name) + ") NOT IN ('integer', 'null')"
		if own.Affinity == AffinityText || c.name == "serverVersion" {
			foreign = quote(own.Name) + " IS NOT NULL"
			if t.tracked["clientid"].Name != "" {
				foreign += " AND (" + ourID + ") IS NOT 1" // or it is a copy of an attached table
			}
		}
		bad, err := a.exists("SELECT 1 FROM " + quote(t.Name) + " WHERE " + foreign)
		if err != nil {
			return fmt.Errorf("table %q: %w", t.Name, err)
		}
		if bad {
			return fmt.Errorf("table %q: column %q has a name that tidemark needs, but holds values of the application that would be lost: %s", t.Name, own.Name, leave)
		}
		what := ""
		if c.name == "createdOn" || c.name == "updatedOn" {
			what = " (a time in Unix milliseconds)"
		}
		a.warn("table %q: the application's column %q is kept by tidemark from now on%s", t.Name, own.Name, what)
	}
	return nil
}

// forget removes what we had on tables that are gone or excluded.
func (a *attacher) forget() error {
	for _, n := range a.excluded {
		if err := a.dropObjects(n, nil); err != nil {
			return err
		}
		if s, ok := a.stored[n]; ok && s.excluded {
			continue
		}
		if _, err := a.exec(`INSERT INTO tidemark_tables (tableName, columns, excluded) VALUES (?, '[]', 1)
			ON CONFLICT (tableName) DO UPDATE SET excluded = 1`, n); err != nil {
			return err
		}
	}
	for n, s := range a.stored {
		if t := a.schema.Table(n); t != nil && t.Name == n || s.excluded || slices.Contains(a.excluded, n) {
			continue
		}
		a.out.Vanished = append(a.out.Vanished, n)
		if _, err := a.exec(`DELETE FROM tidemark_tables WHERE tableName = ?`, n); err != nil {
			return err
		}
	}
	slices.Sort(a.out.Vanished)
	const gone = ` WHERE tableName NOT IN (SELECT tableName FROM tidemark_tables WHERE excluded = 0)`
	return a.all(`DELETE FROM tidemark_DownloadedTracker`+gone, `DELETE FROM tidemark_positions`+gone, `DELETE FROM tidemark_left`+gone)
}

// attach brings one table into the state that the triggers need.
func (a *attacher) attach(t *Table) error {
	stored, known := a.stored[t.Name]
	known = known && !a.moved[t.Name]
	fresh := !known || stored.excluded
	rebuilt, err := a.prepareColumns(t, known, fresh)
	if err != nil {
		return err
	}
	var gained []string
	if known && len(stored.columns) > 0 { // of what was never taken, nobody has a version
		last := -1
		for _, c := range t.Columns { // ADD COLUMN appends: one that is not in its place has gone and come back
			at := slices.Index(stored.columns, c.Name)
			if at < 0 || at < last && !rebuilt {
				gained = append(gained, c.Name)
			}
			last = max(last, at)
		}
	}
	if err := a.mark(t, known && (stored.excluded || rebuilt), stored.excluded, gained); err != nil {
		return err
	}
	if err := a.install(t); err != nil {
		return err
	}
	switch {
	case fresh:
		a.out.New = append(a.out.New, t.Name)
	case rebuilt:
		a.out.Rebuilt = append(a.out.Rebuilt, t.Name)
	case len(gained) > 0:
		a.out.Gained = append(a.out.Gained, t.Name)
	}
	return a.remember(t, fresh || rebuilt, rebuilt, gained)
}

// prepareColumns adds the tracked columns that are missing. A table that is new to
// us but already carries identities (it was renamed, or is a copy of another) gets
// new ones: its documents belong to a collection of its own.
func (a *attacher) prepareColumns(t *Table, known, fresh bool) (rebuilt bool, err error) {
	hadClientID := t.tracked["clientid"].Name != ""
	for _, c := range trackedColumns {
		if _, ok := t.tracked[fold(c.name)]; ok {
			continue
		}
		rebuilt = known && len(a.stored[t.Name].columns) > 0 // also while it was excluded
		if _, err := a.exec("ALTER TABLE " + quote(t.Name) + " ADD COLUMN " + quote(c.name) + " " + c.declaration); err != nil {
			return false, err
		}
		t.tracked[fold(c.name)] = Column{Name: c.name}
		t.every = append(t.every, c.name)
	}
	if !fresh && !a.hadTriggers[t.Name] {
		rebuilt = true
	}
	switch forget := "UPDATE " + quote(t.Name) + " SET clientId = NULL WHERE "; {
	case !hadClientID:
	case !known: // it was renamed: elsewhere, too, and there the row is the same one
		err = a.suspended(t, func() error {
			return a.all(forget+"("+ourID+") IS NOT 1", forget+t.copies(),
				"UPDATE "+quote(t.Name)+" SET serverId = NULL, serverVersion = NULL, isDirty = 1 WHERE clientId IS NOT NULL")
		})
	case fresh || rebuilt: // it was copied together with the row, unseen by our triggers
		err = a.suspended(t, func() error { return a.all(forget + t.copies()) })
	}
	return rebuilt, err
}

// remember records what the next Attach and the engine go by. whole asks for the
// table to be read whole again before anything is uploaded from it.
func (a *attacher) remember(t *Table, whole, rebuilt bool, gained []string) error {
	names := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		names[i] = c.Name
	}
	columns, err := json.Marshal(names)
	if err != nil {
		return err
	}
	if s, ok := a.stored[t.Name]; !ok || s.excluded || !slices.Equal(s.columns, names) {
		if _, err := a.exec(`INSERT INTO tidemark_tables (tableName, columns) VALUES (?, ?)
			ON CONFLICT (tableName) DO UPDATE SET columns = excluded.columns, excluded = 0`, t.Name, string(columns)); err != nil {
			return err
		}
	}
	if !whole && len(gained) == 0 {
		_, err := a.exec(`INSERT INTO tidemark_DownloadedTracker (tableName, downloadedTill) VALUES (?, NULL) ON CONFLICT DO NOTHING`, t.Name)
		return err
	}
	// What a download that was cut off had not begun to read here, nobody has copied.
	began, err := a.exists(`SELECT 1 FROM tidemark_positions WHERE tableName = ? UNION ALL SELECT 1 FROM tidemark_DownloadedTracker WHERE tableName = ? AND scannedTo <> ''`, t.Name, t.Name)
	if err != nil {
		return err
	}
	if whole {
		if _, err := a.exec(`DELETE FROM tidemark_positions WHERE tableName = ?`, t.Name); err != nil {
			return err
		}
	}
	// What it gained before the last read of the whole table ended is still to be filled.
	var pending sql.NullString
	err = a.q.QueryRowContext(a.ctx, `SELECT CASE WHEN downloadedTill IS NULL THEN gained END FROM tidemark_DownloadedTracker WHERE tableName = ?`, t.Name).Scan(&pending)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	before := []string{} // none is [], not null
	if pending.Valid {
		if err := json.Unmarshal([]byte(pending.String), &before); err != nil {
			return err
		}
	}
	list, err := json.Marshal(append(before, gained...))
	if err != nil {
		return err
	}
	_, err = a.exec(`INSERT INTO tidemark_DownloadedTracker (tableName, downloadedTill, rebuilt, gained) VALUES (?, NULL, ?, ?)
		ON CONFLICT (tableName) DO UPDATE SET downloadedTill = NULL, scannedTo = '', gained = excluded.gained,
		rebuilt = max(rebuilt, excluded.rebuilt), completeTill = max(coalesce(downloadedTill, completeTill), (SELECT checkedAt * ? FROM tidemark_state))`, t.Name, rebuilt, string(list), began)
	return err
}
