package file

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/tidemark-sync/tidemark/messages"
)

// The kinds of a stored value.
const (
	kindNull byte = iota
	kindFalse
	kindTrue
	kindInt
	kindFloat
	kindText
	kindBytes
)

// encode writes fields as (name, kind, value), exactly: JSON has no bytes and no
// infinity.
func encode(fields map[string]any) []byte {
	size := 0
	for name, v := range fields {
		size += len(name) + 20
		switch v := v.(type) {
		case string:
			size += len(v)
		case []byte:
			size += len(v)
		}
	}
	b := make([]byte, 0, size)
	for name, v := range fields {
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
		switch v := v.(type) {
		case nil:
			b = append(b, kindNull)
		case bool:
			if v {
				b = append(b, kindTrue)
			} else {
				b = append(b, kindFalse)
			}
		case int64:
			b = binary.AppendVarint(append(b, kindInt), v)
		case float64:
			b = binary.LittleEndian.AppendUint64(append(b, kindFloat), math.Float64bits(v))
		case string:
			b = binary.AppendUvarint(append(b, kindText), uint64(len(v)))
			b = append(b, v...)
		case []byte:
			b = binary.AppendUvarint(append(b, kindBytes), uint64(len(v)))
			b = append(b, v...)
		}
	}
	return b
}

var errPayload = errors.New("the stored document is damaged")

// decode reads what encode wrote.
func decode(b []byte) (map[string]any, error) {
	fields := map[string]any{}
	chunk := func() ([]byte, bool) {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return nil, false
		}
		c := b[w : w+int(n)]
		b = b[w+len(c):]
		return c, true
	}
	for len(b) > 0 {
		c, ok := chunk()
		if !ok || len(b) == 0 {
			return nil, errPayload
		}
		name, kind := string(c), b[0]
		b = b[1:]
		switch kind {
		case kindNull:
			fields[name] = nil
		case kindFalse, kindTrue:
			fields[name] = kind == kindTrue
		case kindInt:
			n, w := binary.Varint(b)
			if w <= 0 {
				return nil, errPayload
			}
			fields[name], b = n, b[w:]
		case kindFloat:
			if len(b) < 8 {
				return nil, errPayload
			}
			fields[name], b = math.Float64frombits(binary.LittleEndian.Uint64(b)), b[8:]
		case kindText, kindBytes:
			if c, ok = chunk(); !ok {
				return nil, errPayload
			}
			if kind == kindText {
				fields[name] = string(c)
			} else {
				fields[name] = append([]byte{}, c...)
			}
		default:
			return nil, errPayload
		}
	}
	return fields, nil
}

// maxCommitBytes is Firestore's limit for one request.
const maxCommitBytes = 10 << 20

// check refuses what Firestore could never take, so that whoever begins with a
// folder can move on to the cloud.
func check(c *messages.Commit) error {
	d := &c.Device
	if err := checkName("device id", d.ID); err != nil {
		return err
	}
	texts := []string{d.Token, d.Name, d.Platform, d.Version}
	for name := range d.Tables {
		texts = append(texts, name)
	}
	for _, v := range []messages.Vector{d.Seen, d.Fence} {
		for id := range v {
			texts = append(texts, id)
		}
	}
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return fmt.Errorf("the record of %q holds %.40q, which is not valid UTF-8: %w", d.ID, text, messages.ErrRejected)
		}
	}
	total := 0
	seen := make(map[[2]string]bool, len(c.Writes))
	for i := range c.Writes {
		d := &c.Writes[i].Document
		if err := checkDocument(d); err != nil {
			return err
		}
		if seen[[2]string{d.Table, d.ID}] {
			return fmt.Errorf("document %q of %q is written twice in one commit: %w", d.ID, d.Table, messages.ErrRejected)
		}
		seen[[2]string{d.Table, d.ID}] = true
		total += d.Size()
	}
	if total > maxCommitBytes {
		return fmt.Errorf("the commit has %d bytes, the limit is %d: %w", total, maxCommitBytes, messages.ErrRejected)
	}
	return nil
}

func checkDocument(d *messages.Document) error {
	if err := errors.Join(checkName("table name", d.Table), checkName("document id", d.ID)); err != nil {
		return err
	}
	for _, text := range []string{d.UpdatedBy, d.Survivor, d.Stamp.Device} {
		if !utf8.ValidString(text) {
			return fmt.Errorf("document %q of %q: %.40q is not valid UTF-8: %w", d.ID, d.Table, text, messages.ErrRejected)
		}
	}
	if d.Stamp.Seq < 0 || d.Stamp.Seq > messages.MaxSeq {
		return fmt.Errorf("document %q of %q: the number %d does not fit a stamp: %w", d.ID, d.Table, d.Stamp.Seq, messages.ErrRejected)
	}
	for name, v := range d.Fields {
		if name == "" || !utf8.ValidString(name) {
			return fmt.Errorf("document %q of %q: the field name %q is empty or not valid UTF-8: %w", d.ID, d.Table, name, messages.ErrRejected)
		}
		switch v := v.(type) {
		case nil, int64, float64, bool, []byte:
		case string:
			if !utf8.ValidString(v) {
				return fmt.Errorf("document %q of %q: the field %q is not valid UTF-8: %w", d.ID, d.Table, name, messages.ErrRejected)
			}
		default:
			return fmt.Errorf("document %q of %q: the field %q has a value of type %T: %w", d.ID, d.Table, name, v, messages.ErrRejected)
		}
	}
	return checkSize(d)
}

func checkSize(d *messages.Document) error {
	if n := d.Size(); n > messages.MaxDocumentBytes {
		return fmt.Errorf("document %q of %q has %d bytes, the limit is %d: %w", d.ID, d.Table, n, messages.MaxDocumentBytes, messages.ErrRejected)
	}
	return nil
}

func checkName(what, name string) error {
	if name == "" || len(name) > 1500 || !utf8.ValidString(name) {
		return fmt.Errorf("the %s %.40q is empty, longer than 1500 bytes or not valid UTF-8: %w", what, name, messages.ErrRejected)
	}
	return nil
}
