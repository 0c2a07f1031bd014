package persistence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// Errors of the local side that a caller can act on.
var (
	// ErrNotAttached: the database has no tracked tables yet. Call Attach.
	ErrNotAttached = errors.New("the database is not attached")
	// ErrOtherScope: the database was synced with another remote.
	ErrOtherScope = messages.ErrOtherScope
	// ErrLocked: another program holds a long transaction on the database.
	ErrLocked = errors.New("the database is locked by another program: end its transaction and try again")
	// ErrDiskFull: there is no room. Nothing was changed.
	ErrDiskFull = errors.New("the disk is full: free some space and try again; nothing was changed")
	// ErrReadOnly: the file or its folder cannot be written.
	ErrReadOnly = errors.New("the database cannot be read and written: check the rights of the file and of its folder, and that the disk is not mounted read-only")
	// ErrNotDatabase: the file is something else, or damaged.
	ErrNotDatabase = errors.New("the file is not a SQLite database, or it is damaged: check the path, or restore a snapshot")
)

// environment are the texts by which every SQLite driver reports that the
// machine, not the statement, is at fault.
var environment = []struct {
	text string
	err  error
}{
	{"database is locked", ErrLocked},
	{"database table is locked", ErrLocked},
	{"SQLITE_BUSY", ErrLocked},
	{"database or disk is full", ErrDiskFull},
	{"no space left", ErrDiskFull},
	{"readonly database", ErrReadOnly},
	{"unable to open database", ErrReadOnly},
	{"not a database", ErrNotDatabase},
	{"image is malformed", ErrNotDatabase},
	{"malformed database schema", ErrNotDatabase},
	{"disk I/O error", nil},
	{"out of memory", nil},
	{"interrupted", nil},
	{"no such table", nil},
	{"no such column", nil},
	{"has been locked", nil},
	{"bad connection", nil},
	{"database is closed", nil},
}

// explain adds the remedy to what the driver said.
func explain(err error) error {
	if err == nil || refusal(err) {
		return err
	}
	for _, e := range environment {
		if e.err != nil && strings.Contains(err.Error(), e.text) && !errors.Is(err, e.err) {
			return fmt.Errorf("%w (%w)", e.err, err)
		}
	}
	return err
}

// Explain gives what a SQLite driver said the class that a caller can branch on, and
// the remedy.
func Explain(err error) error { return explain(err) }

// rowsFault reports whether a failed statement is the fault of the row it wrote (a
// constraint, a type, a trigger's RAISE) and not of the machine or the caller.
func rowsFault(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if refusal(err) {
		return true
	}
	for _, e := range environment {
		if strings.Contains(err.Error(), e.text) {
			return false
		}
	}
	return true
}

// refusedError is a statement's failure that is the fault of the row.
type refusedError struct{ error }

func (e refusedError) Unwrap() error { return e.error }

// culpable reports whether an operation failed because of the one document that it
// was at: without it, it may succeed.
func culpable(err error) bool {
	_, refused := errors.AsType[refusedError](err)
	return refused || errors.Is(err, errUndone) || errors.Is(err, errKept)
}

// refusal reports whether a constraint or a trigger's RAISE refused a row, in words
// that the application chose: they may sound like anything.
func refusal(err error) bool { return strings.Contains(err.Error(), "constraint failed") }

// collision reports whether a failed statement met a UNIQUE or primary key.
func collision(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "UNIQUE constraint failed") || strings.Contains(err.Error(), "PRIMARY KEY must be unique"))
}

// newID mints a random id of 32 hexadecimal digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails; it aborts the program instead
	return hex.EncodeToString(b[:])
}
