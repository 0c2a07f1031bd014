package messages

import (
	"encoding/json"
	"errors"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// decodes checks one type of message: what is accepted goes out and comes in again
// as it is, what is not is rejected as such.
func decodes[T any](t *testing.T, topic string, payload []byte) {
	t.Helper()
	m, err := Decode[T](topic, payload)
	if err != nil {
		if !errors.Is(err, ErrRejected) {
			t.Errorf("%s: %v has no class", topic, err)
		}
		return
	}
	raw, err := Encode(topic, m)
	if err != nil {
		t.Fatalf("%s: %+v: %v", topic, m, err)
	}
	again, err := Decode[T](topic, raw)
	if err != nil {
		t.Fatalf("%s: %s: %v", topic, raw, err)
	}
	if !reflect.DeepEqual(m, again) {
		t.Errorf("%s: %+v came back as %+v", topic, m, again)
	}
	if _, err := Decode[T](topic+"?", raw); !errors.Is(err, ErrRejected) {
		t.Errorf("%s: taken from another topic: %v", topic, err)
	}
}

func FuzzDecode(f *testing.F) {
	for topic, m := range map[string]any{
		"SyncRequested":    SyncRequested{Cycle: "c", Round: 1, Full: true},
		"DevicesChecked":   DevicesChecked{Cycle: "c", ReadTime: 1 << 60, Tables: []string{"a", "\x00\u2028<"}},
		"TableRequested":   TableRequested{Cycle: "c", Table: `a "b"`, Tables: []string{}},
		"TableDownloaded":  TableDownloaded{Cycle: "c", Table: "\xff"},
		"DownloadSettled":  DownloadSettled{Again: true},
		"DirtyUploaded":    DirtyUploaded{Round: -1},
		"DeviceRegistered": DeviceRegistered{},
		"BackupReady":      BackupReady{Generation: "g"},
	} {
		raw, err := Encode(topic, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(topic, raw)
	}
	f.Add("SyncRequested", []byte(`{"v":1,"topic":"SyncRequested","body":{}}{`))
	f.Add("SyncRequested", []byte(`{"v":1,"topic":"SyncRequested","body":null}`))
	f.Add("SyncRequested", []byte(`{"v":1,"topic":"SyncRequested"}`))
	f.Add("SyncRequested", []byte(`{"v":1e0,"topic":"SyncRequested","body":{"round":1e400}}`))
	f.Add("SyncRequested", []byte(strings.Repeat(`[`, 20_000)))
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		decodes[SyncRequested](t, topic, payload)
		decodes[DevicesChecked](t, topic, payload)
		decodes[TableRequested](t, topic, payload)
		decodes[TableDownloaded](t, topic, payload)
		decodes[DownloadSettled](t, topic, payload)
		decodes[DirtyUploaded](t, topic, payload)
		decodes[DeviceRegistered](t, topic, payload)
		decodes[BackupReady](t, topic, payload)
		decodes[Step](t, topic, payload)
		decodes[Vector](t, topic, payload)
		decodes[Device](t, topic, payload)
		decodes[DeviceList](t, topic, payload)
		// The body alone, in an envelope that is right.
		raw, err := json.Marshal(envelope{Version: EnvelopeVersion, Topic: topic, Body: payload})
		if err == nil {
			decodes[TableRequested](t, topic, raw)
			decodes[DeviceList](t, topic, raw)
			decodes[Step](t, topic, raw)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	sum := strings.Repeat("0a", 32)
	snapshot := func(key string) string {
		return `{"generation":"g","key":"` + key + `","size":1,"rawSize":1,"sha256":"` + sum + `","seen":{"a":1},"downloadedTill":null,"device":"d"}`
	}
	for _, key := range []string{"snapshots/g.db.zst", "snapshots/..", "snapshots/a/b", "snapshots/%2e%2e%2fx", `snapshots/\u0000`, `snapshots/a\\b`, "snapshots/.", "snapshots/ ", "snapshots/é"} {
		f.Add([]byte(`{"format":1,"current":` + snapshot(key) + `,"older":[` + snapshot("snapshots/old") + `],"retired":[{"key":"` + key + `","on":1}]}`))
	}
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"FORMAT":1,"current":{"seen":{"a":1e99}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseManifest(raw)
		if err != nil {
			if !errors.Is(err, ErrRejected) {
				t.Errorf("%v has no class", err)
			}
			return
		}
		var keys []string
		for _, r := range m.Retired {
			keys = append(keys, r.Key)
		}
		for _, s := range m.Snapshots() {
			keys = append(keys, s.Objects()...)
			if s.Size <= 0 || s.RawSize <= 0 || len(s.SHA256) != 64 {
				t.Errorf("%+v", s)
			}
		}
		for _, key := range keys {
			if path.Clean(key) != key || path.Dir(key)+"/" != SnapshotPrefix || strings.ContainsAny(key, "\\\x00") {
				t.Errorf("the key %q is outside of %s", key, SnapshotPrefix)
			}
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseManifest(again)
		if err != nil || !reflect.DeepEqual(withoutEmpty(m), withoutEmpty(back)) {
			t.Errorf("%+v came back as %+v, %v", m, back, err)
		}
	})
}

// withoutEmpty: a list that is empty is not written.
func withoutEmpty(m Manifest) Manifest {
	if len(m.Older) == 0 {
		m.Older = nil
	}
	if len(m.Retired) == 0 {
		m.Retired = nil
	}
	m.Older = slices.Clone(m.Older)
	for i := range m.Older {
		if len(m.Older[i].Rows) == 0 {
			m.Older[i].Rows = nil
		}
	}
	if len(m.Current.Rows) == 0 {
		m.Current.Rows = nil
	}
	return m
}

// FuzzVector: merging two vectors covers both and nothing beyond.
func FuzzVector(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":2}`), []byte(`{"a":2,"c":0}`))
	f.Add([]byte(`null`), []byte(`{"":-1}`))
	f.Fuzz(func(t *testing.T, rawA, rawB []byte) {
		var a, b Vector
		if json.Unmarshal(rawA, &a) != nil || json.Unmarshal(rawB, &b) != nil {
			return
		}
		both := a.Clone()
		for d, n := range b {
			both.Raise(d, n)
		}
		if !both.Covers(a) || !both.Covers(b) || !both.Covers(nil) {
			t.Errorf("%v with %v is %v and does not cover both", a, b, both)
		}
		for d, n := range both {
			if n != a[d] && n != b[d] {
				t.Errorf("%v with %v is %v", a, b, both)
			}
		}
		if a.Covers(b) && b.Covers(a) && !reflect.DeepEqual(positive(a), positive(b)) {
			t.Errorf("%v and %v cover each other", a, b)
		}
	})
}

// positive drops the devices of which nothing was seen.
func positive(v Vector) Vector {
	out := Vector{}
	for d, n := range v {
		if n > 0 {
			out[d] = n
		}
	}
	return out
}
