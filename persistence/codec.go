package persistence

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tidemark-sync/tidemark/messages"
)

// storedDocument is how a document is kept in the inbox, in conflicts and in dead
// letters: JSON that tells SQLite's types apart and loses no bit.
type storedDocument struct {
	Version    int                        `json:"v"`
	ID         string                     `json:"id"`
	CreatedOn  int64                      `json:"createdOn"`
	UpdatedOn  int64                      `json:"updatedOn"`
	UpdatedBy  string                     `json:"updatedBy"`
	UploadedOn int64                      `json:"uploadedOn,omitempty"`
	Deleted    bool                       `json:"deleted,omitempty"`
	Survivor   string                     `json:"survivor,omitempty"`
	Stamp      string                     `json:"stamp,omitempty"`
	UpdateTime int64                      `json:"updateTime,omitempty"`
	Fields     map[string]json.RawMessage `json:"fields"`
}

const storedVersion = 1

func marshalDocument(d *messages.Document) ([]byte, error) {
	s := storedDocument{
		storedVersion, d.ID, d.CreatedOn, d.UpdatedOn, d.UpdatedBy, d.UploadedOn, d.Deleted, d.Survivor,
		d.Stamp.String(), d.UpdateTime, make(map[string]json.RawMessage, len(d.Fields)),
	}
	for k, v := range d.Fields {
		s.Fields[k] = marshalValue(v)
	}
	return json.Marshal(s)
}

func unmarshalDocument(table string, b []byte) (messages.Document, error) {
	var s storedDocument
	d := messages.Document{Table: table}
	if err := json.Unmarshal(b, &s); err != nil {
		return d, fmt.Errorf("a stored document of %q is damaged: %w", table, err)
	}
	if s.Version > storedVersion {
		return d, fmt.Errorf("a stored document of %q has version %d, this program knows %d: upgrade it", table, s.Version, storedVersion)
	}
	st, err := messages.ParseStamp(s.Stamp)
	if err != nil {
		return d, err
	}
	d = messages.Document{
		Table: table, ID: s.ID, CreatedOn: s.CreatedOn, UpdatedOn: s.UpdatedOn, UpdatedBy: s.UpdatedBy, UploadedOn: s.UploadedOn,
		Deleted: s.Deleted, Survivor: s.Survivor, Stamp: st, UpdateTime: s.UpdateTime, Fields: make(map[string]any, len(s.Fields)),
	}
	for k, raw := range s.Fields {
		if d.Fields[k], err = unmarshalValue(raw); err != nil {
			return d, fmt.Errorf("a stored document of %q is damaged in field %q: %w", table, k, err)
		}
	}
	return d, nil
}

// marshalValue: null, true, an integer without a point, a float with one, a
// string, or an object that names what JSON cannot say.
func marshalValue(v any) json.RawMessage {
	object := func(kind, s string) json.RawMessage {
		b, _ := json.Marshal(map[string]string{kind: s}) // cannot fail
		return b
	}
	switch v := v.(type) {
	case nil:
		return json.RawMessage("null")
	case bool:
		return strconv.AppendBool(nil, v)
	case int64:
		return strconv.AppendInt(nil, v, 10)
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) {
			return object("float", strconv.FormatFloat(v, 'g', -1, 64))
		}
		s := strconv.FormatFloat(v, 'g', -1, 64)
		if !strings.ContainsAny(s, ".e") {
			s += ".0"
		}
		return json.RawMessage(s)
	case string:
		if utf8.ValidString(v) {
			b, _ := json.Marshal(v) // cannot fail
			return b
		}
		return object("text", base64.StdEncoding.EncodeToString([]byte(v)))
	case []byte:
		return object("bytes", base64.StdEncoding.EncodeToString(v))
	case messages.Unsupported:
		return object("unsupported", v.Type)
	}
	return object("unsupported", fmt.Sprintf("%T", v))
}

func unmarshalValue(raw json.RawMessage) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil, bool, string:
		return v, nil
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return v.Float64()
		}
		return v.Int64()
	case map[string]any:
		for kind, x := range v {
			s, _ := x.(string)
			switch kind {
			case "float":
				return strconv.ParseFloat(s, 64)
			case "text":
				b, err := base64.StdEncoding.DecodeString(s)
				return string(b), err
			case "bytes":
				return base64.StdEncoding.DecodeString(s)
			case "unsupported":
				return messages.Unsupported{Type: s}, nil
			}
		}
	}
	return nil, errors.New("not a value of a document")
}

// fits reports whether a column stores the value as it is. SQLite would silently
// turn a numeric text into a number in a numeric column, or a number into text in a
// text column; then the row would no longer be the document.
func fits(c Column, v any) error {
	switch x := v.(type) {
	case nil:
		if c.NotNull {
			return fmt.Errorf("column %q must not be NULL and the document has null", c.Name)
		}
	case messages.Unsupported:
		return fmt.Errorf("column %q cannot hold a value of type %s", c.Name, x.Type)
	case int64, bool:
		if c.Affinity == AffinityText {
			return fmt.Errorf("column %q holds text and the document has a number", c.Name)
		}
		if n, ok := x.(int64); ok && c.Affinity == AffinityReal && !exact(n) {
			return fmt.Errorf("column %q holds floating-point numbers, and none of them is the document's integer", c.Name)
		}
	case float64:
		if math.IsNaN(x) {
			return fmt.Errorf("column %q cannot hold NaN", c.Name)
		}
		if c.Affinity == AffinityText {
			return fmt.Errorf("column %q holds text and the document has a number", c.Name)
		}
	case string:
		if c.Affinity != AffinityText && c.Affinity != AffinityBlob && looksNumeric(x) {
			return fmt.Errorf("column %q holds numbers and the document has a text that looks like one", c.Name)
		}
	}
	return nil
}

// exact reports whether a number has as many bits as a floating-point number keeps.
func exact(n int64) bool {
	f := float64(n)
	return f < 1<<63 && int64(f) == n
}

func looksNumeric(s string) bool {
	s, _, _ = strings.Cut(s, "\x00") // where SQLite stops
	s = strings.Trim(s, " \t\n\v\f\r")
	if s == "" || strings.Trim(s, "+-.0123456789eE") != "" {
		return false
	}
	_, err := strconv.ParseFloat(s, 64)
	return err == nil || errors.Is(err, strconv.ErrRange)
}

// whole makes an empty BLOB of what a driver reads as a nil slice: bound again, that
// would be NULL.
func whole(values []any) []any {
	for i, v := range values {
		if b, ok := v.([]byte); ok && b == nil {
			values[i] = []byte{}
		}
	}
	return values
}

// toSQL is the value as it is bound.
func toSQL(v any) any {
	if b, ok := v.(bool); ok {
		if b {
			return int64(1)
		}
		return int64(0)
	}
	return v
}

// stored is a number as the column keeps it: whoever is no device may write whole numbers
// as it likes.
func stored(c Column, v any) any {
	switch x := v.(type) {
	case int64:
		if c.Affinity == AffinityReal {
			return float64(x)
		}
	case float64:
		if c.Affinity == AffinityReal && x == 0 {
			return 0.0 // without a sign
		}
		if (c.Affinity == AffinityInteger || c.Affinity == AffinityNumeric) && x > -1<<63 && x < 1<<63 && float64(int64(x)) == x {
			return int64(x)
		}
	}
	return v
}

// equal compares two values of a document exactly.
func equal(a, b any) bool {
	if x, ok := a.([]byte); ok {
		y, ok := b.([]byte)
		return ok && bytes.Equal(x, y)
	}
	if x, ok := a.(float64); ok {
		y, ok := b.(float64)
		return ok && math.Float64bits(x) == math.Float64bits(y)
	}
	if _, ok := b.([]byte); ok {
		return false
	}
	return a == b
}
