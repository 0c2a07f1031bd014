package persistence

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

// cloud is the server between two devices: the documents as they are now, and what
// each device has not seen.
type cloud struct {
	docs  map[docKey]messages.Document
	fresh map[*fuzzRun]map[docKey]bool
	clock int64
}

// rowsEdit is what an application writes: any value into any column.
func (s *fuzzRun) rowsEdit() {
	plans, err := s.local.allPlans(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	d := s.d
	p := plans[d.n(len(plans))]
	var names, marks []string
	var args []any
	for i := range p.cols {
		c := &p.cols[i]
		if d.n(4) == 0 {
			continue
		}
		v := d.sqlValue()
		switch {
		case c.ref >= 0 || c.surrogate:
			r := p
			if !c.surrogate {
				r = p.all[p.refs[c.ref].parent.Name]
			}
			if keys := queryStrings(s.t, s.db, `SELECT quote(`+quote(r.t.PrimaryKey[0])+`) FROM `+r.name+` ORDER BY 1 LIMIT 4`); d.n(4) > 0 && len(keys) > 0 && !c.surrogate {
				names, marks = append(names, c.quoted), append(marks, keys[d.n(len(keys))])
				continue
			}
			if c.surrogate && d.n(3) > 0 {
				v = int64(d.n(6))
			}
		case c.Affinity == AffinityText && d.n(3) > 0:
			v = d.text()
		case c.Affinity == AffinityReal && d.n(3) > 0:
			v = 0.5
		}
		names, marks, args = append(names, c.quoted), append(marks, "?"), append(args, v)
	}
	if len(names) == 0 {
		return
	}
	one := ` WHERE clientId = (SELECT clientId FROM ` + p.name + ` ORDER BY ` + quote(p.t.Columns[0].Name) + `, createdOn LIMIT 1 OFFSET ` + strconv.Itoa(d.n(3)) + `)`
	var query string
	switch how := pick(d, []string{"", "OR REPLACE ", "OR IGNORE "}); d.n(6) {
	case 0:
		query, args = "DELETE FROM "+p.name+one, nil
	case 1, 2:
		for i := range names {
			names[i] += " = " + marks[i]
		}
		query = "UPDATE " + how + p.name + " SET " + strings.Join(names, ", ") + one
	default:
		query = "INSERT " + how + "INTO " + p.name + " (" + strings.Join(names, ", ") + ") VALUES (" + strings.Join(marks, ", ") + ")"
	}
	_, err = s.db.DB.ExecContext(s.t.Context(), query, args...)
	s.note("%s %.300q: %v", query, fmt.Sprint(args), err)
}

// up sends what is dirty to the server.
func (s *fuzzRun) up(c *cloud) {
	s.t.Helper()
	ctx := s.t.Context()
	var cursor messages.Cursor
	for {
		writes, err := s.local.Dirty(ctx, &cursor)
		if err != nil {
			s.t.Fatalf("gather: %v", err)
		}
		if len(writes) == 0 {
			break
		}
		commit, err := s.local.Prepare(ctx, writes)
		if err != nil {
			s.t.Fatal(err)
		}
		c.clock += 10
		for i := range commit.Writes {
			w := &commit.Writes[i]
			k := docKey{w.Document.Table, w.Document.ID}
			was := c.docs[k]
			if was.UpdateTime != w.Expect {
				s.t.Errorf("document %q of %q goes up on version %d, the server has %d", k.id, k.table, w.Expect, was.UpdateTime)
			}
			d := w.Document
			d.UpdateTime = c.clock
			d.Fields = map[string]any{}
			maps.Copy(d.Fields, was.Fields)
			maps.Copy(d.Fields, w.Document.Fields)
			c.docs[k] = d
			for other, fresh := range c.fresh {
				if other != s {
					fresh[k] = true
				}
			}
		}
		if _, err := s.local.Acknowledge(ctx, commit.Device.Token, c.clock); err != nil {
			s.t.Fatal(err)
		}
	}
	// Whatever stays behind has its reason, or waits for something that has.
	plans, err := s.local.allPlans(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range plans {
		for _, id := range queryStrings(s.t, s.db, `SELECT clientId FROM `+p.name+` WHERE isDirty = 1`) {
			if !cursor.Held[messages.DocumentKey{Table: p.t.Name, ID: id}] {
				s.t.Errorf("a row of table %q is dirty and nobody says why", p.t.Name)
			}
		}
	}
	if len(cursor.Held) > 0 && s.count(`SELECT count(*) FROM tidemark_dead_letters WHERE handler = 'upload' AND reason <> ''`) == 0 {
		s.t.Errorf("%v stay behind without a reason", cursor.Held)
	}
}

// down brings what is new from the server.
func (s *fuzzRun) down(c *cloud) {
	s.t.Helper()
	plans, err := s.local.allPlans(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range plans {
		var docs []messages.Document
		for k := range c.fresh[s] {
			if k.table == p.t.Name {
				docs = append(docs, c.docs[k])
			}
		}
		slices.SortFunc(docs, func(a, b messages.Document) int {
			if a.UpdateTime != b.UpdateTime {
				return int(a.UpdateTime - b.UpdateTime)
			}
			return strings.Compare(a.ID, b.ID)
		})
		if _, err := s.local.Apply(s.t.Context(), p.t.Name, docs, nil); err != nil {
			s.t.Fatalf("table %q: %v", p.t.Name, err)
		}
	}
	c.fresh[s] = map[docKey]bool{}
	s.server = map[docKey][]messages.Document{}
	for k, d := range c.docs {
		s.server[k] = []messages.Document{d}
	}
	s.settle()
}

// alike compares two devices row by row: same values of the same types, or a reason
// why a row is not there.
func alike(t *testing.T, a, b *fuzzRun) {
	t.Helper()
	plans, err := a.local.allPlans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plans {
		exprs := []string{"isDirty"}
		for i := range p.cols {
			if c := &p.cols[i]; c.ref < 0 && !c.surrogate && !slices.ContainsFunc(p.refs, func(r ref) bool { return slices.Contains(r.cols, i) }) {
				exprs = append(exprs, `'`+strings.ReplaceAll(c.Name, `'`, `''`)+` = ' || typeof(`+c.quoted+`) || ' ' || quote(`+c.quoted+`)`)
			}
		}
		rows := func(s *fuzzRun) map[string]string {
			out := map[string]string{}
			err := eachRow(t.Context(), s.db.DB, `SELECT clientId, `+strings.Join(exprs, ` || x'0a' || `)+` FROM `+p.name, func(scan func(...any) error) error {
				var id, text string
				err := scan(&id, &text)
				out[id] = text
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		excused := func(s *fuzzRun, id string) bool {
			return s.count(`SELECT (SELECT count(*) FROM tidemark_dead_letters WHERE tableName = ?1 AND documentId = ?2 AND reason <> '') +
				(SELECT count(*) FROM tidemark_inbox WHERE tableName = ?1 AND documentId = ?2 AND reason <> '')`, p.t.Name, id) > 0
		}
		there := rows(b)
		for id, mine := range rows(a) {
			theirs, ok := there[id]
			switch {
			case ok && mine == theirs, mine[0] == '1', theirs != "" && theirs[0] == '1':
			case !excused(b, id) && !excused(a, id):
				t.Errorf("table %q: the row\n%s\narrives as\n%s", p.t.Name, mine, theirs)
			}
		}
	}
}

// FuzzRows: whatever an application writes goes up and arrives on another device with
// the same values and types, or is set aside with a reason.
func FuzzRows(f *testing.F) {
	addSeeds(f, 1, 300) // small: one run under the fuzzer may take no more than ten seconds
	f.Fuzz(rowsTravel)
}

func rowsTravel(t *testing.T, data []byte) {
	if len(data) > 500 {
		return
	}
	a, b := newFuzzRun(t, data), newFuzzRun(t, data)
	b.d = a.d // one supply of choices
	schema := ddl(t, a.db)
	for _, s := range []*fuzzRun{a, b} { // the template gave both the same id
		mustExec(t, s.db, fmt.Sprintf(`UPDATE tidemark_state SET installationId = '%p'`, s))
	}
	c := &cloud{docs: map[docKey]messages.Document{}, fresh: map[*fuzzRun]map[docKey]bool{a: {}, b: {}}, clock: 1_700_000_000_000_000}
	here, there := a, b
	for rounds := 0; !a.d.done() && rounds < 4; rounds++ {
		for range 1 + a.d.n(6) {
			here.rowsEdit()
		}
		here.up(c)
		here.whole(schema)
		there.down(c)
		there.whole(schema)
		alike(t, here, there)
		there.up(c) // what had to be decided there
		here.down(c)
		here.whole(schema)
		alike(t, there, here)
		here, there = there, here
	}
}
