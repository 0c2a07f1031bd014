package persistence

import (
	"encoding/binary"
	"math"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// draw makes choices from a fuzzer's bytes; when they are used up, every choice is
// the first one.
type draw struct{ b []byte }

func (d *draw) done() bool { return len(d.b) == 0 }

func (d *draw) byte() byte {
	if len(d.b) == 0 {
		return 0
	}
	b := d.b[0]
	d.b = d.b[1:]
	return b
}

// n is below limit, which is at most 256.
func (d *draw) n(limit int) int { return int(d.byte()) % limit }

func (d *draw) raw(n int) []byte {
	n = min(n, len(d.b))
	b := d.b[:n:n]
	d.b = d.b[n:]
	return append([]byte{}, b...)
}

func (d *draw) bits() uint64 { return binary.LittleEndian.Uint64(append(d.raw(8), make([]byte, 8)...)) }

func pick[T any](d *draw, from []T) T { return from[d.n(len(from))] }

var (
	oddInts = []int64{
		0, 1, 2, 3, -1, 41, math.MaxInt64, math.MinInt64, math.MaxInt64 - 1, math.MinInt64 + 1, 1 << 53, 1<<53 + 1, -(1<<53 + 1),
		1 << 62, 1<<62 + 1, math.MaxInt32, 1 << 47, 1<<47 - 1, -(1 << 47), 127, 128, 255,
	}
	oddFloats = []float64{
		0, 0.5, 1, 3, -1.25, math.Copysign(0, -1), math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64, 1e300, 0.1,
		1 << 53, 1<<53 + 2, 1 << 63, -(1 << 63), 1 << 62, 9007199254740993, 1e15, 1e16, 1 << 47, 1 << 31,
	}
	oddTexts = []string{
		"", "a", "b", "A", "é", "🦀", "text", "12", " 12 ", "1e5", "0x10", "1.", ".5", "-", "+5", "1e1000", "1e", "12abc", "5\x00", "\x005", "nul\x00inside", "\xff\xfe", "a\xc0", "inf", "nan",
		"9223372036854775808", "-9223372036854775808", "9007199254740993", "1_000", "١٢", "\u00a012", "12\v", "\r\n", "'; DROP TABLE loose; --", `"`, "malformed", "no such table: loose", "database is locked",
		"UNIQUE constraint failed", "rollback", "abort", "ignore", "fail", "TRUE", "NULL", "x'00'", "2024-01-02T03:04:05Z", "{}", "%s%d", "\ufeff", "\u2028", strings.Repeat("long ", 5000), "<&>",
	}
	ids = []string{
		"a", "b", "c", "d", "e", "f", "g", "h", "A", "", strings.Repeat("i", 1500), strings.Repeat("i", 1501), "nul\x00a", "nul", "'", `"`, "é", "12", "0", "\xff", "%", "a/b", "<&>", "\u2028",
		"ffffffffffffffffffffffffffffffff",
	}
	oddTimes = []int64{0, 1, -1, 1_700_000_000_000, maxTime, maxTime + 1, maxTime - 1, math.MaxInt64, math.MinInt64, 1_700_000_000_001}
)

func (d *draw) id() string {
	if d.n(8) == 0 {
		return pick(d, ids)
	}
	return ids[d.n(8)]
}

func (d *draw) text() string {
	switch d.n(6) {
	case 0:
		return string(d.raw(d.n(12)))
	case 1:
		return d.id()
	case 2:
		return pick(d, []string{"abort", "ignore", "rollback", "fail"}) // see fuzz_triggers.sql
	}
	return pick(d, oddTexts)
}

// value is what a document may hold, from wherever it comes.
func (d *draw) value() any {
	switch d.n(12) {
	case 0:
		return nil
	case 1, 2:
		return pick(d, oddInts)
	case 3:
		return int64(d.bits())
	case 4:
		return pick(d, oddFloats)
	case 5:
		return math.Float64frombits(d.bits())
	case 6, 7, 8:
		return d.text()
	case 9:
		return d.raw(d.n(16))
	case 10:
		return d.n(2) == 1
	default:
		return messages.Unsupported{Type: pick(d, []string{"map", "timestamp", ""})}
	}
}

// sqlValue is what an application may write.
func (d *draw) sqlValue() any {
	switch v := d.value().(type) {
	case messages.Unsupported:
		return strings.Repeat("x", 300)
	case bool:
		return toSQL(v)
	case float64:
		if math.IsNaN(v) {
			return nil // what SQLite makes of it
		}
		return v
	default:
		return v
	}
}

func (d *draw) time() int64 {
	if d.n(6) == 0 {
		return pick(d, oddTimes)
	}
	return 1_700_000_000_000 + int64(d.n(8))
}
