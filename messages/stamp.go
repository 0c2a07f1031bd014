package messages

import (
	"fmt"
	"strconv"
	"strings"
)

// Stamp says which commit wrote a document: the installation id of the device
// that uploaded it and that device's sequence number. As one string of fixed
// width it sorts by number within a device, so "what p wrote after n" is one
// range on one field.
type Stamp struct {
	Device string
	Seq    int64
}

const stampDigits = 16

// MaxSeq is the greatest sequence number a stamp can carry.
const MaxSeq int64 = 9_999_999_999_999_999

// String is the stored form: installation id, a dot, 16 digits. The zero Stamp
// is the empty string.
func (s Stamp) String() string {
	if s.Device == "" {
		return ""
	}
	return fmt.Sprintf("%s.%0*d", s.Device, stampDigits, s.Seq)
}

// ParseStamp reads what String wrote. A document written by somebody who is no
// device carries none: the empty string gives the zero Stamp.
func ParseStamp(s string) (Stamp, error) {
	if s == "" {
		return Stamp{}, nil
	}
	i := strings.LastIndexByte(s, '.')
	if i <= 0 || len(s)-i-1 != stampDigits {
		return Stamp{}, fmt.Errorf("stamp %q is not an installation id and %d digits: %w", s, stampDigits, ErrRejected)
	}
	n, err := strconv.ParseInt(s[i+1:], 10, 64)
	if err != nil || n < 0 || s[i+1] == '+' {
		return Stamp{}, fmt.Errorf("stamp %q has no sequence number: %w", s, ErrRejected)
	}
	return Stamp{Device: s[:i], Seq: n}, nil
}
