package messages

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// EnvelopeVersion is the version of the envelope that Encode writes. A message
// may outlive the program that wrote it, as a dead letter.
const EnvelopeVersion = 1

type envelope struct {
	Version int             `json:"v"`
	Topic   string          `json:"topic"`
	Body    json.RawMessage `json:"body"`
}

// Encode wraps a message for the given topic.
func Encode[T any](topic string, m T) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode a %s message: %w", topic, err)
	}
	return json.Marshal(envelope{Version: EnvelopeVersion, Topic: topic, Body: body})
}

// Decode unwraps what Encode wrote for the same topic. A message of a newer
// version, of another topic or with trailing data is ErrRejected.
func Decode[T any](topic string, payload []byte) (T, error) {
	var m T
	var e envelope
	if err := json.Unmarshal(payload, &e); err != nil {
		return m, fmt.Errorf("decode a %s message: %w: %w", topic, ErrRejected, err)
	}
	if e.Version < 1 || e.Version > EnvelopeVersion {
		return m, fmt.Errorf("a %s message has envelope version %d, this program knows 1 to %d: upgrade it: %w", topic, e.Version, EnvelopeVersion, ErrRejected)
	}
	if e.Topic != topic {
		return m, fmt.Errorf("a message for topic %q arrived on %q: %w", e.Topic, topic, ErrRejected)
	}
	dec := json.NewDecoder(bytes.NewReader(e.Body))
	if err := dec.Decode(&m); err != nil {
		return m, fmt.Errorf("decode a %s message: %w: %w", topic, ErrRejected, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return m, fmt.Errorf("a %s message has trailing data: %w", topic, ErrRejected)
	}
	return m, nil
}
