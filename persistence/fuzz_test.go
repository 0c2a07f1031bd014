package persistence

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	"github.com/tidemark-sync/tidemark/messages"
)

// fuzzDatabases are the bytes of an attached database with the schema of fuzz.sql,
// without and with fuzz_triggers.sql: to copy one is faster than to attach.
var fuzzDatabases = sync.OnceValues(func() (out [2][]byte, err error) {
	dir, err := os.MkdirTemp("", "tidemark-fuzz")
	if err != nil {
		return out, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	schema := ""
	for i, name := range []string{"fuzz.sql", "fuzz_triggers.sql"} {
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			return out, err
		}
		schema += string(raw)
		path := filepath.Join(dir, name+".db")
		if err := makeDatabase(path, schema); err != nil {
			return out, err
		}
		if out[i], err = os.ReadFile(path); err != nil {
			return out, err
		}
	}
	return out, nil
})

func makeDatabase(path, schema string) error {
	raw, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	db := bun.NewDB(raw, sqlitedialect.New())
	ctx := context.Background()
	if _, err = db.DB.ExecContext(ctx, schema); err == nil {
		_, err = Attach(ctx, db, AttachOptions{})
	}
	if err == nil {
		_, err = Open(ctx, db, DeviceInfo{})
	}
	if err == nil { // a file of its own, without a log beside it
		_, err = db.DB.ExecContext(ctx, "PRAGMA journal_mode = DELETE")
	}
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	return err
}

// fuzzRun is one fuzzed run: what the server has, and what is here.
type fuzzRun struct {
	t      *testing.T
	db     *bun.DB
	local  *Local
	d      *draw
	clock  int64
	server map[docKey][]messages.Document // every version, oldest first
	pages  int
	log    []string
}

func newFuzzRun(t *testing.T, data []byte) *fuzzRun {
	t.Helper()
	templates, err := fuzzDatabases()
	if err != nil {
		t.Fatal(err)
	}
	s := &fuzzRun{t: t, d: &draw{data}, server: map[docKey][]messages.Document{}, clock: 1_700_000_000_000_000}
	path := filepath.Join(t.TempDir(), "fuzz.db")
	if err := os.WriteFile(path, templates[s.d.n(2)], 0o600); err != nil {
		t.Fatal(err)
	}
	s.db = openTestDB(t, path+"?_pragma=synchronous(OFF)&_pragma=foreign_keys(1)")
	if s.local, err = Open(t.Context(), s.db, DeviceInfo{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(strings.Join(s.log, "\n"))
		}
	})
	return s
}

func (s *fuzzRun) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.log = append(s.log, text[:min(len(text), 1500)])
}

func (s *fuzzRun) document(p *plan) messages.Document {
	d := s.d
	s.clock += 1 + int64(d.n(3))
	doc := messages.Document{
		Table: p.t.Name, ID: d.id(), CreatedOn: d.time(), UpdatedOn: d.time(), UpdatedBy: pick(d, []string{"other", "", "zz", "'", "\xff"}),
		UploadedOn: d.time(), UpdateTime: s.clock, Fields: map[string]any{},
	}
	if d.n(4) > 0 {
		doc.Stamp = messages.Stamp{Device: "other", Seq: int64(d.n(5))}
	}
	if d.n(6) == 0 {
		doc.Deleted = true
		if d.n(3) == 0 {
			doc.Survivor = d.id()
		}
		if d.n(3) == 0 {
			return doc
		}
	}
	for i := range p.cols {
		c := &p.cols[i]
		if c.Name == "edit" || d.n(8) == 0 {
			continue
		}
		switch {
		case d.n(4) == 0:
			doc.Fields[c.Name] = d.value()
		case c.ref >= 0:
			doc.Fields[c.Name] = d.id()
		case c.surrogate:
			doc.Fields[c.Name] = int64(d.n(6))
		case c.Affinity == AffinityText:
			doc.Fields[c.Name] = d.text()
		case c.Affinity == AffinityBlob && d.n(2) == 0:
			doc.Fields[c.Name] = d.text()
		case c.Affinity == AffinityBlob:
			doc.Fields[c.Name] = d.raw(3)
		case c.Affinity == AffinityReal:
			doc.Fields[c.Name] = pick(d, oddFloats)
		default:
			doc.Fields[c.Name] = pick(d, oddInts)
		}
	}
	for i := range p.refs {
		if r := &p.refs[i]; len(r.cols) > 1 && d.n(4) > 0 {
			doc.Fields[r.field] = d.id()
		}
	}
	for range d.n(3) {
		doc.Fields[pick(d, []string{"unknown", "clientId", "isDirty", "rowid", "_rowid_", "shout", "kept", "I", "", "ref:a", "\xff", "a\"b", "'); DROP TABLE loose; --", "nul\x00"})] = d.value()
	}
	return doc
}

// page applies some documents of one table. The last one is like any other and
// has to go in, whatever the others are.
func (s *fuzzRun) page() {
	s.t.Helper()
	plans, err := s.local.allPlans(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	p := plans[s.d.n(len(plans))]
	if related := []string{"node", "person", "house", "tight", "leaf"}; s.d.n(2) == 0 {
		name := pick(s.d, related)
		p = plans[slices.IndexFunc(plans, func(p *plan) bool { return p.t.Name == name })]
	}
	var docs []messages.Document
	for range 1 + s.d.n(6) {
		doc := s.document(p)
		if slices.ContainsFunc(docs, func(o messages.Document) bool { return o.ID == doc.ID }) {
			continue // one read has one version of it
		}
		docs = append(docs, doc)
		if s.d.n(10) == 0 { // delivered twice
			docs = append(docs, doc)
		}
		k := docKey{doc.Table, doc.ID}
		s.server[k] = append(s.server[k], doc)
	}
	s.pages++
	s.clock++
	good := messages.Document{
		Table: p.t.Name, ID: fmt.Sprintf("good%d", s.pages), CreatedOn: 5, UpdatedOn: 6, UpdatedBy: "other", UpdateTime: s.clock,
		Fields: map[string]any{"name": fmt.Sprintf("good%d", s.pages), "amount": 2.5, "a": int64(1000 + s.pages), "b": []byte("good"), "n": "good", "v": fmt.Sprintf("good%d", s.pages)},
	}
	switch p.t.Name {
	case "leaf": // needs a parent
		good.Fields = nil
	case "pair":
		good.Fields["b"] = "good"
	case "half":
		delete(good.Fields, "a")
		delete(good.Fields, "b")
	}
	if good.Fields != nil {
		docs = append(docs, good)
		s.server[docKey{good.Table, good.ID}] = []messages.Document{good}
	}
	for i := range docs {
		s.note("document %.300q", fmt.Sprint(docs[i]))
	}
	before := maps.Clone(docs[0].Fields)
	if _, err := s.local.Apply(s.t.Context(), p.t.Name, docs, nil); err != nil {
		s.t.Fatalf("a page of table %q: %v", p.t.Name, err)
	}
	if !maps.EqualFunc(before, docs[0].Fields, equal) {
		s.t.Error("the caller's documents were changed")
	}
	if good.Fields != nil {
		if n := s.count(`SELECT count(*) FROM `+p.name+` WHERE clientId = ? AND serverVersion = ?`, good.ID, good.UpdateTime); n != 1 {
			s.t.Fatalf("a good document of table %q among others was not applied", p.t.Name)
		}
	}
}

func (s *fuzzRun) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.db.DB.QueryRowContext(s.t.Context(), query, args...).Scan(&n); err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return n
}

func (s *fuzzRun) settle() {
	s.t.Helper()
	s.note("settle")
	asked := map[string][]string{}
	var fetched []messages.Document
	for range 1000 {
		out, err := s.local.Settle(s.t.Context(), asked, fetched, messages.Step{})
		if err != nil {
			s.t.Fatalf("settle: %v", err)
		}
		if len(out.Lookup) == 0 {
			return
		}
		for table, ids := range out.Lookup {
			for _, id := range ids {
				if slices.Contains(asked[table], id) {
					s.t.Fatalf("settle asked for document %q of %q twice", id, table)
				}
				asked[table] = append(asked[table], id)
				if versions := s.server[docKey{table, id}]; len(versions) > 0 {
					fetched = append(fetched, versions[len(versions)-1])
				}
			}
		}
	}
	s.t.Fatal("settle never ends")
}

// edit is what the application does meanwhile; it may well be refused.
func (s *fuzzRun) edit() {
	plans, err := s.local.allPlans(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	d := s.d
	p := plans[d.n(len(plans))]
	var names, marks []string
	var args []any
	for i := range p.cols {
		if c := &p.cols[i]; d.n(3) > 0 && !(c.surrogate && d.n(2) == 0) {
			names, marks = append(names, c.quoted), append(marks, "?")
			v := d.sqlValue()
			if c.ref >= 0 && d.n(3) > 0 {
				v = d.n(4)
			}
			args = append(args, v)
		}
	}
	if len(names) == 0 {
		return
	}
	var query string
	switch how := pick(d, []string{"", "OR REPLACE ", "OR IGNORE "}); d.n(4) {
	case 0, 1:
		query = "INSERT " + how + "INTO " + p.name + " (" + strings.Join(names, ", ") + ") VALUES (" + strings.Join(marks, ", ") + ")"
	case 2:
		query = "UPDATE " + how + p.name + " SET " + strings.Join(names, " = ?, ") + " = ? WHERE clientId = ?"
		args = append(args, d.id())
	default:
		query, args = "DELETE FROM "+p.name+" WHERE clientId = ?", []any{d.id()}
	}
	_, err = s.db.DB.ExecContext(s.t.Context(), query, args...)
	s.note("the application: %s %.300q: %v", query, fmt.Sprint(args), err)
}

// whole checks what has to hold at every moment.
func (s *fuzzRun) whole(ddlBefore []string) {
	s.t.Helper()
	if got := queryStrings(s.t, s.db, `SELECT "table" || ' ' || coalesce(rowid, '') || ' ' || parent FROM pragma_foreign_key_check`); len(got) > 0 {
		s.t.Fatalf("foreign_key_check: %q", got)
	}
	if got := ddl(s.t, s.db); !slices.Equal(got, ddlBefore) {
		s.t.Fatalf("the schema changed to %q", got)
	}
	if n := s.count(`SELECT applying FROM tidemark_state`); n != 0 {
		s.t.Fatal("the triggers sleep")
	}
}

// sameValue: a number is the same as another type of number that is equal; SQLite
// stores no negative zero and a bool as a number.
func sameValue(there, here any) bool {
	there = toSQL(there)
	switch x := there.(type) {
	case int64:
		if f, ok := here.(float64); ok {
			return f >= -(1<<63) && f < 1<<63 && int64(f) == x
		}
	case float64:
		if n, ok := here.(int64); ok {
			return x >= -(1<<63) && x < 1<<63 && x == float64(n) && int64(x) == n
		}
		if f, ok := here.(float64); ok {
			return f == x
		}
	}
	return equal(there, here)
}

// faithful checks that rows say what the version of the document says that they
// are of, and that no document has been forgotten.
func (s *fuzzRun) faithful() {
	s.t.Helper()
	plans, err := s.local.allPlans(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	byName := map[string]*plan{}
	for _, p := range plans {
		byName[p.t.Name] = p
	}
	err = s.local.write(s.t.Context(), func(tx *tx) error {
		for k, versions := range s.server {
			row, err := byName[k.table].rowByID(tx, k.id)
			if err != nil {
				return err
			}
			for i := range versions {
				if row == nil || row.dirty || row.serverVersion != versions[i].UpdateTime {
					continue
				}
				s.says(byName[k.table], row, &versions[i])
			}
			latest := versions[len(versions)-1]
			var inbox, letters, tombs int
			for query, n := range map[string]*int{
				`SELECT count(*) FROM tidemark_inbox WHERE tableName = ? AND documentId = ? AND updateTime = ?`:                                                 &inbox,
				`SELECT count(*) FROM tidemark_dead_letters WHERE handler = 'download' AND tableName = ? AND documentId = ? AND updatedOn = ? AND reason <> ''`: &letters,
				`SELECT count(*) FROM tidemark_tombstones WHERE tableName = ? AND clientId = ? AND serverVersion >= ?`:                                          &tombs,
			} {
				if err := tx.row(query, k.table, k.id, latest.UpdateTime).Scan(n); err != nil {
					return err
				}
			}
			switch {
			case row != nil && row.serverVersion >= latest.UpdateTime, tombs > 0, inbox > 0, letters > 0:
			case row == nil && latest.Deleted:
				s.t.Errorf("the delete of document %q of %q is not remembered", k.id, k.table)
			default:
				s.t.Errorf("document %q of %q (deleted: %v) was forgotten; the row is %+v", k.id, k.table, latest.Deleted, row)
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *fuzzRun) says(p *plan, row *localRow, doc *messages.Document) {
	s.t.Helper()
	got := p.document(row, "").Fields
	for name, v := range doc.Fields {
		here, known := got[name]
		if !known || name == p.surrogate || slices.ContainsFunc(p.refs, func(r ref) bool {
			return r.field != name && slices.Contains(r.fk.Columns, name) && doc.Fields[r.field] != nil
		}) {
			continue
		}
		if !sameValue(v, here) {
			s.t.Errorf("document %q of %q has %s = %#v and came back with %#v", doc.ID, doc.Table, name, v, here)
		}
	}
	if row.createdOn != doc.CreatedOn || row.updatedOn != min(doc.UpdatedOn, doc.UpdateTime/1000+wrongBy.Milliseconds()) {
		s.t.Errorf("document %q of %q has the times %d, %d and its row %d, %d", doc.ID, doc.Table, doc.CreatedOn, doc.UpdatedOn, row.createdOn, row.updatedOn)
	}
}

// upload edits every row and looks at what goes up.
func (s *fuzzRun) upload() {
	s.t.Helper()
	plans, err := s.local.allPlans(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	clean := map[docKey]int64{}
	for _, p := range plans {
		if err := eachRow(s.t.Context(), s.db.DB, `SELECT clientId, serverVersion FROM `+p.name+` WHERE isDirty = 0`, func(scan func(...any) error) error {
			var id string
			var version int64
			err := scan(&id, &version)
			clean[docKey{p.t.Name, id}] = version
			return err
		}); err != nil {
			s.t.Fatal(err)
		}
		mustExec(s.t, s.db, `UPDATE `+p.name+` SET edit = coalesce(edit, 0) + 1`)
		if n := s.count(`SELECT count(*) FROM ` + p.name + ` WHERE isDirty = 0`); n > 0 {
			s.t.Errorf("%d edits of table %q were not noticed", n, p.t.Name)
		}
	}
	var cursor messages.Cursor
	up := map[docKey]bool{}
	for {
		writes, err := s.local.Dirty(s.t.Context(), &cursor)
		if err != nil {
			s.t.Fatalf("gather: %v", err)
		}
		if len(writes) == 0 {
			break
		}
		for i := range writes {
			w := &writes[i]
			k := docKey{w.Document.Table, w.Document.ID}
			if up[k] {
				s.t.Errorf("document %q of %q goes up twice", k.id, k.table)
			}
			up[k] = true
			for _, doc := range s.server[k] {
				if clean[k] != doc.UpdateTime {
					continue
				}
				if w.Expect != doc.UpdateTime {
					s.t.Errorf("document %q of %q goes up on version %d instead of %d", k.id, k.table, w.Expect, doc.UpdateTime)
				}
				for name, v := range doc.Fields {
					if here, known := w.Document.Fields[name]; known && !sameValue(v, here) && name != "a" && name != "b" {
						s.t.Errorf("document %q of %q had %s = %#v and goes up with %#v", k.id, k.table, name, v, here)
					}
				}
			}
		}
	}
	for k := range clean {
		held := cursor.Held[messages.DocumentKey{Table: k.table, ID: k.id}]
		if !up[k] && !held {
			s.t.Errorf("the edit of document %q of %q was forgotten", k.id, k.table)
		}
		if held && s.count(`SELECT count(*) FROM tidemark_dead_letters WHERE handler = 'upload' AND tableName = ? AND documentId = ? AND reason <> ''`, k.table, k.id) == 0 {
			s.note("held: %v", k) // it waits for a parent that cannot go up
		}
	}
}

// The fuzzer watches SQLite's own code, which makes it slow: more seeds without it get
// further in the same time.
var fuzzSeeds = flag.Uint64("seeds", 20, "how many random inputs FuzzDocuments and FuzzRows begin with")

func addSeeds(f *testing.F, kind byte, size uint64) {
	f.Helper()
	for seed := range *fuzzSeeds {
		key := [32]byte{kind}
		binary.LittleEndian.PutUint64(key[1:], seed)
		data := make([]byte, size/8*(1+seed%8))
		_, _ = rand.NewChaCha8(key).Read(data) // never fails
		data[0] = byte(seed)
		f.Add(data)
	}
}

// FuzzDocuments: whatever documents come from the server, each is applied as it is,
// waits, or is set aside with a reason; no neighbour suffers, nothing else changes,
// and what was applied goes up again as it came.
func FuzzDocuments(f *testing.F) {
	addSeeds(f, 0, 800)
	f.Fuzz(documentsArrive)
}

func documentsArrive(t *testing.T, data []byte) {
	if len(data) > 1000 {
		return
	}
	s := newFuzzRun(t, data)
	schema := ddl(t, s.db)
	for ops := 0; !s.d.done() && ops < 25; ops++ {
		switch s.d.n(8) {
		case 0:
			s.edit()
		case 1:
			s.settle()
			s.whole(schema)
			s.faithful()
		default:
			s.page()
			s.whole(schema)
		}
	}
	s.settle()
	s.whole(schema)
	s.faithful()
	s.upload()
	s.whole(schema)
	if got := queryStrings(t, s.db, `PRAGMA integrity_check`); len(got) != 1 || got[0] != "ok" {
		t.Errorf("integrity_check: %q", got)
	}
}

// FuzzStoredDocument: what is kept of a document loses nothing, and damage is an
// error.
func FuzzStoredDocument(f *testing.F) {
	f.Add([]byte(`{"v":1,"id":"a","fields":{"x":{"float":"NaN"},"y":{"text":"/w=="},"z":1.0,"m":{"unsupported":"map"},"b":{"bytes":""}}}`))
	f.Add([]byte(`{"v":1,"stamp":"d.0000000000000001","fields":{"n":-9223372036854775808,"e":1e400}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := unmarshalDocument("t", data)
		if err == nil {
			raw, err := marshalDocument(&doc)
			if err != nil {
				t.Fatal(err)
			}
			again, err := unmarshalDocument("t", raw)
			if err != nil {
				t.Fatalf("%s: %v", raw, err)
			}
			sameDocument(t, doc, again)
		}
		d := &draw{bytes.Clone(data)}
		name := func() string { return strings.ToValidUTF8(d.text(), "?") } // no server has another
		doc = messages.Document{Table: "t", ID: name(), CreatedOn: d.time(), UpdatedOn: d.time(), UpdatedBy: name(), UpdateTime: d.time(), Fields: map[string]any{}}
		for range d.n(6) {
			doc.Fields[name()] = d.value()
		}
		raw, err := marshalDocument(&doc)
		if err != nil {
			t.Fatal(err)
		}
		again, err := unmarshalDocument("t", raw)
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		sameDocument(t, doc, again)
	})
}

func sameDocument(t *testing.T, a, b messages.Document) {
	t.Helper()
	if !maps.EqualFunc(a.Fields, b.Fields, func(x, y any) bool { return equal(x, y) || fmt.Sprint(x, y) == "NaN NaN" }) {
		t.Fatalf("%#v came back as %#v", a.Fields, b.Fields)
	}
	a.Fields, b.Fields = nil, nil
	if fmt.Sprintf("%#v", a) != fmt.Sprintf("%#v", b) {
		t.Fatalf("%#v came back as %#v", a, b)
	}
}
