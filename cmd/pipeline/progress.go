package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
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
		fmt.Fprint(p.w, "\r\x1b[K"+fit(line, max(screen(p.w), 20)-1))
		p.shown = true
	}
}

// doing says what a stage does, where it may take long enough for people to wonder.
// Settling is not among them: it is asked for after every table, while others download.
var doing = map[string]string{
	messages.StageCheckDevices: "checking devices",
	messages.StageDownload:     "downloading",
	messages.StageUpload:       "uploading",
	messages.StageRegister:     "registering this device",
	messages.StagePurge:        "removing old tombstones",
	messages.StageBackUp:       "backing up",
}

// watch is an observer of a cycle.
func (p *progress) watch() func(tidemark.Event) {
	type key struct {
		work messages.Work
		unit messages.Unit
	}
	var mu sync.Mutex // begin asks for the text
	latest := map[key]tidemark.Progress{}
	more := func() string {
		mu.Lock()
		defer mu.Unlock()
		done, total := map[messages.Unit]int64{}, map[messages.Unit]int64{}
		for k, e := range latest {
			done[k.unit] += e.Done
			total[k.unit] += e.Total
		}
		var parts []string
		if n := done[messages.DocumentsRead]; n > 0 {
			parts = append(parts, count(n, "document", "documents")+" read")
		}
		if n := done[messages.RowsUploaded]; n > 0 {
			parts = append(parts, thousands(n)+" of "+count(total[messages.RowsUploaded], "row", "rows")+" uploaded")
		}
		if n := done[messages.BytesStored]; n > 100_000 { // what goes before the snapshot is not worth a word
			parts = append(parts, size(n)+" stored")
		}
		return strings.Join(parts, ", ")
	}
	return func(e tidemark.Event) {
		switch e := e.(type) {
		case tidemark.CycleStarted:
			mu.Lock()
			clear(latest)
			mu.Unlock()
		case tidemark.StageStarted:
			if what := doing[e.Stage]; what != "" {
				p.begin(what, more)
			}
		case tidemark.StageFailed:
			p.begin(e.Stage+" failed, trying again", more)
		case tidemark.Progress:
			mu.Lock()
			latest[key{e.Work, e.Unit}] = e
			mu.Unlock()
		}
	}
}
