//go:build unix

package main

import (
	"os/signal"
	"syscall"
)

// A file beyond `ulimit -f` is a failed write like any other: without this, Go's
// runtime takes the signal for a crash.
func init() { signal.Ignore(syscall.SIGXFSZ) }
