package tidemark

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/tidemark-sync/tidemark/messages"
	"github.com/tidemark-sync/tidemark/persistence"
)

// panicError is a stage that panicked. It says where and of what kind, and not what the
// panic said: that may hold a row, or a secret.
type panicError struct {
	stage string
	what  string
	stack []string // "function (file:line)", the innermost first
}

func (e *panicError) Error() string {
	where := ""
	if len(e.stack) > 0 {
		where = " in " + e.stack[0]
	}
	return fmt.Sprintf("stage %q panicked: %s%s: this is a bug of tidemark's or of an adapter's; the message is kept (pipeline failed)", e.stage, e.what, where)
}

// recovered turns a panic into an error: one bad row must not end the application.
func recovered[In, Out any](ctx context.Context, name string, m In, handle func(context.Context, In) ([]Out, error)) (outs []Out, err error) {
	defer func() {
		if r := recover(); r != nil {
			outs, err = nil, &panicError{stage: name, what: kindOf(r), stack: stackOfPanic()}
		}
	}()
	return handle(ctx, m)
}

// kindOf is what can be said of a panic: the texts of the Go runtime hold no data but
// numbers and types.
func kindOf(r any) string {
	if e, ok := r.(runtime.Error); ok {
		return e.Error()
	}
	return fmt.Sprintf("a value of type %T", r)
}

const stackDepth = 40

// stackOfPanic names the functions that were running, without their arguments and
// without this machine's folders.
func stackOfPanic() []string {
	pcs := make([]uintptr, 2*stackDepth)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	var out []string
	for {
		f, more := frames.Next()
		switch {
		case f.Function == "":
		case strings.HasPrefix(f.Function, "runtime."):
			if f.Function == "runtime.gopanic" {
				out = nil // below it is only how we got here
			}
		default:
			out = append(out, fmt.Sprintf("%s (%s:%d)", f.Function, path.Base(f.File), f.Line))
		}
		if !more || len(out) == stackDepth {
			return out
		}
	}
}

// about is what every message of a cycle says of itself.
type about struct {
	Cycle string
	Round int
	Table string
}

func aboutMessage(m any) about {
	switch m := m.(type) {
	case messages.SyncRequested:
		return about{Cycle: m.Cycle, Round: m.Round}
	case messages.DevicesChecked:
		return about{Cycle: m.Cycle, Round: m.Round}
	case messages.TableRequested:
		return about{m.Cycle, m.Round, m.Table}
	case messages.TableDownloaded:
		return about{m.Cycle, m.Round, m.Table}
	case messages.DownloadSettled:
		return about{Cycle: m.Cycle, Round: m.Round}
	case messages.DirtyUploaded:
		return about{Cycle: m.Cycle, Round: m.Round}
	case messages.DeviceRegistered:
		return about{Cycle: m.Cycle, Round: m.Round}
	case messages.TombstonesPurged:
		return about{Cycle: m.Cycle, Round: m.Round}
	}
	return about{}
}

func (a about) fields(stage string) []zap.Field {
	f := []zap.Field{zap.String("cycle", a.Cycle), zap.Int("round", a.Round), zap.String("stage", stage)}
	if a.Table != "" {
		f = append(f, zap.String("table", a.Table))
	}
	return f
}

// letters lets the stages of a round leave dead letters, and take them away.
func (p *Pipeline) letters(ctx context.Context, w *wiring, cycle string) error {
	open, err := p.local.StageLetters(ctx)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	var mu sync.Mutex // tables download side by side
	w.panicked = func(topic, table string, message any, e *panicError) {
		mu.Lock()
		defer mu.Unlock()
		open[persistence.StageKey{Stage: e.stage, Table: table}] = true
		payload, err := json.Marshal(message)
		if err == nil {
			err = p.local.StageFailed(ctx, persistence.StageLetter{
				Stage: e.stage, Table: table, Topic: topic, Cycle: cycle, Class: classBug, Reason: e.Error(), Payload: payload, Stack: e.stack,
			})
		}
		if err != nil {
			p.set.log.Error("a dead letter could not be written", zap.String("cycle", cycle), zap.String("stage", e.stage), zap.Error(err))
		}
	}
	w.recovered = func(stage, table string) {
		mu.Lock()
		defer mu.Unlock()
		k := persistence.StageKey{Stage: stage, Table: table}
		if !open[k] {
			return
		}
		if err := p.local.StageRecovered(ctx, stage, table); err != nil {
			p.set.log.Warn("a dead letter that is done with could not be removed; the next cycle does it", zap.String("stage", stage), zap.Error(err))
			return
		}
		delete(open, k)
	}
	return nil
}
