package firestore

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"
	"google.golang.org/protobuf/proto"

	"github.com/tidemark-sync/tidemark/messages"
)

func FuzzNames(f *testing.F) {
	for _, name := range []string{"", "%", "%25", "title", "stamp", "%73tamp", "__id__", "____", "Devices", "a/b", ".", "..", "é", "\xff", "`", `a\`, "\x00", "%zz", "%6", "%c3\xa9"} {
		f.Add(name, "x"+name)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		field := fieldName(a)
		if field == "" || isMeta(field) || reserved(field) || utf8.ValidString(a) && len(a) < 1000 && !utf8.ValidString(field) {
			t.Errorf("column %q is stored as the field %q", a, field)
		}
		if back, ok := columnName(field); !ok || back != a {
			t.Errorf("column %q is stored as %q and comes back as %q, %v", a, field, back, ok)
		}
		// Somebody else's field: a column of its own, or none.
		if column, ok := columnName(b); ok && fieldName(column) != b {
			t.Errorf("field %q is read as column %q, which is stored as %q", b, column, fieldName(column))
		}
		if utf8.ValidString(a) && len(a) < 400 {
			if c := collectionID(a); !validID(c) || c == devicesCollection {
				t.Errorf("table %q is stored in %q", a, c)
			}
		}
		if a != b && (collectionID(a) == collectionID(b) || fieldName(a) == fieldName(b) || fieldPath(a) == fieldPath(b)) {
			t.Errorf("%q and %q meet", a, b)
		}
		if p := fieldPath(a); strings.Count(strings.NewReplacer(`\\`, "", "\\`", "").Replace(p), "`") != 2 {
			t.Errorf("the path of %q is not one name: %s", a, p)
		}
	})
}

func FuzzValues(f *testing.F) {
	f.Add(int64(math.MinInt64), math.Copysign(0, -1), "text", []byte{}, true)
	f.Add(int64(1<<53+1), math.Inf(-1), "a\x00b", []byte{0, 0xff}, false)
	f.Add(int64(0), math.NaN(), "\xff", []byte(nil), false)
	f.Fuzz(func(t *testing.T, n int64, x float64, s string, b []byte, yes bool) {
		if b == nil {
			b = []byte{}
		}
		for _, v := range []any{nil, n, x, s, b, yes} {
			value, ok := encode(v)
			if !ok {
				if text, is := v.(string); !is || utf8.ValidString(text) {
					t.Errorf("%#v is refused", v)
				}
				continue
			}
			raw, err := proto.Marshal(value)
			if err != nil {
				t.Fatalf("%#v: %v", v, err)
			}
			var there pb.Value
			if err := proto.Unmarshal(raw, &there); err != nil {
				t.Fatalf("%#v: %v", v, err)
			}
			got := decode(&there)
			if fl, is := v.(float64); is {
				if back, is := got.(float64); !is || math.Float64bits(fl) != math.Float64bits(back) {
					t.Errorf("%v came back as %#v", fl, got)
				}
			} else if !reflect.DeepEqual(v, got) {
				t.Errorf("%#v came back as %#v", v, got)
			}
		}
		if back := toNumbers(numbers(map[string]int64{s: n, "stamp": 1})); back[s] != n && s != "stamp" || len(back) > 2 {
			t.Errorf("%q: %d came back as %v", s, n, back)
		}
	})
}

// FuzzDocument: whatever the server sends as a document or as a record is read, and
// what was read can be written and read again.
func FuzzDocument(f *testing.F) {
	add := func(d *pb.Document) {
		raw, err := proto.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	w, err := (&Remote{parent: "projects/p/databases/(default)/documents/users/alice"}).documentWrite(&messages.Write{Document: messages.Document{
		Table: "t", ID: "a", CreatedOn: 1, UpdatedOn: 2, UpdatedBy: "d", Deleted: true, Survivor: "b", Stamp: messages.Stamp{Device: "d", Seq: 7},
		Fields: map[string]any{"n": int64(1), "": 0.5, "stamp": "x", "b": []byte("y"), "%": true, "none": nil},
	}})
	if err != nil {
		f.Fatal(err)
	}
	add(w.GetUpdate())
	add(&pb.Document{})
	add(&pb.Document{Name: "a/b/", Fields: map[string]*pb.Value{"createdOn": timestamp(fromMicros(math.MaxInt64).AsTime()), "updatedOn": {ValueType: &pb.Value_DoubleValue{DoubleValue: 1e300}}, "x": {}, "seen": numbers(map[string]int64{"": -1})}})
	f.Add([]byte{0x0a, 0x01, 0xff, 0x12, 0x04, 0x0a, 0x00, 0x12, 0x00})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p pb.Document
		if proto.Unmarshal(raw, &p) != nil {
			return
		}
		toDevice(&p)
		d := toDocument("t", &p)
		r := &Remote{parent: "projects/p/databases/(default)/documents/users/alice"}
		for column, v := range d.Fields {
			if _, is := v.(messages.Unsupported); is {
				delete(d.Fields, column)
			}
		}
		w, err := r.documentWrite(&messages.Write{Document: d, Expect: d.UpdateTime})
		if err != nil {
			return
		}
		if raw, err = proto.Marshal(w); err != nil {
			t.Fatalf("%+v: %v", d, err)
		}
		var sent pb.Write
		if err := proto.Unmarshal(raw, &sent); err != nil {
			t.Fatal(err)
		}
		sent.GetUpdate().UpdateTime, sent.GetUpdate().CreateTime = p.GetUpdateTime(), p.GetCreateTime()
		again := toDocument("t", sent.GetUpdate())
		d.UploadedOn = again.UploadedOn // the server's
		if !d.Deleted {
			d.Survivor = "" // only a tombstone has one
		}
		for column, v := range d.Fields {
			if x, is := v.(float64); is && math.IsNaN(x) {
				delete(d.Fields, column)
				delete(again.Fields, column)
			}
		}
		if !reflect.DeepEqual(d, again) {
			t.Errorf("%#v came back as %#v", d, again)
		}
	})
}
