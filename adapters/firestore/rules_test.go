package firestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

// ruled is a project under rules, with what a row needs to write as anybody.
type ruled struct {
	t       *testing.T
	cfg     Config
	owner   *Remote // whom no rule stops
	scopes  int
	gone    *place          // one that its owner had forgotten
	context context.Context //nolint:containedctx // the test's
}

func underRules(t *testing.T, rules string) *ruled {
	t.Helper()
	owner, cfg := open(t)
	w := &ruled{t: t, cfg: cfg, owner: owner, context: t.Context()}
	w.load(rules)
	return w
}

func (w *ruled) load(rules string) { servers.Rules(w.t, w.cfg.Emulator, w.cfg.Project, rules) }

// as opens a scope as a user: "" is nobody at all.
func (w *ruled) as(uid, scope string) *Remote {
	w.t.Helper()
	cfg := w.cfg
	cfg.Scope = scope
	cfg.User = func(context.Context, string) (string, error) { return servers.IDToken(cfg.Project, uid), nil }
	r, err := Open(w.context, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = r.Close() })
	if uid == "" {
		r.user = nil // and the connection has no owner's credentials either
	}
	return r
}

// The ids that every scope of a row starts with.
const (
	deviceA = "0123456789abcdef0123456789abcdef"
	deviceB = "ffffffffffffffffffffffffffffffff"
)

// place is a scope with a device at number 1, a live document and a tombstone.
type place struct {
	w      *ruled
	uid    string
	parent string
	mine   *Remote // as its owner
	other  *Remote // as somebody else
	nobody *Remote
}

func (w *ruled) place() *place {
	w.t.Helper()
	w.scopes++
	uid := fmt.Sprintf("user%d", w.scopes)
	p := &place{w: w, uid: uid, parent: w.owner.database + "/documents/users/" + uid}
	p.mine, p.other, p.nobody = w.as(uid, "users/"+uid), w.as("somebody", "users/"+uid), w.as("", "users/"+uid)
	if err := p.commit(w.owner, p.record(deviceA, 1, nil), p.document("live", 1, nil), p.document("dead", 1, tomb(1))); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// forgotten is another scope, with the marker of one that is being forgotten.
func (w *ruled) forgotten() *place {
	w.t.Helper()
	if w.gone == nil {
		w.gone = w.place()
		if err := w.gone.commit(w.owner, w.gone.record(messages.ForgottenScope, 0, change{deviceForgot: boolean(true)})); err != nil {
			w.t.Fatal(err)
		}
	}
	return w.gone
}

func (p *place) commit(as *Remote, writes ...*pb.Write) error {
	return as.signed(p.w.context, func(ctx context.Context) error {
		_, err := as.client.Commit(ctx, &pb.CommitRequest{Database: as.database, Writes: writes})
		return err
	})
}

type change map[string]*pb.Value // nil takes a field out

// untransformed is the server time left out of a write.
const untransformed = "-uploadedOn"

func (p *place) write(path string, fields map[string]*pb.Value, c change) *pb.Write {
	fields = maps.Clone(fields)
	for k, v := range c {
		if fields[k] = v; v == nil {
			delete(fields, k)
		}
	}
	_, without := c[untransformed]
	delete(fields, untransformed)
	w := &pb.Write{Operation: &pb.Write_Update{Update: &pb.Document{Name: p.parent + "/" + path, Fields: fields}}}
	if _, given := c[uploadedOn]; !given && !without {
		w.UpdateTransforms = uploadedNow()
	}
	return w
}

func aMap() *pb.Value {
	return &pb.Value{ValueType: &pb.Value_MapValue{MapValue: &pb.MapValue{}}}
}

// record is a record at a number, with the server's time, whole.
func (p *place) record(id string, seq int64, c change) *pb.Write {
	return p.write("Devices/"+id, map[string]*pb.Value{
		deviceSeq: integer(seq), deviceTables: numbers(map[string]int64{"t": seq}), deviceToken: text(fmt.Sprint("token", seq)), deviceName: text("phone"),
		devicePlatform: text("linux"), deviceVersion: text("1"), deviceSeen: aMap(), deviceFence: aMap(),
	}, c)
}

// document is a whole document that device A wrote with a number.
func (p *place) document(id string, seq int64, c change) *pb.Write {
	return p.write("t/"+id, map[string]*pb.Value{
		"title": text("hello"), createdOn: integer(1), updatedOn: integer(2), updatedBy: text(deviceA), deleted: boolean(false),
		stamp: text(messages.Stamp{Device: deviceA, Seq: seq}.String()),
	}, c)
}

func tomb(seq int64) change {
	return change{deleted: boolean(true), tombstone: text(messages.Stamp{Device: deviceA, Seq: seq}.String())}
}

func (p *place) remove(path string) *pb.Write {
	return &pb.Write{Operation: &pb.Write_Delete{Delete: p.parent + "/" + path}}
}

func (p *place) get(as *Remote, path string) error {
	return as.signed(p.w.context, func(ctx context.Context) error {
		_, err := as.client.GetDocument(ctx, &pb.GetDocumentRequest{Name: p.parent + "/" + path})
		return err
	})
}

func (p *place) list(as *Remote, collection string) error {
	_, err := answers(p.w.context, as, func(ctx context.Context) (interface {
		Recv() (*pb.RunQueryResponse, error)
	}, error,
	) {
		return as.client.RunQuery(ctx, &pb.RunQueryRequest{Parent: p.parent, QueryType: &pb.RunQueryRequest_StructuredQuery{StructuredQuery: &pb.StructuredQuery{
			From: []*pb.StructuredQuery_CollectionSelector{{CollectionId: collection}},
		}}})
	})()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// listen returns the first word of a listener: a change, or the refusal.
func (p *place) listen(as *Remote, collection string) error {
	ctx, stop := context.WithCancel(p.w.context)
	defer stop()
	if as.user != nil {
		token, err := as.user.token(ctx, "")
		if err != nil {
			return err
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "google-cloud-resource-prefix", as.database)
	s, err := as.client.Listen(ctx)
	if err != nil {
		return err
	}
	err = s.Send(&pb.ListenRequest{Database: as.database, TargetChange: &pb.ListenRequest_AddTarget{AddTarget: &pb.Target{
		TargetId: 1, TargetType: &pb.Target_Query{Query: &pb.Target_QueryTarget{Parent: p.parent, QueryType: &pb.Target_QueryTarget_StructuredQuery{StructuredQuery: &pb.StructuredQuery{
			From: []*pb.StructuredQuery_CollectionSelector{{CollectionId: collection}},
		}}}},
	}}})
	for err == nil {
		var m *pb.ListenResponse
		if m, err = s.Recv(); err != nil {
			break
		}
		change := m.GetTargetChange()
		if change.GetCause() != nil {
			return status.ErrorProto(change.GetCause())
		}
		if m.GetDocumentChange() != nil || change.GetTargetChangeType() == pb.TargetChange_CURRENT {
			return nil
		}
	}
	return err
}

// refused are the requests that the rules are there to refuse. In each only one thing
// is wrong: what is left of it is what a device does.
var refused = []struct {
	name string
	try  func(p *place) error
}{
	// Somebody else's scope.
	{"the other's document: get", func(p *place) error { return p.get(p.other, "t/live") }},
	{"the other's document: list", func(p *place) error { return p.list(p.other, "t") }},
	{"the other's document: listen", func(p *place) error { return p.listen(p.other, "t") }},
	{"the other's document: create", func(p *place) error {
		return p.commit(p.other, p.record(deviceA, 2, nil), p.document("new", 2, nil))
	}},
	{"the other's document: update", func(p *place) error {
		return p.commit(p.other, p.record(deviceA, 2, nil), p.document("live", 2, nil))
	}},
	{"the other's document: delete", func(p *place) error { return p.commit(p.other, p.remove("t/dead")) }},
	{"the other's record: get", func(p *place) error { return p.get(p.other, "Devices/"+deviceA) }},
	{"the other's record: list", func(p *place) error { return p.list(p.other, "Devices") }},
	{"the other's record: listen", func(p *place) error { return p.listen(p.other, "Devices") }},
	{"the other's record: create", func(p *place) error { return p.commit(p.other, p.record(deviceB, 1, nil)) }},
	{"the other's record: update", func(p *place) error { return p.commit(p.other, p.record(deviceA, 2, nil)) }},
	{"the other's record: delete", func(p *place) error { return p.commit(p.other, p.remove("Devices/"+deviceA)) }},
	// Nobody signed in.
	{"unauthenticated: get", func(p *place) error { return p.get(p.nobody, "t/live") }},
	{"unauthenticated: list", func(p *place) error { return p.list(p.nobody, "Devices") }},
	{"unauthenticated: create", func(p *place) error { return p.commit(p.nobody, p.record(deviceB, 1, nil)) }},
	{"unauthenticated: delete", func(p *place) error { return p.commit(p.nobody, p.remove("t/dead")) }},
	// Records.
	{"record: an id that no device has", func(p *place) error { return p.commit(p.mine, p.record("phone", 1, nil)) }},
	{"record: created at another number", func(p *place) error { return p.commit(p.mine, p.record(deviceB, 2, nil)) }},
	{"record: created at another number, without a time", func(p *place) error {
		return p.commit(p.mine, p.record(deviceB, 5, change{untransformed: nil}))
	}},
	{"record: created at 1 with a time of its own", func(p *place) error {
		return p.commit(p.mine, p.record(deviceB, 1, change{uploadedOn: timestamp(time.Unix(1, 0))}))
	}},
	{"record: created at 0 with a time", func(p *place) error { return p.commit(p.mine, p.record(deviceB, 0, nil)) }},
	{"record: created without a field", func(p *place) error { return p.commit(p.mine, p.record(deviceB, 1, change{deviceSeen: nil})) }},
	{"record: two numbers at a time", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 3, nil)) }},
	{"record: back", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 0, nil)) }},
	{"record: back, with the old time", func(p *place) error { return p.commit(p.mine, p.masked(deviceA, change{deviceSeq: integer(0)})) }},
	{"record: a time of its own", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, change{uploadedOn: timestamp(time.Unix(1, 0))}))
	}},
	{"record: another time at the same number", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 1, nil)) }},
	{"record: other tables at the same number", func(p *place) error {
		return p.commit(p.mine, p.masked(deviceA, change{deviceTables: aMap()}))
	}},
	{"record: a field more", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, change{"x": integer(1)})) }},
	{"record: seq is no integer", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, change{deviceSeq: {ValueType: &pb.Value_DoubleValue{DoubleValue: 2}}}))
	}},
	{"record: tables is no map", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, change{deviceTables: text("t")})) }},
	{"record: token is no string", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, change{deviceToken: integer(1)})) }},
	{"record: name is no string", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, change{deviceName: integer(1)})) }},
	{"record: platform is no string", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, change{devicePlatform: integer(1)}))
	}},
	{"record: version is no string", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, change{deviceVersion: integer(1)})) }},
	{"record: seen is no map", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, change{deviceSeen: text("t")})) }},
	{"record: fence is no map", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, change{deviceFence: nil})) }},
	{"record: written as a document", func(p *place) error {
		w := p.document("x", 2, nil)
		w.GetUpdate().Name = p.parent + "/Devices/" + deviceB
		return p.commit(p.mine, p.record(deviceA, 2, nil), w)
	}},
	{"record: forgotten is not true", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, change{deviceForgot: text("yes")}))
	}},
	{"marker: of nothing", func(p *place) error { return p.commit(p.mine, p.record(messages.ForgottenScope, 0, nil)) }},
	{"marker: at a number", func(p *place) error {
		return p.commit(p.mine, p.record(messages.ForgottenScope, 1, change{deviceForgot: boolean(true)}))
	}},
	{"marker: without a time", func(p *place) error {
		return p.commit(p.mine, p.record(messages.ForgottenScope, 0, change{deviceForgot: boolean(true), untransformed: nil}))
	}},
	{"marker: deleted", func(p *place) error {
		g := p.w.forgotten()
		return g.commit(g.mine, g.remove("Devices/"+messages.ForgottenScope))
	}},
	{"the other's record, in a scope that is forgotten: delete", func(p *place) error { g := p.w.forgotten(); return g.commit(g.other, g.remove("Devices/"+deviceA)) }},
	{"record: deleted", func(p *place) error { return p.commit(p.mine, p.remove("Devices/"+deviceA)) }},
	// Documents.
	{"document: without its device's record", func(p *place) error { return p.commit(p.mine, p.document("new", 1, nil)) }},
	{"document: its device's record stays at its number", func(p *place) error {
		return p.commit(p.mine, p.masked(deviceA, change{deviceName: text("other")}), p.document("new", 1, nil))
	}},
	{"document: the record of another device", func(p *place) error {
		return p.commit(p.mine, p.record(deviceB, 1, nil), p.document("new", 1, nil))
	}},
	{"document: of no device", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{updatedBy: text("me")}))
	}},
	{"document: no updatedBy", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{updatedBy: nil}))
	}},
	{"document: an older stamp", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 1, nil)) }},
	{"document: a stamp of another form", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{stamp: text(deviceA + ".2")}))
	}},
	{"document: a stamp under another's name", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{stamp: text(messages.Stamp{Device: deviceB, Seq: 2}.String())}))
	}},
	{"document: no stamp", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{stamp: nil}))
	}},
	{"document: a time of its own", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{uploadedOn: timestamp(time.Unix(1, 0))}))
	}},
	{"document: no uploadedOn", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{untransformed: nil}))
	}},
	{"document: createdOn is no integer", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{createdOn: text("now")}))
	}},
	{"document: updatedOn is missing", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{updatedOn: nil}))
	}},
	{"document: deleted is no boolean", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{deleted: integer(0)}))
	}},
	{"document: deleted is missing", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{deleted: nil}))
	}},
	{"document: alive with a tombstone", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{tombstone: text(messages.Stamp{Device: deviceA, Seq: 2}.String())}))
	}},
	{"document: deleted with the tombstone of before", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("live", 2, tomb(1)))
	}},
	{"document: alive with a survivor", func(p *place) error {
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, change{survivor: text("x")}))
	}},
	{"document: the survivor is no string", func(p *place) error {
		c := tomb(2)
		c[survivor] = integer(1)
		return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("live", 2, c))
	}},
	{"tombstone: resurrected by hand", func(p *place) error { return p.commit(p.mine, p.document("dead", 1, nil)) }},
	{"tombstone: resurrected with the next number, the record left behind", func(p *place) error { return p.commit(p.mine, p.document("dead", 2, nil)) }},
	{"delete: of what is alive", func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, nil), p.remove("t/live")) }},
	{"delete: of what is not there", func(p *place) error { return p.commit(p.mine, p.remove("t/none")) }},
	// Beside the scope.
	{"the scope's own document", func(p *place) error {
		return p.commit(p.mine, &pb.Write{Operation: &pb.Write_Update{Update: &pb.Document{Name: p.parent, Fields: change{"x": integer(1)}}}})
	}},
	{"below a document", func(p *place) error { return p.get(p.mine, "t/live/u/x") }},
}

// masked changes some fields of a record and leaves its number and its time.
func (p *place) masked(id string, c change) *pb.Write {
	return &pb.Write{
		Operation:  &pb.Write_Update{Update: &pb.Document{Name: p.parent + "/Devices/" + id, Fields: c}},
		UpdateMask: &pb.DocumentMask{FieldPaths: slices.Sorted(maps.Keys(c))},
	}
}

func rulesFor(t *testing.T, scope string) string {
	t.Helper()
	rules, err := Rules(scope)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// What devices do passes, or the refusals below would mean nothing.
func TestRulesLetDevicesWork(t *testing.T) {
	w := underRules(t, rulesFor(t, "users/{uid}"))
	for name, try := range map[string]func(p *place) error{
		"get":      func(p *place) error { return p.get(p.mine, "t/live") },
		"list":     func(p *place) error { return p.list(p.mine, "t") },
		"listen":   func(p *place) error { return p.listen(p.mine, "t") },
		"devices":  func(p *place) error { return p.list(p.mine, "Devices") },
		"register": func(p *place) error { return p.commit(p.mine, p.record(deviceB, 0, change{untransformed: nil})) },
		"first commit": func(p *place) error {
			d := p.document("new", 1, change{updatedBy: text(deviceB), stamp: text(messages.Stamp{Device: deviceB, Seq: 1}.String())})
			return p.commit(p.mine, p.record(deviceB, 1, nil), d)
		},
		"tell what was seen": func(p *place) error {
			return p.commit(p.mine, p.masked(deviceA, change{deviceSeen: numbers(map[string]int64{"x": 1}), deviceToken: text("n"), deviceFence: numbers(map[string]int64{"x": 1})}))
		},
		"create, update and delete": func(p *place) error {
			c := tomb(2)
			c[survivor] = text("x")
			return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("new", 2, nil), p.document("live", 2, c))
		},
		"revive": func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, nil), p.document("dead", 2, nil)) },
		"purge":  func(p *place) error { return p.commit(p.mine, p.record(deviceA, 2, nil), p.remove("t/dead")) },
		"forget the device": func(p *place) error {
			return p.commit(p.mine, p.masked(deviceA, change{deviceForgot: boolean(true), deviceName: text(""), deviceSeen: aMap()}))
		},
		"forget the scope": func(p *place) error {
			return p.commit(p.mine, p.record(messages.ForgottenScope, 0, change{deviceForgot: boolean(true)}))
		},
		"remove what is forgotten": func(p *place) error {
			g := p.w.forgotten()
			return g.commit(g.mine, g.masked(messages.ForgottenScope, change{deviceToken: text("n")}), g.remove("t/live"), g.remove("Devices/"+deviceA))
		},
	} {
		if err := try(w.place()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRulesRefuse(t *testing.T) {
	w := underRules(t, rulesFor(t, "users/{uid}"))
	p := w.place()
	for _, row := range refused {
		if err := row.try(p); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v, want a refusal", row.name, err)
		}
	}
}

// A commit may be as large as an upload makes one, however many rules look at it.
func TestRulesTakeTheLargestCommit(t *testing.T) {
	w := underRules(t, rulesFor(t, "users/{uid}"))
	p := w.place()
	writes := []*pb.Write{p.record(deviceA, 2, nil)}
	for i := range messages.MaxCommitWrites - 1 {
		writes = append(writes, p.document(fmt.Sprint("n", i), 2, nil))
	}
	if err := p.commit(p.mine, writes...); err != nil {
		t.Fatalf("%d writes: %v", len(writes), err)
	}
}

// without are the rules with one condition taken out each, by what was taken out.
func without(rules string) map[string]string {
	out := map[string]string{}
	section := ""
	lines := strings.Split(rules, "\n")
	put := func(i int, what, instead string) {
		changed := slices.Clone(lines)
		changed[i] = instead
		out[section+": "+what] = strings.Join(changed, "\n")
	}
	named := regexp.MustCompile(`function (\w+)|(allow [\w, ]+):`)
	list := regexp.MustCompile(`hasAny\(\[(.*)\]\)`)
	for i, line := range lines {
		text := strings.TrimSpace(line)
		if m := named.FindStringSubmatch(text); m != nil && !strings.HasPrefix(text, "//") {
			section = m[1] + m[2]
			if m[2] != "" {
				section = fmt.Sprintf("%s, line %d", section, i+1)
			}
		}
		if strings.HasPrefix(section, "record") || strings.HasPrefix(section, "digits") || strings.HasPrefix(text, "//") {
			continue // they compute; what they give is compared elsewhere
		}
		end := ""
		if strings.HasSuffix(text, ";") {
			end = ";"
		}
		bare := strings.TrimSuffix(text, ";")
		switch {
		case strings.HasPrefix(bare, "&& "):
			put(i, strings.TrimPrefix(bare, "&& "), end)
		case strings.HasPrefix(bare, "return "):
			put(i, strings.TrimPrefix(bare, "return "), "return true"+end)
		case strings.HasPrefix(bare, "allow "):
			put(i, "mine()", strings.Replace(line, "mine()", "true", 1))
		}
		if m := list.FindStringSubmatch(line); m != nil {
			fields := strings.Split(m[1], ", ")
			for _, field := range fields {
				rest := slices.DeleteFunc(slices.Clone(fields), func(f string) bool { return f == field })
				put(i, field+" in the list", strings.Replace(line, m[1], strings.Join(rest, ", "), 1))
			}
		}
	}
	return out
}

// Every condition of the rules is needed: without it something passes that is refused
// with it. With -v it prints what.
func TestEveryRuleIsNeeded(t *testing.T) {
	rules := rulesFor(t, "users/{uid}")
	w := underRules(t, rules)
	p := w.place()
	// passes is the first request but some that goes through.
	passes := func(rules string, but map[string]bool) string {
		w.load(rules)
		for _, row := range refused {
			if but[row.name] {
				continue
			}
			err := row.try(p)
			if err == nil {
				p, w.gone = w.place(), nil // it is another place now
				return row.name
			}
			if c := status.Code(err); c != codes.PermissionDenied && c != codes.NotFound {
				t.Fatalf("%s: %v", row.name, err)
			}
		}
		return ""
	}
	broken := without(rules)
	if len(broken) < 40 {
		t.Fatalf("only %d conditions were found in the rules", len(broken))
	}
	var again []string
	for _, what := range slices.Sorted(maps.Keys(broken)) {
		passed := passes(broken[what], nil)
		t.Logf("without %-100s passes: %s", what, passed)
		if passed == "" {
			again = append(again, what)
		}
	}
	// One is held twice: a document cannot be written without the record, which is only
	// the owner's to write. With the other lock open it is this one that holds.
	twin := func(rules string) string {
		return strings.Replace(rules, "allow update: if mine()", "allow update: if true", 1)
	}
	known := map[string]bool{}
	for name := passes(twin(rules), known); name != ""; name = passes(twin(rules), known) {
		known[name] = true
	}
	for _, what := range again {
		passed := passes(twin(broken[what]), known)
		t.Logf("without %-100s and the record's owner passes: %s", what, passed)
		if passed == "" || !strings.HasPrefix(what, "allow create, update") {
			t.Errorf("without %s nothing passes that is refused with it", what)
		}
	}
}

func TestScopesThatRulesCanBeMadeFor(t *testing.T) {
	for _, scope := range []string{"", "users", "users/alice", "{uid}/x", "users/{uid}/x", "users/{uid}/x/{uid}", "users/{team}", "a b/{uid}", "users/{uid}/x/a\nb", "users/{uid}/__x__/y", "users/{uid}/x/{y}"} {
		_, err := Rules(scope)
		one(t, scope, err, messages.ErrRejected)
	}
	rules := rulesFor(t, "apps/notes.v1/users/{uid}")
	w := underRules(t, rules)
	for user, want := range map[string]error{"alice": nil, "bob": messages.ErrUnauthorized} {
		r := w.as(user, "apps/notes.v1/users/alice")
		_, err := r.Commit(t.Context(), messages.Commit{
			Device: messages.Device{ID: deviceA, Seq: 1, Token: "t"}, Announce: true,
			Writes: []messages.Write{{Document: messages.Document{Table: "a/b", ID: "x", UpdatedBy: deviceA, Stamp: messages.Stamp{Device: deviceA, Seq: 1}}}},
		})
		one(t, user, err, want)
	}
}
