// Package adaptertest holds the conformance suites that every adapter passes: one
// for remotes, one for object stores. They say in code what the ports' comments
// in package stages say in words, so they run against real servers too and assume
// no more speed than those have.
package adaptertest

import "testing"

// Features says where an adapter can show more than every adapter can. What is
// not set is not tried, and no test is reported for it.
type Features struct {
	// ReadTimeTooOld: a read at a time two hours back fails with
	// messages.ErrReadTimeTooOld.
	ReadTimeTooOld bool
	// Foreign writes a document as somebody who is no device: the fields, and
	// nothing of ours beside them.
	Foreign func(t *testing.T, r RemotePort, table, id string, fields map[string]any)
	// ManyObjects: writing 2,100 objects is cheap.
	ManyObjects bool
}

func merged(features []Features) Features {
	if len(features) == 0 {
		return Features{}
	}
	return features[0]
}
