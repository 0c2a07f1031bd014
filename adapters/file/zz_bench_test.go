package file_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tidemark-sync/tidemark/adapters/file"
	"github.com/tidemark-sync/tidemark/messages"
)

func rss() string {
	b, _ := os.ReadFile("/proc/self/status")
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "VmHWM") {
			fmt.Print(strings.Join(strings.Fields(l), " "), "  ")
		}
	}
	return ""
}

func TestBig(t *testing.T) {
	dir := "/tmp/bench/r"
	os.RemoveAll(dir)
	r, err := file.OpenRemote(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	N := 100000
	dev := messages.Device{ID: "dev-aaaaaaaaaaaaaaaaaaaa", Tables: map[string]int64{"docs": 1}}
	var v int64
	start := time.Now()
	var worst time.Duration
	for n := 0; n < N; n += 500 {
		dev.Seq++
		c := messages.Commit{Device: dev, Expect: v, Announce: true}
		for i := range 500 {
			c.Writes = append(c.Writes, messages.Write{Document: messages.Document{Table: "docs", ID: fmt.Sprintf("%08x-%08x", uint32(n+i)*2654435761, n+i), UpdatedBy: dev.ID,
				Stamp: messages.Stamp{Device: dev.ID, Seq: dev.Seq}, Fields: map[string]any{"name": strings.Repeat("x", 150), "n": int64(i), "f": 1.5, "z": nil}}})
		}
		s := time.Now()
		d, err := r.Commit(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if e := time.Since(s); n > 5000 {
			worst = max(worst, e)
		}
		v = d.UpdateTime
		if n%50000 == 0 {
			fmt.Println(n, time.Since(start), "worst", worst, rss())
		}
	}
	s := time.Now()
	l, err := r.Devices(t.Context(), time.Now().UnixMilli()+1000)
	fmt.Println("devices", time.Since(s), err)
	s = time.Now()
	l, err = r.Devices(t.Context(), time.Now().UnixMilli()+1000)
	fmt.Println("devices", time.Since(s), err)
	for _, q := range []messages.Query{
		{Table: "docs", ReadTime: l.ReadTime, Limit: 20000, After: messages.Position{ID: "8"}},
		{Table: "docs", Device: dev.ID, ReadTime: l.ReadTime, Limit: 20000, After: messages.Position{Stamp: messages.Stamp{Device: dev.ID, Seq: 1000}, ID: "8"}},
		{Table: "docs", Device: dev.ID, ReadTime: l.ReadTime, Limit: 20000, After: messages.Position{Stamp: messages.Stamp{Device: dev.ID, Seq: 1500}}},
		{Table: "docs", ReadTime: l.ReadTime},
	} {
		s = time.Now()
		n, err := r.Read(t.Context(), q, func(messages.Document) error { return nil })
		fmt.Println("read", n, time.Since(s), err, rss())
	}
}
