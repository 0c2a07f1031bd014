package integration

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/adapters/otel"
	"github.com/tidemark-sync/tidemark/messages"
)

// receiver is an OTLP collector in this process.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*trace.Span
	raw   strings.Builder // everything that was sent, as text
}

func (r *receiver) Export(_ context.Context, in *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.raw.WriteString(in.String())
	for _, rs := range in.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			r.spans = append(r.spans, ss.GetSpans()...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

const secretHeader = "hush-hush-token"

// overHTTP starts a receiver and points the standard variables to it.
func overHTTP(t testing.TB) *receiver {
	t.Helper()
	r := &receiver{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var in collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &in)
		}
		if err != nil || req.URL.Path != "/v1/traces" || req.Header.Get("Authorization") != secretHeader {
			t.Errorf("%s, with the header %q: %v", req.URL.Path, req.Header.Get("Authorization"), err)
		}
		_, _ = r.Export(req.Context(), &in)
		out, _ := proto.Marshal(&collector.ExportTraceServiceResponse{})
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(out)
	}))
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization="+secretHeader)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	return r
}

func overGRPC(t testing.TB) *receiver {
	t.Helper()
	r := &receiver{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+listener.Addr().String())
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	return r
}

func exporter(t testing.TB) *otel.Exporter {
	t.Helper()
	e, err := otel.Open(t.Context(), "pipeline", "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = e.Close(ctx)
	})
	return e
}

// take returns what has arrived since it was called last.
func (r *receiver) take(t *testing.T, e *otel.Exporter) []*trace.Span {
	t.Helper()
	if err := e.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.spans
	r.spans = nil
	return out
}

func attribute(s *trace.Span, name string) string {
	for _, kv := range s.GetAttributes() {
		if kv.GetKey() == "tidemark."+name {
			if text := kv.GetValue().GetStringValue(); text != "" {
				return text
			}
			return strconv.FormatInt(kv.GetValue().GetIntValue(), 10)
		}
	}
	return ""
}

// tree renders one trace: each span below its parent, in order of time, with the
// table, the attempt when it is not the first, and an error's class. It fails unless
// there is exactly one trace, and every child lies within its parent.
func tree(t *testing.T, spans []*trace.Span) string {
	t.Helper()
	slices.SortFunc(spans, func(a, b *trace.Span) int { return int(a.GetStartTimeUnixNano()) - int(b.GetStartTimeUnixNano()) })
	known := map[string]*trace.Span{}
	for _, s := range spans {
		known[string(s.GetSpanId())] = s
		if string(s.GetTraceId()) != string(spans[0].GetTraceId()) {
			t.Errorf("span %q is in another trace", s.GetName())
		}
	}
	var b strings.Builder
	var draw func(parent, indent string)
	drawn := 0
	draw = func(parent, indent string) {
		for _, s := range spans {
			if string(s.GetParentSpanId()) != parent {
				continue
			}
			drawn++
			line := indent + s.GetName()
			if table := attribute(s, "table"); table != "" {
				line += " " + table
			}
			if n := attribute(s, "attempt"); n != "" && n != "1" && s.GetKind() != trace.Span_SPAN_KIND_CLIENT {
				line += " attempt " + n
			}
			if s.GetStatus().GetCode() == trace.Status_STATUS_CODE_ERROR {
				line += ": " + s.GetStatus().GetMessage()
			}
			fmt.Fprintln(&b, line)
			if p := known[parent]; p != nil && (s.GetStartTimeUnixNano() < p.GetStartTimeUnixNano() || s.GetEndTimeUnixNano() > p.GetEndTimeUnixNano()) {
				t.Errorf("span %q is not within its parent %q", s.GetName(), p.GetName())
			}
			draw(string(s.GetSpanId()), indent+"  ")
		}
	}
	draw("", "")
	if drawn != len(spans) {
		t.Errorf("%d of %d spans hang on nothing:\n%v", len(spans)-drawn, len(spans), spans)
	}
	return b.String()
}

const parentAndChild = `
	CREATE TABLE book (id INTEGER PRIMARY KEY, title TEXT NOT NULL);
	CREATE TABLE page (id INTEGER PRIMARY KEY, book INTEGER NOT NULL REFERENCES book (id), text TEXT NOT NULL);`

// What a row holds, and what a server says about it, is in no trace.
const rowSecret = "the diary of Alice"

func TestACycleIsOneTrace(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *receiver{"HTTP": overHTTP, "gRPC": overGRPC} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			e := exporter(t)
			f := newFleet(t, parentAndChild)
			a := f.device("a")
			a.exec(`INSERT INTO book (title) VALUES (?)`, rowSecret)
			a.exec(`INSERT INTO page (book, text) VALUES (1, ?)`, rowSecret)
			a.sync()

			remote := f.server.Remote()
			refused := map[string]int{memory.OpRead: 1, memory.OpCommit: 1}
			remote.Fault = func(c memory.Call) memory.Fault {
				if refused[c.Op] == 0 {
					return memory.Fault{}
				}
				refused[c.Op]--
				return memory.Fault{Before: fmt.Errorf("%s is too busy: %w", rowSecret, messages.ErrUnavailable)}
			}
			b := f.with(remote).device("b", tidemark.WithTracer(e), tidemark.WithRetries(2, time.Millisecond))
			b.exec(`INSERT INTO book (title) VALUES (?)`, rowSecret+" II")
			report := b.sync()

			spans := r.take(t, e)
			want := `cycle
  check devices
    list devices
  request tables
  nothing new
  download book: unavailable
    query documents book: unavailable
  download book attempt 2
    query documents book
  request children book
  settle book
  download page
    query documents page
  request children page
  settle page
  upload: unavailable
    commit: unavailable
  upload attempt 2
    commit
  register
  purge
  back up
    get object
`
			// Side by side: which of them begins first is chance.
			if got := sortedTree(tree(t, spans)); got != sortedTree(want) {
				t.Errorf("one cycle is traced as\n%s\nwant\n%s", tree(t, spans), want)
			}
			id := hex.EncodeToString(spans[0].GetTraceId())
			if got := b.value(`SELECT group_concat(DISTINCT traceId) FROM tidemark_ledger WHERE cycle = ?`, report.Cycle); got != fmt.Sprintf("%q", id) {
				t.Errorf("the ledger names the traces %s, want %q", got, id)
			}
			var reads, writes string
			for _, s := range spans {
				if s.GetName() == "cycle" {
					reads, writes = attribute(s, "billed.reads"), attribute(s, "billed.writes")
				}
			}
			if reads != strconv.FormatInt(report.Billed.Reads, 10) || writes != strconv.FormatInt(report.Billed.Writes, 10) {
				t.Errorf("the trace has %s reads and %s writes, the report %+v", reads, writes, report.Billed)
			}
			for _, secret := range []string{rowSecret, secretHeader, b.text(`SELECT clientId FROM book LIMIT 1`)} {
				if strings.Contains(r.raw.String(), secret) {
					t.Errorf("%q is in a trace", secret)
				}
			}
		})
	}
}

func sortedTree(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	var blocks []string
	for _, l := range lines[1:] {
		if strings.HasPrefix(l, "    ") {
			blocks[len(blocks)-1] += "\n" + l
			continue
		}
		blocks = append(blocks, l)
	}
	slices.Sort(blocks)
	return strings.Join(append(lines[:1], blocks...), "\n")
}

func (d *device) text(query string) string {
	d.t.Helper()
	var s string
	if err := d.db.DB.QueryRowContext(d.t.Context(), query).Scan(&s); err != nil {
		d.t.Fatal(err)
	}
	return s
}

// The application's own span is the parent of the cycle's.
func TestACycleIsPartOfTheApplicationsTrace(t *testing.T) {
	r := overHTTP(t)
	e := exporter(t)
	d := newFleet(t, oneTable).device("a", tidemark.WithTracer(e))
	const outside = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if _, err := d.p.Sync(messages.WithTraceparent(t.Context(), outside)); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.take(t, e) {
		if got := hex.EncodeToString(s.GetTraceId()); got != "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("span %q is in trace %s", s.GetName(), got)
		}
		if got := hex.EncodeToString(s.GetParentSpanId()); s.GetName() == "cycle" && got != "b7ad6b7169203331" {
			t.Errorf("the cycle's parent is %s", got)
		}
	}
}

// A letter knows the span in which it failed, that of the upload for a row and that of
// the cycle for a panic; its replay says so, and the upload that tries it again is
// linked to it.
func TestAReplayGoesOnWithTheLettersTrace(t *testing.T) {
	for where, refuse := range map[string]func(messages.Document) bool{
		"upload": func(messages.Document) bool { return true },
		"cycle":  func(messages.Document) bool { panic("what is this") },
	} {
		t.Run(where, func(t *testing.T) { replayGoesOn(t, where, refuse) })
	}
}

func replayGoesOn(t *testing.T, span string, refuse func(messages.Document) bool) {
	r := overHTTP(t)
	e := exporter(t)
	f := newFleet(t, oneTable)
	server := f.refusing()
	server.refuse = refuse
	d := f.device("a", tidemark.WithTracer(e))
	d.notes(1)
	_, _ = d.p.Sync(t.Context()) // the panic ends it
	var failed *trace.Span
	for _, s := range r.take(t, e) {
		if s.GetName() == span {
			failed = s
		}
	}
	where := hex.EncodeToString(failed.GetTraceId()) + "-" + hex.EncodeToString(failed.GetSpanId())

	server.refuse = func(messages.Document) bool { return false }
	told := ""
	if err := tidemark.ReplayDeadLetters(t.Context(), d.db, tidemark.DeadLetterFilter{}, false, func(x tidemark.Replayed) error {
		told = x.Traceparent
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(told, where) {
		t.Errorf("the replayed letter is of span %q, it failed in %q", told, where)
	}
	d.sync()
	linked := false
	for _, s := range r.take(t, e) {
		for _, l := range s.GetLinks() {
			linked = linked || s.GetName() == "upload" && hex.EncodeToString(l.GetTraceId())+"-"+hex.EncodeToString(l.GetSpanId()) == where
		}
	}
	if !linked {
		t.Error("the upload that tried the row again is not linked to the span in which it failed")
	}
}

// A collector that is down, or hangs, costs spans and no cycle.
func TestACollectorThatIsDownCostsNoCycle(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	e, err := otel.Open(t.Context(), "pipeline", "test")
	if err != nil {
		t.Fatal(err)
	}
	d := newFleet(t, oneTable).device("a", tidemark.WithTracer(e))
	d.notes(3)
	if r := d.sync(); !r.InStep {
		t.Error("not in step")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("in a hurry"))
	_ = e.Close(ctx)
}

// The adapters of the real servers keep the context, and no call is missing: what the
// spans of the calls were billed is what the cycle was.
func TestACycleOnTheRealServersIsOneTrace(t *testing.T) {
	f := realFleet(t, parentAndChild)
	r := overHTTP(t)
	e := exporter(t)
	a := f.device("a", tidemark.WithTracer(e))
	for i := range 20 {
		a.exec(`INSERT INTO book (id, title) VALUES (?, ?)`, i+1, rowSecret)
		a.exec(`INSERT INTO page (book, text) VALUES (?, ?)`, i+1, rowSecret)
	}
	up := a.sync()
	upSpans := r.take(t, e)
	b := f.device("b", tidemark.WithTracer(e))
	down := b.sync()
	for name, x := range map[string]struct {
		report tidemark.Report
		spans  []*trace.Span
	}{"up": {up, upSpans}, "down": {down, r.take(t, e)}} {
		drawn := tree(t, x.spans)
		sum := map[string]int64{}
		for _, s := range x.spans {
			if s.GetKind() != trace.Span_SPAN_KIND_CLIENT {
				continue
			}
			for _, what := range []string{"billed.reads", "billed.writes", "store.puts", "store.gets", "store.bytes_up"} {
				n, _ := strconv.ParseInt(attribute(s, what), 10, 64) // what it has not is nought
				sum[what] += n
			}
		}
		want := map[string]int64{
			"billed.reads": x.report.Billed.Reads, "billed.writes": x.report.Billed.Writes,
			"store.puts": x.report.Store.Puts, "store.gets": x.report.Store.Gets, "store.bytes_up": x.report.Store.BytesUp,
		}
		if !maps.Equal(sum, want) {
			t.Errorf("%s: the calls were billed %v, the report says %v\n%s", name, sum, want, drawn)
		}
	}
	if strings.Contains(r.raw.String(), rowSecret) {
		t.Error("a row is in a trace")
	}
}
