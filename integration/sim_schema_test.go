package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"

	tidemark "github.com/tidemark-sync/tidemark"
)

// simSchema is what the devices of one simulation hold. Every table has b, the birth
// mark of a row, which never changes, and v, which every edit sets to something new:
// by them the model knows a row without asking tidemark.
type simSchema struct {
	name   string
	ddl    string // without old, what a device that was not upgraded has
	old    string // "" when there is no older version
	update string // from old to ddl
	tables []simTable
	setup  []tidemark.Table
}

type simTable struct {
	name   string
	key    []string // the primary key; id is a surrogate
	unique string   // a column of few values, unique or the key
	values []string // what else an edit's value consists of
	// fields: an edit changes some columns of the value and leaves the others as they are.
	fields bool
	// counters are kept by the application's triggers, which fire on rows that
	// arrive too: the same everywhere, but not what any user wrote.
	counters []string
	refs     []simRef
	// merges: rows are merged by unique keys, or move when their parent is; policy:
	// somebody else than the last writer wins.
	merges, policy bool
	combine        tidemark.Policy // MergeByField or ByApplication; "" for any other
	extra          string          // a column that old devices do not have
	young          bool            // a table that old devices do not have
}

type simRef struct {
	columns  []string
	parent   string
	required bool
}

// simUsual are how many of simSchemas chance picks from first.
const simUsual = 6

var simSchemas = []simSchema{
	{
		name: "lists",
		ddl: `CREATE TABLE list (id INTEGER PRIMARY KEY, b TEXT, v TEXT, parent INTEGER REFERENCES list(id));
CREATE TABLE item (id INTEGER PRIMARY KEY, b TEXT, v TEXT, list INTEGER NOT NULL REFERENCES list(id) ON DELETE CASCADE, x TEXT);
CREATE TABLE note (id INTEGER PRIMARY KEY, b TEXT, v TEXT, item INTEGER REFERENCES item(id) ON DELETE SET NULL);`,
		old: `CREATE TABLE list (id INTEGER PRIMARY KEY, b TEXT, v TEXT, parent INTEGER REFERENCES list(id));
CREATE TABLE item (id INTEGER PRIMARY KEY, b TEXT, v TEXT, list INTEGER NOT NULL REFERENCES list(id) ON DELETE CASCADE);`,
		update: `ALTER TABLE item ADD COLUMN x TEXT;
CREATE TABLE note (id INTEGER PRIMARY KEY, b TEXT, v TEXT, item INTEGER REFERENCES item(id) ON DELETE SET NULL);`,
		tables: []simTable{
			{name: "list", key: []string{"id"}, refs: []simRef{{columns: []string{"parent"}, parent: "list"}}},
			{name: "item", key: []string{"id"}, extra: "x", refs: []simRef{{columns: []string{"list"}, parent: "list", required: true}}},
			{name: "note", key: []string{"id"}, young: true, refs: []simRef{{columns: []string{"item"}, parent: "item"}}},
		},
	},
	{
		name: "circles",
		ddl: `CREATE TABLE ping (id INTEGER PRIMARY KEY, b TEXT, v TEXT, other INTEGER REFERENCES pong(id));
CREATE TABLE pong (id INTEGER PRIMARY KEY, b TEXT, v TEXT, other INTEGER REFERENCES ping(id) ON DELETE SET NULL);
CREATE TABLE node (id INTEGER PRIMARY KEY, b TEXT, v TEXT, parent INTEGER REFERENCES node(id) ON DELETE CASCADE, pong INTEGER REFERENCES pong(id) ON DELETE CASCADE);`,
		tables: []simTable{
			{name: "ping", key: []string{"id"}, refs: []simRef{{columns: []string{"other"}, parent: "pong"}}},
			{name: "pong", key: []string{"id"}, refs: []simRef{{columns: []string{"other"}, parent: "ping"}}},
			{name: "node", key: []string{"id"}, refs: []simRef{{columns: []string{"parent"}, parent: "node"}, {columns: []string{"pong"}, parent: "pong"}}},
		},
	},
	{
		name: "tags",
		ddl: `CREATE TABLE item (id INTEGER PRIMARY KEY, b TEXT, v TEXT);
CREATE TABLE tag (id INTEGER PRIMARY KEY, b TEXT, v TEXT, name TEXT UNIQUE);
CREATE TABLE item_tag (item INTEGER REFERENCES item(id) ON DELETE CASCADE, tag INTEGER REFERENCES tag(id) ON DELETE CASCADE, b TEXT, v TEXT, PRIMARY KEY (item, tag));
CREATE TABLE label (name TEXT PRIMARY KEY, b TEXT, v TEXT) WITHOUT ROWID;
CREATE TABLE item_label (item INTEGER REFERENCES item(id) ON DELETE CASCADE, label TEXT REFERENCES label(name) ON UPDATE CASCADE ON DELETE CASCADE, b TEXT, v TEXT, PRIMARY KEY (item, label)) WITHOUT ROWID;`,
		tables: []simTable{
			{name: "item", key: []string{"id"}},
			{name: "tag", key: []string{"id"}, unique: "name", values: []string{"name"}, merges: true},
			{name: "item_tag", key: []string{"item", "tag"}, merges: true, refs: []simRef{
				{columns: []string{"item"}, parent: "item", required: true}, {columns: []string{"tag"}, parent: "tag", required: true},
			}},
			{name: "label", key: []string{"name"}, unique: "name", values: []string{"name"}, merges: true},
			{name: "item_label", key: []string{"item", "label"}, merges: true, refs: []simRef{
				{columns: []string{"item"}, parent: "item", required: true}, {columns: []string{"label"}, parent: "label", required: true},
			}},
		},
	},
	{
		name: "places",
		ddl: `CREATE TABLE country (code TEXT PRIMARY KEY, b TEXT, v TEXT);
CREATE TABLE city (country TEXT REFERENCES country(code) ON UPDATE CASCADE ON DELETE CASCADE, name TEXT, b TEXT, v TEXT, PRIMARY KEY (country, name));
CREATE TABLE street (id INTEGER PRIMARY KEY, b TEXT, v TEXT, country TEXT, city TEXT, FOREIGN KEY (country, city) REFERENCES city(country, name) ON UPDATE CASCADE ON DELETE SET NULL);`,
		tables: []simTable{
			{name: "country", key: []string{"code"}, unique: "code", values: []string{"code"}, merges: true},
			{name: "city", key: []string{"country", "name"}, unique: "name", values: []string{"name"}, merges: true, refs: []simRef{{columns: []string{"country"}, parent: "country", required: true}}},
			{name: "street", key: []string{"id"}, merges: true, refs: []simRef{{columns: []string{"country", "city"}, parent: "city"}}},
		},
	},
	{
		name: "triggers",
		ddl: `CREATE TABLE account (id INTEGER PRIMARY KEY, b TEXT, v TEXT, entries INTEGER NOT NULL DEFAULT 0, edits INTEGER NOT NULL DEFAULT 0);
CREATE TABLE entry (id INTEGER PRIMARY KEY, b TEXT, v TEXT, account INTEGER NOT NULL REFERENCES account(id) ON DELETE CASCADE);
CREATE TRIGGER counts AFTER INSERT ON entry BEGIN UPDATE account SET entries = entries + 1 WHERE id = NEW.account; END;
CREATE TRIGGER uncounts AFTER DELETE ON entry BEGIN UPDATE account SET entries = entries - 1 WHERE id = OLD.account; END;
CREATE TRIGGER edited AFTER UPDATE ON account BEGIN UPDATE account SET edits = edits + 1 WHERE id = NEW.id; END;
CREATE TABLE latest (name TEXT PRIMARY KEY, b TEXT, v TEXT);
CREATE TRIGGER latest AFTER INSERT ON entry BEGIN INSERT OR REPLACE INTO latest (name, b, v) VALUES ('name' || length(NEW.b), NEW.b || NEW.v, NEW.v); END;
CREATE TRIGGER few AFTER INSERT ON account BEGIN DELETE FROM account WHERE id IN (SELECT id FROM account ORDER BY b DESC LIMIT -1 OFFSET 5); END;`,
		tables: []simTable{
			{name: "account", key: []string{"id"}, counters: []string{"entries", "edits"}},
			{name: "entry", key: []string{"id"}, refs: []simRef{{columns: []string{"account"}, parent: "account", required: true}}},
			{name: "latest", key: []string{"name"}, unique: "name", values: []string{"name"}, merges: true},
		},
	},
	{
		name: "policies",
		ddl: `CREATE TABLE rate (id INTEGER PRIMARY KEY, b TEXT, v TEXT);
CREATE TABLE draft (id INTEGER PRIMARY KEY, b TEXT, v TEXT, rate INTEGER REFERENCES rate(id));
CREATE TABLE memo (id INTEGER PRIMARY KEY, b TEXT, v TEXT, draft INTEGER REFERENCES draft(id) ON DELETE CASCADE);`,
		tables: []simTable{
			{name: "rate", key: []string{"id"}, policy: true},
			{name: "draft", key: []string{"id"}, policy: true, refs: []simRef{{columns: []string{"rate"}, parent: "rate"}}},
			{name: "memo", key: []string{"id"}, refs: []simRef{{columns: []string{"draft"}, parent: "draft"}}},
		},
		setup: []tidemark.Table{{Name: "rate", Policy: tidemark.ServerWins}, {Name: "draft", Policy: tidemark.ClientWins}},
	},
	simFields,
	{ // rows that refer to each other in a circle, with unique keys
		name: "heads",
		ddl: `CREATE TABLE dept (id INTEGER PRIMARY KEY, b TEXT, v TEXT, name TEXT UNIQUE, head INTEGER REFERENCES emp(id) ON DELETE SET NULL);
CREATE TABLE emp (id INTEGER PRIMARY KEY, b TEXT, v TEXT, name TEXT UNIQUE, dept INTEGER REFERENCES dept(id) ON DELETE CASCADE, boss INTEGER REFERENCES emp(id) ON DELETE SET NULL);
CREATE TABLE task (id INTEGER PRIMARY KEY, b TEXT, v TEXT, emp INTEGER REFERENCES emp(id) ON DELETE CASCADE);`,
		tables: []simTable{
			{name: "dept", key: []string{"id"}, unique: "name", values: []string{"name"}, merges: true, refs: []simRef{{columns: []string{"head"}, parent: "emp"}}},
			{name: "emp", key: []string{"id"}, unique: "name", values: []string{"name"}, merges: true, refs: []simRef{{columns: []string{"dept"}, parent: "dept"}, {columns: []string{"boss"}, parent: "emp"}}},
			{name: "task", key: []string{"id"}, merges: true, refs: []simRef{{columns: []string{"emp"}, parent: "emp"}}},
		},
	},
}

func (s *simSchema) table(name string) *simTable {
	for i := range s.tables {
		if s.tables[i].name == name {
			return &s.tables[i]
		}
	}
	return nil
}

func (t *simTable) surrogate() bool { return t.key[0] == "id" }

// domain is how many values a unique column has: few, so that devices meet.
const simDomain = 6

// simWriter makes the statements of users.
type simWriter struct {
	schema *simSchema
	rnd    *rand.Rand
	next   func() int // numbers what is written
	old    bool       // the device was not upgraded
}

// nth is a column of the row that chance picks of a table.
func (w *simWriter) nth(column string, t *simTable, n int) string {
	return fmt.Sprintf("(SELECT %s FROM %s ORDER BY b LIMIT 1 OFFSET %d %% max(1, (SELECT count(*) FROM %s)))", column, t.name, n, t.name)
}

// statements are one transaction of a user.
func (w *simWriter) statements() []string {
	var out []string
	for range 1 + w.rnd.IntN(3)*w.rnd.IntN(2) {
		out = append(out, w.statement()...)
	}
	return out
}

func (w *simWriter) pick() *simTable {
	for {
		if t := &w.schema.tables[w.rnd.IntN(len(w.schema.tables))]; !t.young || !w.old {
			return t
		}
	}
}

func (w *simWriter) statement() []string {
	t := w.pick()
	if t.fields && w.rnd.IntN(2) == 0 { // devices meet in few rows
		return []string{w.update(t, fmt.Sprintf("b IN (SELECT b FROM %s ORDER BY b LIMIT 1 OFFSET %d)", t.name, w.rnd.IntN(3)))}
	}
	row := "b = " + w.nth("b", t, w.rnd.IntN(1000))
	switch k := w.rnd.IntN(20); {
	case k < 7:
		return w.insert(t, "INSERT OR IGNORE", 1)
	case k < 8: // in bulk, all within one millisecond
		return w.insert(t, "INSERT OR IGNORE", 2+w.rnd.IntN(6))
	case k < 9:
		return w.insert(t, "INSERT OR REPLACE", 1)
	case k < 13:
		return []string{w.update(t, row)}
	case k < 14:
		return []string{w.update(t, fmt.Sprintf("length(v) %% 2 = %d", w.rnd.IntN(2)))}
	case k < 16:
		return w.move(t, row)
	case k < 17: // the favourite idiom on phones
		return []string{w.replace(t, row)}
	case k < 18 && t.unique != "": // two rows swap their values, or one takes another's place
		return w.swap(t)
	case k < 19:
		return []string{"DELETE FROM " + t.name + " WHERE " + row}
	default:
		return []string{fmt.Sprintf("DELETE FROM %s WHERE length(b) %% 3 = %d", t.name, w.rnd.IntN(3))}
	}
}

// uniqueValue is one of the few values of a unique column.
func (w *simWriter) uniqueValue() string { return fmt.Sprintf("'name%d'", w.rnd.IntN(simDomain)) }

// columns and what to put there, for a new row or a moved one.
func (w *simWriter) places(t *simTable) (columns, exprs, conditions []string) {
	done := map[string]bool{}
	for _, r := range t.refs {
		p := w.schema.table(r.parent)
		n := w.rnd.IntN(1000)
		null := !r.required && w.rnd.IntN(3) == 0
		for i, c := range r.columns {
			expr := w.nth(p.key[i], p, n)
			if r.required {
				conditions = append(conditions, expr+" IS NOT NULL")
			}
			if null {
				expr = "NULL"
			}
			columns, exprs = append(columns, c), append(exprs, expr)
			done[c] = true
		}
	}
	if t.unique != "" && !done[t.unique] {
		columns, exprs = append(columns, t.unique), append(exprs, w.uniqueValue())
	}
	return columns, exprs, conditions
}

func (w *simWriter) insert(t *simTable, verb string, rows int) []string {
	columns, exprs, conditions := w.places(t)
	n := w.next()
	if t.fields {
		for _, c := range t.values {
			columns, exprs = append(columns, c), append(exprs, t.entry(c, n))
		}
	}
	columns = append(columns, "b", "v")
	exprs = append(exprs, fmt.Sprintf("'b%d.' || i", n), fmt.Sprintf("'v%d'", n))
	if t.extra != "" && !w.old {
		columns, exprs = append(columns, t.extra), append(exprs, fmt.Sprintf("'v%d'", n))
	}
	if rows > 1 && t.unique != "" {
		for i, c := range columns {
			if c == t.unique {
				exprs[i] = "'name' || (i % " + fmt.Sprint(simDomain) + ")" //nolint:perfsprint // it reads as the others
			}
		}
	}
	if verb == "INSERT OR REPLACE" && t.surrogate() && w.rnd.IntN(2) == 0 {
		columns, exprs = append(columns, "id"), append(exprs, w.nth("id", t, w.rnd.IntN(1000)))
	}
	where := ""
	if len(conditions) > 0 {
		where = " WHERE " + strings.Join(conditions, " AND ")
	}
	return []string{fmt.Sprintf("%s INTO %s (%s) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) SELECT %s FROM n%s",
		verb, t.name, strings.Join(columns, ", "), rows, strings.Join(exprs, ", "), where)}
}

// set is what every edit sets.
func (w *simWriter) set(t *simTable) string {
	n := w.next()
	if t.fields {
		return w.setSome(t, n)
	}
	if t.extra != "" && !w.old {
		return fmt.Sprintf("v = 'v%d', %s = 'v%d'", n, t.extra, n)
	}
	return fmt.Sprint("v = 'v", n, "'")
}

func (w *simWriter) update(t *simTable, where string) string {
	return fmt.Sprintf("UPDATE %s SET %s WHERE %s", t.name, w.set(t), where)
}

// move gives a row another parent or another unique value.
func (w *simWriter) move(t *simTable, where string) []string {
	columns, exprs, conditions := w.places(t)
	if len(columns) == 0 {
		return []string{w.update(t, where)}
	}
	sets := []string{w.set(t)}
	for i, c := range columns {
		sets = append(sets, c+" = "+exprs[i])
	}
	verb := "UPDATE OR IGNORE "
	if w.rnd.IntN(4) == 0 {
		verb = "UPDATE OR REPLACE "
	}
	return []string{verb + t.name + " SET " + strings.Join(sets, ", ") + " WHERE " + strings.Join(append(conditions, where), " AND ")}
}

// replace writes a row back whole, under its own key.
func (w *simWriter) replace(t *simTable, where string) string {
	columns := append([]string{}, t.key...)
	for _, r := range t.refs {
		for _, c := range r.columns {
			if !strings.Contains(" "+strings.Join(columns, " ")+" ", " "+c+" ") {
				columns = append(columns, c)
			}
		}
	}
	for _, c := range append(append([]string{}, t.values...), "b") {
		if !strings.Contains(" "+strings.Join(columns, " ")+" ", " "+c+" ") {
			columns = append(columns, c)
		}
	}
	n := w.next()
	values := strings.Join(columns, ", ") + fmt.Sprintf(", 'v%d'", n)
	columns = append(columns, "v")
	if t.extra != "" && !w.old {
		columns, values = append(columns, t.extra), values+fmt.Sprintf(", 'v%d'", n)
	}
	return fmt.Sprintf("INSERT OR REPLACE INTO %s (%s) SELECT %s FROM %s WHERE %s", t.name, strings.Join(columns, ", "), values, t.name, where)
}

func (w *simWriter) swap(t *simTable) []string {
	a, b := w.uniqueValue(), w.uniqueValue()
	u := t.unique
	return []string{
		fmt.Sprintf("UPDATE OR IGNORE %s SET %s, %s = 'between' WHERE %s = %s", t.name, w.set(t), u, u, a),
		fmt.Sprintf("UPDATE OR IGNORE %s SET %s, %s = %s WHERE %s = %s", t.name, w.set(t), u, a, u, b),
		fmt.Sprintf("UPDATE OR IGNORE %s SET %s, %s = %s WHERE %s = 'between'", t.name, w.set(t), u, b, u),
	}
}
