package persistence

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What a trigger may do, and what it must not:
//
//   - It names no table but its own and ours. One that names another table of the
//     application breaks every ALTER TABLE RENAME while that table is away, and with
//     it the usual way to rebuild a table.
//   - It names no column but the tracked ones, those of keys and those that refer to
//     other tables: a column that a trigger names cannot be dropped. One of a key that is
//     no more can, once Attach has come by; one that refers goes by rebuilding the table.
//     (Where the owner wants rows merged by field, one trigger has to name them all.)
//   - It relies neither on the order of triggers, which is undefined, nor on
//     OR IGNORE and the like in its own statements: the outer statement's wins.
//   - It runs on the SQLite of old phones: 3.24.

// now is the server's time in ms, for a SELECT from tidemark_state. SQLite keeps
// 'now' the same throughout a statement.
const now = localClock + ` + clockOffset`

// writing in updatedBy says that the insert trigger is in the middle of changing
// the row: the others leave it alone.
const writing = `'tidemark:writing'`

const (
	notApplying = `(SELECT applying FROM tidemark_state) = 0`
	notWriting  = `NEW.updatedBy IS NOT ` + writing + ` AND OLD.updatedBy IS NOT ` + writing
	// marked is true of an update that did itself what we would do, such as our own.
	marked = `NEW.isDirty IS 1 AND typeof(NEW.updatedOn) = 'integer' AND NEW.updatedOn > coalesce(CAST(OLD.updatedOn AS INTEGER), -1)` +
		` AND NEW.updatedBy IS (SELECT installationId FROM tidemark_state)`
)

// schemaObject is a trigger or an index as it should be.
type schemaObject struct{ name, sql string }

// objectName is unique for every table and kind, whatever the table is called.
func objectName(table, kind string) string {
	plain := strings.Map(func(r rune) rune {
		if r < 0x80 && nameByte(byte(r)) && r != '$' {
			return r
		}
		return '_'
	}, fold(table))
	sum := sha256.Sum256([]byte(fold(table)))
	return Prefix + plain[:min(len(plain), 24)] + "_" + hex.EncodeToString(sum[:4]) + "_" + kind
}

// indexes are those that the engine needs on a table. The one on clientId is not
// unique: the application may copy a row with all its columns, and the trigger that
// gives the copy an id of its own comes after the index has been checked. A row that
// is being inserted costs nothing in the partial ones; in the one of dirty rows it is
// found when it stayed without an identity, see sweep.
func (t *Table) indexes() []schemaObject {
	on := " ON " + quote(t.Name)
	object := func(kind, rest string) schemaObject {
		n := objectName(t.Name, kind)
		return schemaObject{n, "CREATE INDEX " + quote(n) + on + rest}
	}
	return []schemaObject{
		object("id", " (clientId) WHERE clientId IS NOT NULL"),
		object("server", " (serverId) WHERE serverId IS NOT NULL"),
		object("dirty", " (clientId) WHERE isDirty = 1"),
	}
}

// uniqueKey is one way in which a new row can collide with an old one.
type uniqueKey struct {
	terms []keyTerm
	where string
}

// uniqueKeys has the primary key (or the rowid) first.
func (t *Table) uniqueKeys() []uniqueKey {
	first := uniqueKey{terms: t.primary}
	if t.primary == nil {
		first.terms = []keyTerm{{column: t.key()[0]}}
	}
	keys := []uniqueKey{first}
	for _, u := range t.Uniques {
		keys = append(keys, uniqueKey{terms: u.terms, where: u.where})
	}
	return keys
}

// collate is the COLLATE by which references to a column of a key are compared: not that
// of the column that refers to it.
func (t *Table) collate(column string) string {
	for _, u := range t.uniqueKeys() {
		for _, term := range u.terms {
			if fold(term.column) == fold(column) && term.collation != "" {
				return " COLLATE " + quote(term.collation)
			}
		}
	}
	return ""
}

// name quotes a column; a name of the rowid stays bare.
func (t *Table) name(column string) string {
	if !slices.ContainsFunc(t.every, func(c string) bool { return fold(c) == fold(column) }) {
		return column
	}
	return quote(column)
}

// here is the row that NEW stands for.
func (t *Table) here() string {
	var parts []string
	for _, c := range t.key() {
		parts = append(parts, t.name(c)+" = NEW."+t.name(c))
	}
	return strings.Join(parts, " AND ")
}

// value is what the row NEW has in a key's term.
func (t *Table) value(k keyTerm) string {
	if k.expr != "" {
		var cols []string
		for _, c := range t.mentioned(k.expr) {
			cols = append(cols, "NEW."+quote(c)+" AS "+quote(c))
		}
		if len(cols) == 0 {
			cols = []string{"1"}
		}
		return "(SELECT " + k.expr + " FROM (SELECT " + strings.Join(cols, ", ") + "))"
	}
	for _, c := range t.Columns {
		if fold(c.Name) == fold(k.column) && c.NotNull && c.Default.Valid && c.PK == 0 {
			// OR REPLACE puts the default in place of a NULL, after BEFORE triggers.
			return "coalesce(NEW." + quote(c.Name) + ", (" + defaultSQL(c) + "))"
		}
	}
	return "NEW." + t.name(k.column)
}

// defaultSQL is the expression of a column's DEFAULT clause: a double-quoted one is
// a string, but would be read as a column elsewhere.
func defaultSQL(c Column) string {
	d := c.Default.String
	if toks := tokens(d); len(toks) == 1 && toks[0].kind == quotedName {
		return literal(toks[0].text)
	}
	return d
}

// mentioned are the columns of the table that an expression names (or may name).
func (t *Table) mentioned(expr string) []string {
	var out []string
	for _, tok := range tokens(expr) {
		for _, c := range t.every {
			if tok.kind != otherToken && fold(tok.text) == fold(c) && !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// collides selects, from the table, the rows that share key k with NEW. It is
// spelled so that the key's own index finds them.
func (t *Table) collides(k uniqueKey) string {
	var parts []string
	for _, term := range k.terms {
		left := t.name(term.column)
		if term.expr != "" {
			left = "(" + term.expr + ")"
		}
		p := left + " = " + t.value(term)
		if term.collation != "" {
			p += " COLLATE " + quote(term.collation)
		}
		parts = append(parts, p)
	}
	if k.where != "" {
		parts = append(parts, "("+k.where+")")
	}
	return strings.Join(parts, " AND ")
}

// keyValue is the key of NEW as one text; no is the key's place among uniqueKeys.
func (t *Table) keyValue(no int, k uniqueKey) string {
	parts := []string{literal(strconv.Itoa(no))}
	for _, term := range k.terms {
		parts = append(parts, "quote("+t.value(term)+")")
	}
	return strings.Join(parts, " || ',' || ")
}

// noted selects what tidemark_replaced holds for NEW.
func (t *Table) noted() string {
	var values []string
	for no, k := range t.uniqueKeys() {
		values = append(values, t.keyValue(no, k))
	}
	return "tidemark_replaced.tableName = " + literal(t.Name) + " AND tidemark_replaced.keyValue IN (" + strings.Join(values, ", ") + ")"
}

// vanished selects those notes for NEW whose row is no longer there.
func (t *Table) vanished() string {
	return "tidemark_replaced WHERE " + t.noted() + " AND NOT EXISTS (SELECT 1 FROM " + quote(t.Name) + " AS o WHERE o.clientId = tidemark_replaced.clientId)"
}

// keyColumns are those whose change can make a row replace another; nil when a
// generated one is among them, for UPDATE OF does not see those change.
func (t *Table) keyColumns() []string {
	var out []string
	add := func(c string) {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	for _, k := range t.uniqueKeys() {
		for _, term := range k.terms {
			if term.expr == "" {
				add(term.column)
			}
			for _, c := range t.mentioned(term.expr) {
				add(c)
			}
		}
		for _, c := range t.mentioned(k.where) {
			add(c)
		}
	}
	for _, c := range out {
		data := slices.ContainsFunc(t.Columns, func(d Column) bool { return fold(d.Name) == fold(c) })
		if !data && t.name(c) != c { // a column, but neither data nor the rowid
			return nil
		}
	}
	if !t.WithoutRowID {
		for _, c := range []string{"rowid", "_rowid_", "oid"} {
			if t.name(c) == c {
				add(c) // UPDATE … SET rowid also moves a row
			}
		}
	}
	return out
}

// keyText is a key that foreign keys refer to, as one text on both sides, whatever the
// parent's collation and the two columns' types are. Keys that only those tell apart are
// taken for one: then a tombstone waits that need not.
func keyText(ref string, columns []string) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		v := ref + quote(c)
		parts[i] = "rtrim(lower(CAST(CASE WHEN typeof(" + v + ") = 'real' AND " + v + " = CAST(" + v + " AS INTEGER) THEN CAST(" + v + " AS INTEGER) ELSE " + v + " END AS TEXT)))"
	}
	return strings.Join(parts, " || char(31) || ")
}

// watch is what the triggers of a table have to look after.
type watch struct {
	calledBack bool // the application has an UPDATE trigger on the table, which our own updates fire
	reacts     bool // the application has triggers at all
	keepsBase  bool // what a row was before its first edit is kept
}

// triggers are the table's triggers.
func (t *Table) triggers(w watch) []schemaObject {
	all := []schemaObject{
		t.beforeInsert(w.keepsBase), t.afterInsert(), t.afterBirth(), t.beforeKeyUpdate(), t.afterKeyUpdate(),
		t.afterUpdate(w.calledBack), t.afterIdentityUpdate(), t.afterDelete(),
	}
	if w.keepsBase {
		all = append(all, t.beforeFirstEdit())
	}
	if len(t.ForeignKeys) > 0 {
		all = append(all, t.afterReferenceUpdate())
	}
	if w.reacts {
		all = append(all, t.listeners()...)
	}
	return all
}

// trigger puts one together. event is what follows the trigger's name.
func (t *Table) trigger(kind, event, when string, body ...string) schemaObject {
	n := objectName(t.Name, kind)
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TRIGGER %s %s ON %s WHEN %s BEGIN\n", quote(n), event, quote(t.Name), when)
	for _, s := range body {
		if s != "" {
			b.WriteString("  " + s + ";\n")
		}
	}
	b.WriteString("END")
	return schemaObject{n, b.String()}
}

func of(event string, columns []string) string {
	if columns == nil {
		return event
	}
	quoted := make([]string, len(columns))
	for i, c := range columns {
		quoted[i] = quote(c)
	}
	return event + " OF " + strings.Join(quoted, ", ")
}

// notes writes down the rows that share a key with NEW, the row itself excepted.
func (t *Table) notes(except string) []string {
	const guard = "EXISTS (SELECT 1 FROM tidemark_replaced WHERE tableName = "
	name, us := quote(t.Name), literal(t.Name)
	var out []string
	if len(t.ForeignKeys) > 0 {
		out = append(out, "DELETE FROM tidemark_left WHERE "+guard+us+") AND tableName = "+us+
			" AND parentId = '?' AND clientId IN (SELECT clientId FROM tidemark_replaced WHERE "+t.noted()+")")
	}
	out = append(out, "DELETE FROM tidemark_replaced WHERE "+guard+us+") AND "+t.noted())
	for no, k := range t.uniqueKeys() {
		out = append(out, "INSERT INTO tidemark_replaced (tableName, keyNo, keyValue, clientId, createdOn, updatedOn, serverId, serverVersion) SELECT "+
			us+", "+strconv.Itoa(no)+", "+t.keyValue(no, k)+", clientId, createdOn, updatedOn, serverId, serverVersion FROM "+name+
			" WHERE "+t.collides(k)+" AND clientId IS NOT NULL"+except+" ON CONFLICT DO NOTHING")
	}
	for _, fk := range t.ForeignKeys {
		out = append(out, "INSERT INTO tidemark_left (tableName, clientId, parentTable, parentKey, parentId) SELECT "+
			us+", x.clientId, "+literal(fk.Parent)+", "+keyText("x.", fk.Columns)+", '?' FROM tidemark_replaced CROSS JOIN "+
			name+" AS x WHERE "+t.noted()+" AND x.clientId = tidemark_replaced.clientId AND x.serverId IS NOT NULL AND "+
			keyText("x.", fk.Columns)+" IS NOT NULL ON CONFLICT DO NOTHING")
	}
	return out
}

// confirmLeft is the statement's head that makes parents of replaced rows, noted
// before, parents that were left.
const confirmLeft = "INSERT INTO tidemark_left (tableName, clientId, parentTable, parentKey, parentId) SELECT tableName, clientId, parentTable, parentKey, '' FROM tidemark_left WHERE"

// buryVanished makes tombstones of the rows that vanished.
func (t *Table) buryVanished() []string {
	us := literal(t.Name)
	var out []string
	if len(t.ForeignKeys) > 0 {
		ours := " tableName = " + us + " AND parentId = '?' AND clientId IN (SELECT tidemark_replaced.clientId FROM " + t.vanished() + ")"
		out = append(out, confirmLeft+ours+" ON CONFLICT DO NOTHING", "DELETE FROM tidemark_left WHERE"+ours)
	}
	return append(out,
		"INSERT INTO tidemark_tombstones (tableName, clientId, createdOn, updatedOn, updatedBy, serverId, isDirty, serverVersion) SELECT "+
			us+", tidemark_replaced.clientId, tidemark_replaced.createdOn, max("+now+", coalesce(tidemark_replaced.updatedOn, 0) + 1), installationId, tidemark_replaced.serverId, 1, tidemark_replaced.serverVersion"+
			" FROM tidemark_state CROSS JOIN "+t.vanished()+
			" ON CONFLICT (tableName, clientId) DO UPDATE SET updatedOn = max(updatedOn, excluded.updatedOn), isDirty = 1")
}

// beforeInsert: OR REPLACE deletes what is in the way without a DELETE trigger.
func (t *Table) beforeInsert(keepsBase bool) schemaObject {
	body := t.notes("")
	for _, c := range t.Columns {
		if keepsBase { // the replaced row may live on as the new one
			body = append(body, "INSERT INTO tidemark_bases (tableName, clientId, columnName, value) SELECT "+literal(t.Name)+", x.clientId, "+literal(c.Name)+", x."+quote(c.Name)+
				" FROM tidemark_replaced CROSS JOIN "+quote(t.Name)+" AS x WHERE "+t.noted()+
				" AND x.clientId = tidemark_replaced.clientId AND x.isDirty = 0 AND x.serverVersion IS NOT NULL ON CONFLICT DO NOTHING")
		}
	}
	when := []string{"EXISTS (SELECT 1 FROM tidemark_replaced WHERE tableName = " + literal(t.Name) + ")"}
	for _, k := range t.uniqueKeys() {
		when = append(when, "EXISTS (SELECT 1 FROM "+quote(t.Name)+" WHERE "+t.collides(k)+")")
	}
	return t.trigger("bi", "BEFORE INSERT", notApplying+" AND ("+strings.Join(when, " OR ")+")", body...)
}

// afterInsert gives the row its identity. Values that the statement itself brought
// are another row's, except a createdOn, which may be the application's own column.
func (t *Table) afterInsert() schemaObject {
	name := quote(t.Name)
	return t.trigger("ai", "AFTER INSERT", notApplying,
		"UPDATE "+name+" SET clientId = NULL, serverId = NULL, serverVersion = NULL, updatedBy = "+writing+
			" WHERE (NEW.clientId IS NOT NULL OR NEW.serverId IS NOT NULL OR NEW.serverVersion IS NOT NULL) AND "+t.here(),
		"UPDATE "+name+" SET clientId = lower(hex(randomblob(16))), isDirty = 1, (createdOn, updatedOn, updatedBy) = (SELECT "+
			"CASE WHEN typeof(NEW.createdOn) = 'integer' AND NEW.createdOn > 0 THEN NEW.createdOn ELSE "+now+" END, "+
			now+", installationId FROM tidemark_state) WHERE "+t.here(),
	)
}

// afterBirth lets the new row take the place of the one that it replaced.
func (t *Table) afterBirth() schemaObject {
	name, us := quote(t.Name), literal(t.Name)
	heir := "(SELECT clientId FROM " + name + " WHERE " + t.here() + ")"
	body := []string{
		"UPDATE " + name + " SET (clientId, createdOn, serverId, serverVersion, updatedOn) = (SELECT tidemark_replaced.clientId, tidemark_replaced.createdOn, tidemark_replaced.serverId, " +
			"tidemark_replaced.serverVersion, max(" + name + ".updatedOn, coalesce(tidemark_replaced.updatedOn, 0)) + 1 FROM " +
			t.vanished() + " ORDER BY tidemark_replaced.keyNo, tidemark_replaced.clientId LIMIT 1) WHERE " + t.here(),
	}
	body = append(body, t.buryVanished()...)
	if len(t.ForeignKeys) > 0 {
		ours := " tableName = " + us + " AND clientId = " + heir + " AND parentId = '?'"
		body = append(body,
			confirmLeft+ours+" ON CONFLICT DO NOTHING", "DELETE FROM tidemark_left WHERE"+ours)
	}
	body = append(body,
		// With recursive_triggers on, the replaced row's DELETE trigger wrote one.
		"DELETE FROM tidemark_tombstones WHERE tableName = "+us+" AND clientId = "+heir,
		"DELETE FROM tidemark_replaced WHERE "+t.noted())
	return t.trigger("born", "AFTER UPDATE OF clientId", "OLD.clientId IS NULL AND NEW.clientId IS NOT NULL AND NEW.updatedBy IS NOT "+writing+
		" AND EXISTS (SELECT 1 FROM tidemark_replaced WHERE tableName = "+us+") AND "+notApplying+" AND EXISTS (SELECT 1 FROM "+t.vanished()+")", body...)
}

// beforeKeyUpdate: UPDATE OR REPLACE deletes as silently.
func (t *Table) beforeKeyUpdate() schemaObject {
	return t.trigger("bu", of("BEFORE UPDATE", t.keyColumns()), "OLD.clientId IS NOT NULL AND "+notWriting+" AND "+notApplying,
		t.notes(" AND clientId IS NOT OLD.clientId")...)
}

func (t *Table) afterKeyUpdate() schemaObject {
	return t.trigger("key", of("AFTER UPDATE", t.keyColumns()), "OLD.clientId IS NOT NULL AND EXISTS (SELECT 1 FROM tidemark_replaced WHERE tableName = "+literal(t.Name)+") AND "+
		notWriting+" AND "+notApplying+" AND EXISTS (SELECT 1 FROM "+t.vanished()+")",
		append(t.buryVanished(), "DELETE FROM tidemark_replaced WHERE "+t.noted())...)
}

// afterUpdate marks the row, unless that is done; a row without clientId is still
// being inserted.
func (t *Table) afterUpdate(calledBack bool) schemaObject {
	us := literal(t.Name)
	when := "OLD.clientId IS NOT NULL AND NOT (" + marked + ") AND " + notWriting + " AND " + notApplying
	body := []string{
		"UPDATE " + quote(t.Name) + " SET isDirty = 1, (updatedOn, updatedBy) = (SELECT max(" + now +
			", coalesce(CAST(OLD.updatedOn AS INTEGER), 0) + 1), installationId FROM tidemark_state) WHERE " + t.here(),
	}
	if calledBack {
		// The time makes a note that a RAISE(FAIL) left behind worthless.
		at := "(SELECT " + now + " FROM tidemark_state)"
		mine := "tableName = " + us + " AND clientId = OLD.clientId"
		when += " AND NOT EXISTS (SELECT 1 FROM tidemark_marking WHERE " + mine + " AND at = " + at + ")"
		body = append([]string{
			"DELETE FROM tidemark_marking WHERE " + mine,
			"INSERT INTO tidemark_marking (tableName, clientId, at) VALUES (" + us + ", OLD.clientId, " + at + ")",
		}, append(body, "DELETE FROM tidemark_marking WHERE "+mine)...)
	}
	return t.trigger("au", "AFTER UPDATE", when, body...)
}

// beforeFirstEdit keeps what a row was when we last agreed with the server. It comes
// before the row changes, so no other trigger has changed it yet, and what is there
// stays: an edit of a row that is dirty already only looks like a first one while
// the mark is being made.
func (t *Table) beforeFirstEdit() schemaObject {
	var changed, values []string
	for _, c := range t.Columns {
		changed = append(changed, "OLD."+quote(c.Name)+" IS NOT NEW."+quote(c.Name))
		values = append(values, "("+literal(t.Name)+", OLD.clientId, "+literal(c.Name)+", OLD."+quote(c.Name)+")")
	}
	if len(changed) == 0 {
		changed, values = []string{"false"}, []string{"('', '', '', NULL)"}
	}
	return t.trigger("base", "BEFORE UPDATE", "OLD.isDirty = 0 AND OLD.clientId IS NOT NULL AND OLD.serverVersion IS NOT NULL AND "+notApplying+" AND ("+strings.Join(changed, " OR ")+")",
		"INSERT INTO tidemark_bases (tableName, clientId, columnName, value) VALUES "+strings.Join(values, ", ")+" ON CONFLICT DO NOTHING")
}

// afterIdentityUpdate: programs that write back every column they once read must
// not undo what happened since.
func (t *Table) afterIdentityUpdate() schemaObject {
	columns := []string{"clientId", "serverId", "serverVersion", "createdOn"}
	var changed, back []string
	for _, c := range columns {
		changed = append(changed, "NEW."+c+" IS NOT OLD."+c)
		back = append(back, c+" = OLD."+c)
	}
	name := quote(t.Name)
	return t.trigger("same", of("AFTER UPDATE", columns), "OLD.clientId IS NOT NULL AND ("+strings.Join(changed, " OR ")+") AND NOT ("+marked+") AND "+notWriting+" AND "+notApplying,
		"UPDATE "+name+" SET "+strings.Join(back, ", ")+", isDirty = 1, (updatedOn, updatedBy) = (SELECT max("+now+", coalesce(CAST(OLD.updatedOn AS INTEGER), 0) + 1, "+
			"coalesce(CAST("+name+".updatedOn AS INTEGER), 0) + 1), installationId FROM tidemark_state) WHERE "+t.here())
}

// afterReferenceUpdate remembers the parents that a row has left, as far as the
// server may still know the row as their child.
func (t *Table) afterReferenceUpdate() schemaObject {
	var columns, body []string
	for _, fk := range t.ForeignKeys {
		var changed []string
		for _, c := range fk.Columns {
			changed = append(changed, "OLD."+quote(c)+" IS NOT NEW."+quote(c))
			if !slices.Contains(columns, c) {
				columns = append(columns, c)
			}
		}
		key, parent := keyText("OLD.", fk.Columns), literal(fk.Parent)
		into := "INSERT INTO tidemark_left (tableName, clientId, parentTable, parentKey, parentId) SELECT " + literal(t.Name) + ", OLD.clientId, " + parent + ", " + key
		left := "(" + strings.Join(changed, " OR ") + ") AND " + key + " IS NOT NULL"
		body = append(body,
			into+", '' WHERE "+left+" ON CONFLICT DO NOTHING",
			// The parent may have been deleted first.
			into+", d.clientId FROM tidemark_tombstones AS d WHERE d.tableName = "+parent+" AND d.localKey = "+key+
				" AND d.isDirty = 1 AND d.localKey <> '' AND "+left+" ON CONFLICT DO NOTHING")
	}
	return t.trigger("ref", of("AFTER UPDATE", columns), "OLD.clientId IS NOT NULL AND OLD.serverId IS NOT NULL AND "+notApplying, body...)
}

// listeners are for what the application's triggers do while we apply documents.
func (t *Table) listeners() []schemaObject {
	return []schemaObject{t.holdInsert(), t.holdDelete(), t.holdUpdate(), t.afterTouch()}
}

// holdInsert and holdDelete ignore what triggers of the application's insert and delete
// while we apply documents: we say which row we handle. Before the statement does
// anything, for OR REPLACE would delete in silence.
func (t *Table) holdInsert() schemaObject { return t.hold("hi", "INSERT", "NEW.clientId") }
func (t *Table) holdDelete() schemaObject { return t.hold("hd", "DELETE", "OLD.clientId") }

func (t *Table) hold(kind, event, id string) schemaObject {
	return t.trigger(kind, "BEFORE "+event, "(SELECT applying > 0 AND handling IS NOT "+literal(handling(event, t, ""))+" || coalesce("+id+", '') FROM tidemark_state)", "SELECT RAISE(IGNORE)")
}

// holdUpdate ignores what a trigger changes in clean rows: it would be one edit more, if the
// application edited the row before it is put back. And what its UPDATE OR REPLACE would
// replace, which fires no other trigger of ours. What we update ourselves and do not
// announce is told of a collision.
func (t *Table) holdUpdate() schemaObject {
	var collides []string
	for _, k := range t.uniqueKeys() {
		collides = append(collides, "EXISTS (SELECT 1 FROM "+quote(t.Name)+" WHERE "+t.collides(k)+" AND clientId IS NOT OLD.clientId)")
	}
	return t.trigger("hu", "BEFORE UPDATE", "(SELECT applying > 0 AND handling IS NOT "+literal(handling("UPDATE", t, ""))+" || coalesce(OLD.clientId, '') AND handling IS NOT NULL FROM tidemark_state)"+
		" AND (OLD.isDirty = 0 AND OLD.serverVersion IS NOT NULL AND (SELECT handling FROM tidemark_state) IS NOT "+literal(handling("INSERT", t, ""))+" || OLD.clientId OR "+strings.Join(collides, " OR ")+")", "SELECT RAISE(IGNORE)")
}

// handling says that we INSERT, UPDATE or DELETE a row of a table.
func handling(event string, t *Table, id string) string { return event + " " + t.Name + " " + id }

// afterTouch notes a row that a trigger of the application's changes while we apply
// documents; our own updates then change one of the columns below.
func (t *Table) afterTouch() schemaObject {
	return t.trigger("touch", "AFTER UPDATE", "(SELECT applying FROM tidemark_state) = 1 AND OLD.clientId IS NOT NULL AND NEW.serverVersion IS OLD.serverVersion"+
		" AND NEW.updatedOn IS OLD.updatedOn AND NEW.isDirty IS OLD.isDirty",
		"INSERT INTO tidemark_touched (tableName, clientId) VALUES ("+literal(t.Name)+", OLD.clientId) ON CONFLICT DO NOTHING")
}

// afterDelete leaves a tombstone, also of a row that was never uploaded: its create
// may be on its way.
func (t *Table) afterDelete() schemaObject {
	us := literal(t.Name)
	localKey := "''"
	if len(t.keys) > 0 {
		localKey = "coalesce(" + keyText("OLD.", t.keys[0]) + ", '')"
	}
	body := []string{
		"INSERT INTO tidemark_tombstones (tableName, clientId, createdOn, updatedOn, updatedBy, serverId, isDirty, serverVersion, localKey, above) SELECT " +
			us + ", OLD.clientId, OLD.createdOn, max(" + now + ", coalesce(OLD.updatedOn, 0) + 1), installationId, OLD.serverId, 1, OLD.serverVersion, " + localKey +
			", CASE WHEN OLD.isDirty = 0 THEN coalesce(OLD.updatedOn, 0) ELSE 0 END" +
			" FROM tidemark_state WHERE true ON CONFLICT (tableName, clientId) DO UPDATE SET updatedOn = max(updatedOn, excluded.updatedOn)," +
			" updatedBy = excluded.updatedBy, serverId = excluded.serverId, serverVersion = excluded.serverVersion, isDirty = 1, localKey = excluded.localKey, above = excluded.above",
	}
	// The parents' tombstones come after this one, or wait with it when it is refused.
	for _, fk := range t.ForeignKeys {
		key, parent := keyText("OLD.", fk.Columns), literal(fk.Parent)
		into := "INSERT INTO tidemark_left (tableName, clientId, parentTable, parentKey, parentId) SELECT " + us + ", OLD.clientId, " + parent + ", " + key
		left := "OLD.serverId IS NOT NULL AND " + key + " IS NOT NULL"
		body = append(body,
			into+", '' WHERE "+left+" ON CONFLICT DO NOTHING",
			into+", d.clientId FROM tidemark_tombstones AS d WHERE d.tableName = "+parent+" AND d.localKey = "+key+
				" AND d.isDirty = 1 AND d.localKey <> '' AND d.clientId <> OLD.clientId AND "+left+" ON CONFLICT DO NOTHING")
	}
	for _, k := range t.keys {
		open := "parentTable = " + us + " AND parentKey = " + keyText("OLD.", k) + " AND parentId = ''"
		body = append(body,
			"INSERT INTO tidemark_left (tableName, clientId, parentTable, parentKey, parentId) SELECT tableName, clientId, parentTable, parentKey, OLD.clientId"+
				" FROM tidemark_left WHERE "+open+" AND NOT (tableName = "+us+" AND clientId = OLD.clientId) ON CONFLICT DO NOTHING",
			"DELETE FROM tidemark_left WHERE "+open)
	}
	return t.trigger("ad", "AFTER DELETE", "OLD.clientId IS NOT NULL AND "+notApplying, body...)
}
