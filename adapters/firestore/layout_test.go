package firestore

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/genproto/googleapis/type/latlng"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tidemark-sync/tidemark/integration/servers"
	"github.com/tidemark-sync/tidemark/messages"
)

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

func open(t *testing.T) (*Remote, Config) {
	t.Helper()
	cfg := Config{Project: servers.Project(t), Scope: "users/alice", Emulator: servers.Firestore(t)}
	r, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, cfg
}

// raw reads a document over REST, as somebody who knows nothing of this package:
// field → {type: value}; nil when there is none.
func raw(t *testing.T, cfg Config, collection, id string) map[string]map[string]any {
	t.Helper()
	u := "http://" + cfg.Emulator + "/v1/projects/" + cfg.Project + "/databases/(default)/documents/" + strings.TrimPrefix(cfg.Scope+"/", "/") + url.PathEscape(collection) + "/" + url.PathEscape(id)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer owner")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil
	}
	var doc struct {
		Fields map[string]map[string]any `json:"fields"`
	}
	if err := json.Unmarshal(body, &doc); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %s %v", u, resp.Status, body, err)
	}
	return doc.Fields
}

func commit(t *testing.T, r *Remote, c messages.Commit) messages.Committed {
	t.Helper()
	done, err := r.Commit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func TestDocumentAsStored(t *testing.T) {
	r, cfg := open(t)
	doc := messages.Document{
		Table: "a/b", ID: "x", CreatedOn: 1, UpdatedOn: 2, UpdatedBy: "devA", Stamp: messages.Stamp{Device: "devA", Seq: 7},
		Fields: map[string]any{"title": "hello", "stamp": "mine", "": int64(math.MaxInt64), "we`ird \\.": nil, "blob": []byte{}, "half": 0.5, "yes": true},
	}
	done := commit(t, r, messages.Commit{Device: messages.Device{ID: "devA", Seq: 7, Token: "t"}, Announce: true, Writes: []messages.Write{{Document: doc}}})
	if done.Writes != 2 || done.Deletes != 0 {
		t.Errorf("billed %+v, want the document and the record", done)
	}
	got := raw(t, cfg, "a%2Fb", "x")
	if _, ok := got["uploadedOn"]["timestampValue"]; !ok {
		t.Errorf("uploadedOn is %v, want a timestamp", got["uploadedOn"])
	}
	delete(got, "uploadedOn")
	want := map[string]map[string]any{
		"title": {"stringValue": "hello"}, "%73tamp": {"stringValue": "mine"}, "%": {"integerValue": strconv.Itoa(math.MaxInt64)},
		"we`ird \\.": {"nullValue": nil}, "blob": {"bytesValue": ""}, "half": {"doubleValue": 0.5}, "yes": {"booleanValue": true},
		"createdOn": {"integerValue": "1"}, "updatedOn": {"integerValue": "2"}, "updatedBy": {"stringValue": "devA"},
		"deleted": {"booleanValue": false}, "stamp": {"stringValue": "devA.0000000000000007"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("stored as\n%v\nwant\n%v", got, want)
	}
	page, err := r.Documents(t.Context(), "a/b", []string{"x"}, done.UpdateTime)
	if err != nil || len(page.Documents) != 1 {
		t.Fatal(page, err)
	}
	back := page.Documents[0]
	if back.UploadedOn == 0 || back.UpdateTime != done.UpdateTime {
		t.Errorf("uploadedOn %d, update time %d, want the commit's %d", back.UploadedOn, back.UpdateTime, done.UpdateTime)
	}
	back.UploadedOn, back.UpdateTime = 0, 0
	if !reflect.DeepEqual(back, doc) {
		t.Errorf("came back as\n%#v\nwant\n%#v", back, doc)
	}
}

func TestTombstoneAsStoredAndRevived(t *testing.T) {
	r, cfg := open(t)
	device := messages.Device{ID: "devA", Seq: 1, Token: "t"}
	doc := messages.Document{Table: "t", ID: "x", UpdatedBy: "devA", Stamp: messages.Stamp{Device: "devA", Seq: 1}, Fields: map[string]any{"a": int64(1), "b": "kept"}}
	done := commit(t, r, messages.Commit{Device: device, Announce: true, Writes: []messages.Write{{Document: doc}}})

	gone := doc
	gone.Fields, gone.Deleted, gone.Survivor = nil, true, "y"
	gone.Stamp.Seq = 2
	done = commit(t, r, messages.Commit{Device: device, Expect: done.UpdateTime, Announce: true, Writes: []messages.Write{{Document: gone, Expect: done.UpdateTime}}})
	got := raw(t, cfg, "t", "x")
	for field, want := range map[string]any{"tombstone": "devA.0000000000000002", "stamp": "devA.0000000000000002", "survivor": "y", "b": "kept"} {
		if got[field]["stringValue"] != want {
			t.Errorf("on the tombstone %s is %v, want %v", field, got[field], want)
		}
	}
	if got["deleted"]["booleanValue"] != true {
		t.Errorf("deleted is %v", got["deleted"])
	}

	doc.Stamp.Seq, doc.Fields = 3, map[string]any{"a": int64(2)}
	done = commit(t, r, messages.Commit{Device: device, Expect: done.UpdateTime, Announce: true, Writes: []messages.Write{{Document: doc, Expect: done.UpdateTime}}})
	got = raw(t, cfg, "t", "x")
	if got["tombstone"] != nil || got["survivor"] != nil || got["deleted"]["booleanValue"] != false || got["b"]["stringValue"] != "kept" {
		t.Errorf("revived as %v", got)
	}

	done = commit(t, r, messages.Commit{Device: device, Expect: done.UpdateTime, Writes: []messages.Write{{Document: doc, Expect: done.UpdateTime, Purge: true}}})
	if done.Writes != 1 || done.Deletes != 1 {
		t.Errorf("billed %+v, want one delete and the record", done)
	}
	if got := raw(t, cfg, "t", "x"); got != nil {
		t.Errorf("after the purge there is %v", got)
	}
}

func TestDeviceAsStored(t *testing.T) {
	r, cfg := open(t)
	device := messages.Device{
		ID: "devA", Seq: 3, Tables: map[string]int64{"notes": 3, "a.b/c": 2, "": 1, "__x__": 1, "stamp": 1}, Token: "token",
		Name: "Anna's phone", Platform: "android", Version: "1.2", Seen: messages.Vector{"dev.B": 9}, Fence: messages.Vector{"devC": 1},
	}
	done := commit(t, r, messages.Commit{Device: device})
	got := raw(t, cfg, "Devices", "devA")
	if got["uploadedOn"] != nil {
		t.Errorf("uploadedOn is %v without an announcement", got["uploadedOn"])
	}
	tables := fmt.Sprint(got["tables"]["mapValue"])
	for _, want := range []string{"notes:map[integerValue:3]", "a.b/c:map[integerValue:2]", "%:map[integerValue:1]", "%5F_x__:map[integerValue:1]"} {
		if !strings.Contains(tables, want) {
			t.Errorf("tables are %s, want %s among them", tables, want)
		}
	}
	for field, want := range map[string]string{"token": "token", "name": "Anna's phone", "platform": "android", "version": "1.2"} {
		if got[field]["stringValue"] != want {
			t.Errorf("%s is %v, want %s", field, got[field], want)
		}
	}
	if got["seq"]["integerValue"] != "3" {
		t.Errorf("seq is %v", got["seq"])
	}
	back, err := r.Device(t.Context(), "devA")
	if err != nil {
		t.Fatal(err)
	}
	device.UpdateTime = done.UpdateTime
	if !reflect.DeepEqual(back, device) {
		t.Errorf("came back as\n%+v\nwant\n%+v", back, device)
	}
}

// Anybody with the database's credentials may have written a document.
func TestForeignDocuments(t *testing.T) {
	at := &timestamppb.Timestamp{Seconds: 1000, Nanos: 5_000_000}
	document := func(fields map[string]*pb.Value) *pb.Document {
		return &pb.Document{Name: "projects/p/databases/d/documents/t/x", CreateTime: &timestamppb.Timestamp{Seconds: 900}, UpdateTime: at, Fields: fields}
	}
	d := toDocument("t", document(nil))
	if d.CreatedOn != 900_000 || d.UpdatedOn != 1_000_005 || d.Stamp != (messages.Stamp{}) || d.UpdateTime != 1_000_005_000 {
		t.Errorf("a document without our fields is %+v", d)
	}
	wrong := &pb.Value{ValueType: &pb.Value_ArrayValue{}}
	all := map[string]*pb.Value{"n": {}}
	for _, f := range []string{createdOn, updatedOn, updatedBy, uploadedOn, deleted, stamp, tombstone, survivor} {
		all[f] = wrong
	}
	d = toDocument("t", document(all))
	if d.CreatedOn != 900_000 || d.UpdatedOn != 1_000_005 || d.UpdatedBy != "" || d.Deleted || d.Stamp != (messages.Stamp{}) {
		t.Errorf("a document with fields of the wrong types is %+v", d)
	}
	d = toDocument("t", document(map[string]*pb.Value{updatedOn: timestamp(at.AsTime()), createdOn: {ValueType: &pb.Value_DoubleValue{DoubleValue: 7}}, stamp: text("no stamp")}))
	if d.UpdatedOn != 1_000_005 || d.CreatedOn != 7 || d.Stamp != (messages.Stamp{}) {
		t.Errorf("times of other types are %+v", d)
	}
	for name, v := range map[string]*pb.Value{
		"timestamp": timestamp(at.AsTime()), "map": numbers(nil), "array": wrong,
		"reference": {ValueType: &pb.Value_ReferenceValue{}}, "geopoint": {ValueType: &pb.Value_GeoPointValue{GeoPointValue: &latlng.LatLng{}}},
		"unknown": {},
	} {
		if got := decode(v); got != (messages.Unsupported{Type: name}) {
			t.Errorf("a %s is read as %#v", name, got)
		}
	}
	for _, f := range []string{deviceSeq, deviceTables, deviceToken, deviceSeen, uploadedOn} {
		if got := toDevice(document(map[string]*pb.Value{f: {ValueType: &pb.Value_GeoPointValue{}}})); got.Seq != 0 || len(got.Tables) != 0 {
			t.Errorf("a record with a wrong %s is %+v", f, got)
		}
	}
}

func TestWhatTheServerWouldNeverTake(t *testing.T) {
	r, _ := open(t)
	good := messages.Device{ID: "devA", Token: "t"}
	write := func(d messages.Document) messages.Commit {
		return messages.Commit{Device: good, Writes: []messages.Write{{Document: d}}}
	}
	for name, c := range map[string]messages.Commit{
		"no installation id":    {},
		"bad installation id":   {Device: messages.Device{ID: "a/b"}},
		"device's name":         {Device: messages.Device{ID: "a", Name: "\xff"}},
		"table in the record":   {Device: messages.Device{ID: "a", Tables: map[string]int64{"\xff": 1}}},
		"no document id":        write(messages.Document{Table: "t"}),
		"reserved document id":  write(messages.Document{Table: "t", ID: "__x__"}),
		"table's name":          write(messages.Document{Table: "\xff", ID: "x"}),
		"text":                  write(messages.Document{Table: "t", ID: "x", Fields: map[string]any{"a": "\xff"}}),
		"column's name":         write(messages.Document{Table: "t", ID: "x", Fields: map[string]any{"\xff": "a"}}),
		"value of the server's": write(messages.Document{Table: "t", ID: "x", Fields: map[string]any{"a": messages.Unsupported{Type: "map"}}}),
		"too large":             write(messages.Document{Table: "t", ID: "x", Fields: map[string]any{"a": strings.Repeat("x", messages.MaxDocumentBytes)}}),
	} {
		_, err := r.Commit(t.Context(), c)
		one(t, name, err, messages.ErrRejected)
	}
	// Larger than the emulator takes at once: the answer must come, not a hang.
	large := messages.Commit{Device: good}
	for i := range 6 {
		large.Writes = append(large.Writes, messages.Write{Document: messages.Document{Table: "t", ID: strconv.Itoa(i), Fields: map[string]any{"a": strings.Repeat("x", 900_000)}}})
	}
	_, err := r.Commit(t.Context(), large)
	one(t, "a commit of 5.4 MB", err, messages.ErrRejected)
}

// The stamps of the device "a.0" lie within the range of the device "a".
func TestADeviceWhoseIDStartsWithAnothers(t *testing.T) {
	r, _ := open(t)
	for i, id := range []string{"a", "a.0"} {
		commit(t, r, messages.Commit{Device: messages.Device{ID: id, Seq: 5, Token: "t"}, Announce: true, Writes: []messages.Write{{
			Document: messages.Document{Table: "t", ID: strconv.Itoa(i), UpdatedBy: id, Stamp: messages.Stamp{Device: id, Seq: 5}},
		}}})
	}
	for _, id := range []string{"a", "a.0"} {
		list, err := r.Devices(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		_, err = r.Read(t.Context(), messages.Query{Table: "t", Device: id, After: messages.Position{Stamp: messages.Stamp{Device: id}}, ReadTime: list.ReadTime}, func(d messages.Document) error {
			got = append(got, d.UpdatedBy)
			return nil
		})
		if err != nil || len(got) != 1 || got[0] != id {
			t.Errorf("of device %s: %v, %v", id, got, err)
		}
	}
}

// More ids than one request takes, and some that no document can have.
func TestALookupInBatches(t *testing.T) {
	r, _ := open(t)
	done := commit(t, r, messages.Commit{Device: messages.Device{ID: "a", Token: "t"}, Writes: []messages.Write{{Document: messages.Document{Table: "t", ID: "id-1234"}}}})
	ids := []string{"", "a/b", "..", "\xff"}
	for i := range 1235 {
		ids = append(ids, fmt.Sprint("id-", i))
	}
	for _, at := range []int64{0, done.UpdateTime} {
		page, err := r.Documents(t.Context(), "t", ids, at)
		if err != nil || len(page.Documents) != 1 || page.Documents[0].ID != "id-1234" || page.Reads != 1235 {
			t.Errorf("at %d: %d documents, %d reads, %v", at, len(page.Documents), page.Reads, err)
		}
	}
}
