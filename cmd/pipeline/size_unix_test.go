//go:build unix

package main

import (
	"strconv"
	"syscall"
)

func limitedCommand(args []string) error {
	n, err := strconv.ParseUint(args[0], 10, 63)
	if err != nil {
		return err
	}
	limit := syscall.Rlimit{Cur: n, Max: n}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	return child(args[1:]).Run()
}
