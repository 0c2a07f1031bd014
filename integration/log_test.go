package integration

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	tidemark "github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
	"github.com/tidemark-sync/tidemark/messages"
)

// Levels mean something: steps are debug, a cycle that moved something is info, what
// will be tried again is warn, and what somebody has to see to is error. Every line of
// a cycle names it, lines of a step their stage and table; no line holds a row.
func TestLogLevels(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		f := newFleet(t, oneTable)
		var fault error
		f.faulty(func(c memory.Call) memory.Fault {
			if fault != nil && c.Op == memory.OpCommit {
				return memory.Fault{Before: fault}
			}
			return memory.Fault{}
		})
		a := f.device("a", tidemark.WithLogger(zap.New(core)))
		defer a.db.Close()
		if said := logs.TakeAll(); len(said) != 1 || said[0].Level != zapcore.WarnLevel || !strings.Contains(said[0].Message, "not encrypted") {
			t.Errorf("at its opening: %v", said)
		}
		// above are the texts above debug level since it was called last.
		above := func() (out []string) {
			for _, e := range logs.TakeAll() {
				fields := e.ContextMap()
				if text := fmt.Sprint(e.Message, fields); strings.Contains(text, "a secret") {
					t.Errorf("a row in the log: %s", text)
				}
				if fields["cycle"] == nil {
					t.Errorf("no cycle: %s %v", e.Message, fields)
				}
				if strings.HasPrefix(e.Message, "step") && fields["stage"] == nil || fields["stage"] == messages.StageDownload && fields["table"] != "note" {
					t.Errorf("no stage or table: %s %v", e.Message, fields)
				}
				if e.Level > zapcore.DebugLevel {
					out = append(out, e.Level.String()+" "+e.Message)
				}
			}
			return out
		}
		expect := func(what string, want ...string) {
			t.Helper()
			if got := above(); strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		logs.TakeAll() // what New says is of no cycle
		a.sync()
		above() // the first cycle may make a snapshot
		a.sync()
		expect("nothing to move")
		a.exec(`INSERT INTO note (title) VALUES ('a secret')`)
		a.sync()
		expect("an upload", "info cycle done")

		a.exec(`UPDATE note SET title = 'a secret that was changed'`)
		fault = fmt.Errorf("nobody there: %w", messages.ErrUnavailable)
		if _, err := a.p.Sync(t.Context()); err == nil {
			t.Fatal("no error")
		}
		again := "warn step failed, trying again"
		expect("an outage", again, again, again, again, "warn cycle failed; the next one goes on from here")
		fault = fmt.Errorf("who are you: %w", messages.ErrUnauthorized)
		if _, err := a.p.Sync(t.Context()); err == nil {
			t.Fatal("no error")
		}
		expect("refused credentials", "error cycle failed; somebody has to see to it")
	})
}
