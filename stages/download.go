package stages

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Inbox applies what was downloaded.
type Inbox interface {
	// Sources lists the reads that a table's download consists of; none when it is
	// complete.
	Sources(ctx context.Context, table string, full bool) ([]messages.Source, error)
	// Apply applies documents and moves the source's position, in one transaction.
	Apply(ctx context.Context, table string, docs []messages.Document, after *messages.Source) (messages.Counts, error)
	TableDone(ctx context.Context, table string, sources []messages.Source, step messages.Step) error
	TablesDone(ctx context.Context, cycle string, round int) (map[string]bool, error)
	// Parents are the tables that a table refers to, itself and those in a circle
	// with it excepted.
	Parents(ctx context.Context, table string) ([]string, error)
}

// pageDocuments and pageBytes bound one local transaction of a download: that much
// is read again when it is cut off. A query asks for many pages' worth, because
// with every query the server has to find its place again; but not for so much that
// it could not end within a minute or two on a slow line.
const (
	pageDocuments  = 2000
	pageBytes      = 4 << 20
	queryDocuments = 25_000
)

// Download fetches one table: from each device what lies above what was seen, or
// the whole table; parents before children, everything at one read time.
type Download struct {
	remote DocumentReader
	inbox  Inbox
	mu     sync.Mutex
	busy   map[string]*sync.Mutex
}

// NewDownload returns the stage.
func NewDownload(remote DocumentReader, inbox Inbox) *Download {
	return &Download{remote: remote, inbox: inbox, busy: map[string]*sync.Mutex{}}
}

// Start asks for the tables that wait for no other.
func (s *Download) Start(ctx context.Context, in messages.DevicesChecked) ([]messages.TableRequested, error) {
	return s.release(ctx, messages.TableDownloaded{Cycle: in.Cycle, Round: in.Round, ReadTime: in.ReadTime, Tables: in.Tables, Full: in.Full}, map[string]bool{})
}

// Release asks for the children of a table whose parents have all been
// downloaded. The parents are looked up in the set of tables that this round has
// finished – a set, because messages repeat.
func (s *Download) Release(ctx context.Context, in messages.TableDownloaded) ([]messages.TableRequested, error) {
	done, err := s.inbox.TablesDone(ctx, in.Cycle, in.Round)
	if err != nil {
		return nil, err
	}
	return s.release(ctx, in, done)
}

func (s *Download) release(ctx context.Context, in messages.TableDownloaded, done map[string]bool) ([]messages.TableRequested, error) {
	wanted := map[string]bool{}
	for _, t := range in.Tables {
		wanted[t] = true
	}
	var out []messages.TableRequested
	for _, t := range in.Tables {
		if done[t] {
			continue
		}
		parents, err := s.inbox.Parents(ctx, t)
		if err != nil {
			return nil, err
		}
		ready, isChild := true, in.Table == ""
		for _, p := range parents {
			ready = ready && (!wanted[p] || done[p])
			isChild = isChild || p == in.Table
		}
		if ready && isChild {
			out = append(out, messages.TableRequested{Cycle: in.Cycle, Round: in.Round, ReadTime: in.ReadTime, Table: t, Tables: in.Tables, Full: in.Full})
		}
	}
	return out, nil
}

// Handle downloads one table. Asked twice, it reads once.
func (s *Download) Handle(ctx context.Context, in messages.TableRequested) ([]messages.TableDownloaded, error) {
	unlock := s.lock(in.Table)
	defer unlock()
	out := []messages.TableDownloaded{{Cycle: in.Cycle, Round: in.Round, ReadTime: in.ReadTime, Table: in.Table, Tables: in.Tables, Full: in.Full}}
	done, err := s.inbox.TablesDone(ctx, in.Cycle, in.Round)
	if err != nil || done[in.Table] {
		return nil, err // the first one has announced it
	}
	step := messages.Step{Cycle: in.Cycle, Round: in.Round, Stage: messages.StageDownload, Table: in.Table, Started: time.Now()}
	sources, err := s.inbox.Sources(ctx, in.Table, in.Full)
	if err != nil {
		return nil, err
	}
	for i := range sources {
		if err := s.read(ctx, in, &sources[i], &step.Counts); err != nil {
			return nil, fmt.Errorf("download table %q: %w", in.Table, err)
		}
	}
	if err := s.inbox.TableDone(ctx, in.Table, sources, step); err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Download) lock(table string) func() {
	s.mu.Lock()
	m := s.busy[table]
	if m == nil {
		m = &sync.Mutex{}
		s.busy[table] = m
	}
	s.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// read reads one source to its end, a page at a time.
func (s *Download) read(ctx context.Context, in messages.TableRequested, src *messages.Source, counts *messages.Counts) error {
	for {
		var page []messages.Document
		bytes, got := 0, 0
		flush := func() error {
			if len(page) == 0 {
				return nil
			}
			last := &page[len(page)-1]
			src.After = messages.Position{Stamp: last.Stamp, ID: last.ID}
			c, err := s.inbox.Apply(ctx, in.Table, page, src)
			if err != nil {
				return err
			}
			counts.Add(c)
			page, bytes = page[:0], 0
			return nil
		}
		reads, err := s.remote.Read(ctx, messages.Query{Table: in.Table, Device: src.Device, After: src.After, ReadTime: in.ReadTime, Limit: queryDocuments},
			func(d messages.Document) error {
				got++
				bytes += d.Size()
				counts.Bytes += int64(d.Size())
				page = append(page, d)
				if len(page) >= pageDocuments || bytes >= pageBytes {
					return flush()
				}
				return nil
			})
		counts.Billed.Reads += reads
		if err != nil {
			return err
		}
		if err := flush(); err != nil {
			return err
		}
		if got < queryDocuments {
			return nil
		}
	}
}
