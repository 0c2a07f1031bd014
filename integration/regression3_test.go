package integration

import (
	"database/sql/driver"
	"fmt"
	"strings"
	"testing"
	"time"

	"modernc.org/sqlite"

	tidemark "github.com/tidemark-sync/tidemark"
)

func init() {
	sqlite.MustRegisterDeterministicScalarFunction("ownfold", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		return strings.ToLower(fmt.Sprint(args[0])), nil
	})
}

// Triggers that count every update, ours too, are the most common of all: "modified at",
// an edit counter, an audit log. Syncing changes none of what they say, and everybody has
// the same.
func TestTriggersThatCountEveryUpdate(t *testing.T) {
	t.Parallel()
	f := newFleet(t, `CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT, modified TEXT, revisions INTEGER NOT NULL DEFAULT 0);
CREATE TABLE audit (id INTEGER PRIMARY KEY, note INTEGER, said TEXT);
CREATE TRIGGER touch AFTER UPDATE ON note BEGIN UPDATE note SET modified = strftime('%Y-%m-%d %H:%M:%f', 'now'), revisions = revisions + 1 WHERE id = NEW.id; END;
CREATE TRIGGER log AFTER UPDATE ON note BEGIN INSERT INTO audit (note, said) VALUES (NEW.id, OLD.body || ' -> ' || NEW.body); END`)
	a, b := f.device("a"), f.device("b")
	all := func(d *device) string {
		return d.value(`SELECT group_concat(id || ' ' || body || ' ' || coalesce(modified, '-') || ' ' || revisions, '; ') FROM (SELECT * FROM note ORDER BY body)`) +
			" | " + d.value(`SELECT count(*) FROM audit`)
	}
	for _, edit := range []string{
		`INSERT INTO note (body) VALUES ('a'), ('b')`,
		`UPDATE note SET body = 'A' WHERE body = 'a'`,
		`UPDATE note SET body = body || '!'`,
		`DELETE FROM note WHERE body = 'b!'`,
	} {
		a.exec(edit)
		said := all(a)
		rounds(3, a, b)
		if got := all(a); got != said {
			t.Errorf("after %q a sync changed %q to %q", edit, said, got)
		}
		same(t, a, b)
		if got := a.value(`SELECT schemaVersion = (SELECT schema_version FROM pragma_schema_version) FROM tidemark_state`); got != "1" {
			t.Error("the schema looks changed")
		}
	}
	b.exec(`UPDATE note SET body = 'from b'`)
	said := all(b)
	rounds(2, b, a)
	if got := all(b); got != said {
		t.Errorf("a sync changed %q to %q", said, got)
	}
	same(t, a, b)
	if r := a.sync(); !r.InStep {
		t.Errorf("still moving: %v", r.Tables)
	}
}

// What the application's schema calls comes with its driver, in a restore too.
func TestASchemaThatCallsTheApplicationsFunctions(t *testing.T) {
	t.Parallel()
	for name, ddl := range map[string]string{
		"index":     `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT); CREATE INDEX note_fold ON note (ownfold(title));`,
		"check":     `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT CHECK (ownfold(title) <> ''));`,
		"generated": `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, folded TEXT AS (ownfold(title)) STORED);`,
		"computed":  `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT, folded TEXT AS (ownfold(title)));`,
		"partial":   `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT); CREATE INDEX note_fold ON note (title) WHERE ownfold(title) <> '';`,
		"trigger":   `CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT); CREATE TABLE log (x); CREATE TRIGGER tidemark_like AFTER INSERT ON note BEGIN INSERT INTO log VALUES (ownfold(new.title)); END;`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t, ddl)
			a := f.device("a", tidemark.WithBackup(1, time.Hour, 3))
			a.exec(`INSERT INTO note (title) VALUES ('One'), ('Two')`)
			a.sync()
			b := f.restore("b")
			rounds(1, b, a)
			same(t, a, b)
		})
	}
}
