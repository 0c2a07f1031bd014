package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

// progress shows on a terminal what takes longer than a second, in one line that is
// wiped out at the end. It uses no colour. All methods do nothing on nil, which is
// what there is when nobody is looking.
type progress struct {
	w     *os.File
	mu    sync.Mutex
	what  string
	more  func() string // asked at every redraw; nil for nothing to add
	begun time.Time
	shown bool
	stop  chan struct{}
	done  chan struct{}
}

const (
	progressAfter = time.Second
	progressEvery = 500 * time.Millisecond
)

func newProgress(w *os.File) *progress {
	if !term.IsTerminal(int(w.Fd())) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	return &progress{w: w}
}

// begin starts the clock, or says what goes on now. more may add to it.
func (p *progress) begin(what string, more func() string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
	if more != nil {
		p.more = more
	}
	if p.stop != nil {
		return
	}
	p.begun = time.Now()
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go p.draw(p.stop, p.done)
}

// end wipes the line out; begin may follow.
func (p *progress) end() {
	if p == nil {
		return
	}
	p.mu.Lock()
	stop, done := p.stop, p.done
	p.stop, p.more = nil, nil
	p.mu.Unlock()
	if stop == nil {
		return
	}
	close(stop)
	<-done
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

func (p *progress) draw(stop, done chan struct{}) {
	defer close(done)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		what, more, since := p.what, p.more, time.Since(p.begun)
		p.mu.Unlock()
		if since < progressAfter {
			continue
		}
		line := fmt.Sprintf("%.0f s  %s", since.Seconds(), what)
		if more != nil {
			if m := more(); m != "" {
				line += ", " + m
			}
		}
		width, _, err := term.GetSize(int(p.w.Fd()))
		if err != nil || width < 20 {
			width = 80
		}
		fmt.Fprint(p.w, "\r\x1b[K"+fit(line, width-1))
		p.shown = true
	}
}

// follows says what a cycle does after each of its steps.
var follows = map[string]string{
	"check devices":    "downloading",
	"request tables":   "downloading",
	"download":         "downloading",
	"request children": "downloading",
	"nothing new":      "uploading",
	"settle":           "uploading",
	"upload":           "registering this device",
	"register":         "backing up",
}

// steps is a zap core that knows which stage of a cycle a line is about.
type steps struct {
	zapcore.Core           // nil: the lines are for progress only
	progress     *progress // nil: the lines are for the log only
	stage        string
}

func (c steps) Enabled(l zapcore.Level) bool { return c.Core == nil || c.Core.Enabled(l) }

func (c steps) With(fields []zapcore.Field) zapcore.Core {
	for _, f := range fields {
		if f.Key == "stage" {
			c.stage = f.String
		}
	}
	if c.Core != nil {
		c.Core = c.Core.With(fields)
	}
	return c
}

func (c steps) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c steps) Write(e zapcore.Entry, fields []zapcore.Field) error {
	switch next := follows[c.stage]; {
	case c.stage != "" && e.Level >= zapcore.WarnLevel:
		c.progress.begin(c.stage+" failed, trying again", nil)
	case next != "":
		c.progress.begin(next, nil)
	}
	if c.Core == nil {
		return nil
	}
	return c.Core.Write(e, fields)
}

func (c steps) Sync() error {
	if c.Core == nil {
		return nil
	}
	return c.Core.Sync()
}
