package messages

import "maps"

// Vector is what has been seen of every device: installation id → sequence
// number. A device that is missing has been seen up to 0.
type Vector map[string]int64

// Covers reports whether v has seen at least what o has, of every device.
func (v Vector) Covers(o Vector) bool {
	for d, n := range o {
		if v[d] < n {
			return false
		}
	}
	return true
}

// Raise sets v[device] to seq if that is more than v has.
func (v Vector) Raise(device string, seq int64) {
	if seq > v[device] {
		v[device] = seq
	}
}

// Clone returns a copy that is never nil.
func (v Vector) Clone() Vector {
	c := make(Vector, len(v))
	maps.Copy(c, v)
	return c
}
