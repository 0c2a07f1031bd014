package messages

import (
	"errors"
	"strings"
	"testing"
)

func TestStampsSortByNumberAndComeBack(t *testing.T) {
	last := ""
	for _, n := range []int64{0, 1, 9, 10, 99_999, MaxSeq} {
		s := Stamp{Device: "d.1", Seq: n}
		if s.String() <= last {
			t.Errorf("%q does not sort after %q", s, last)
		}
		last = s.String()
		if back, err := ParseStamp(last); err != nil || back != s {
			t.Errorf("%q came back as %v, %v", last, back, err)
		}
	}
}

func FuzzParseStamp(f *testing.F) {
	f.Add("d.0000000000000001")
	f.Add("d.-000000000000001")
	f.Add("d.+000000000000001")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		st, err := ParseStamp(s)
		if err != nil {
			if !errors.Is(err, ErrRejected) {
				t.Errorf("%q: %v has no class", s, err)
			}
			return
		}
		if st.Seq < 0 || st.Seq > MaxSeq || st.String() != s {
			t.Errorf("%q is read as %+v, which is written %q", s, st, st)
		}
	})
}

func TestEnvelopeRefusesWhatItCannotTrust(t *testing.T) {
	good, err := Encode("TableRequested", TableRequested{Cycle: "c", Table: `a "b"`})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := Decode[TableRequested]("TableRequested", good); err != nil || m.Table != `a "b"` {
		t.Errorf("round trip: %+v, %v", m, err)
	}
	for name, payload := range map[string]string{
		"another topic": strings.Replace(string(good), "TableRequested", "SyncRequested", 1),
		"newer version": strings.Replace(string(good), `"v":1`, `"v":99`, 1),
		"no version":    strings.Replace(string(good), `"v":1`, `"v":0`, 1),
		"cut off":       string(good[:len(good)-3]),
		"empty":         "",
		"wrong type":    `{"v":1,"topic":"TableRequested","body":[1]}`,
	} {
		if _, err := Decode[TableRequested]("TableRequested", []byte(payload)); !errors.Is(err, ErrRejected) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestRefusesWhatItCannotTrust(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	good := `{"format":1,"current":{"generation":"g","key":"snapshots/g.db.zst","size":1,"rawSize":1,"sha256":"` + sum + `"}}`
	if m, err := ParseManifest([]byte(good)); err != nil || m.Current.Generation != "g" {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, change := range map[string][2]string{
		"newer format":       {`"format":1`, `"format":3`},
		"no format":          {`"format":1`, `"format":0`},
		"outside its prefix": {"snapshots/g", "elsewhere/g"},
		"a newer snapshot":   {`"generation"`, `"format":3,"generation"`},
		"no file checksum":   {`"generation"`, `"format":2,"generation"`},
		"encrypted in 1":     {`"generation"`, `"encrypted":true,"generation"`},
		"a part elsewhere":   {`"generation"`, `"format":2,"rawSha256":"` + sum + `","parts":[{"generation":"f","key":"other/f","size":1,"sha256":"` + sum + `"}],"generation"`},
		"a folder up":        {"snapshots/g", "snapshots/../g"},
		"below":              {"snapshots/g", "snapshots/x/g"},
		"no size":            {`"size":1`, `"size":0`},
		"a negative size":    {`"rawSize":1`, `"rawSize":-1`},
		"a short checksum":   {sum, sum[2:]},
		"no generation":      {`"generation":"g"`, `"generation":""`},
		"no JSON":            {"}}", ""},
	} {
		if _, err := ParseManifest([]byte(strings.Replace(good, change[0], change[1], 1))); !errors.Is(err, ErrRejected) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVectorCovers(t *testing.T) {
	v := Vector{"a": 2, "b": 1}
	for _, c := range []struct {
		o    Vector
		want bool
	}{{nil, true}, {Vector{"a": 2}, true}, {Vector{"a": 3}, false}, {Vector{"c": 1}, false}, {Vector{"c": 0}, true}} {
		if v.Covers(c.o) != c.want {
			t.Errorf("%v covers %v: %v", v, c.o, !c.want)
		}
	}
}
