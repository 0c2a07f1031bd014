package memory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Remote is one handle on a Server.
type Remote struct {
	// Fault plans what goes wrong with each call; nil is nothing. It is called
	// without any lock, so it may use the server. Set it before the first call.
	Fault func(Call) Fault

	server *Server
	// Under the server's lock.
	bill    Bill
	devices *messages.DeviceList
	device  map[string]messages.Device
}

// NewRemote returns a handle on a new, empty Server.
func NewRemote() *Remote { return NewServer().Remote() }

// Server returns the server that the handle talks to.
func (r *Remote) Server() *Server { return r.server }

// Scope is the server's, for as long as it lives.
func (r *Remote) Scope() string { return r.server.scope }

// Bill returns what this handle was billed so far.
func (r *Remote) Bill() Bill {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	return r.bill
}

// begin counts the call and asks what goes wrong with it.
func (r *Remote) begin(ctx context.Context, c Call) (Fault, error) {
	r.server.mu.Lock()
	r.server.charge(r, Bill{Calls: 1})
	c.N = r.bill.Calls
	r.server.mu.Unlock()
	var f Fault
	if r.Fault != nil {
		f = r.Fault(c)
	}
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if err := ended(ctx); err != nil {
		return f, fmt.Errorf("%s: %w", c.Op, err)
	}
	if f.Before != nil {
		return f, fmt.Errorf("%s: %w", c.Op, f.Before)
	}
	return f, nil
}

// end is called with the call's outcome, after it took effect.
func (f *Fault) end(op string, err error) error {
	if f.Then != nil {
		f.Then()
	}
	if err == nil {
		err = f.After
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// ended is the context's error with its class: a deadline is an unavailable
// server, a cancellation is the caller's own wish and has none.
func ended(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", messages.ErrUnavailable, err)
	}
	return err
}

// Devices implements the port.
func (r *Remote) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	f, err := r.begin(ctx, Call{Op: OpDevices})
	if err != nil {
		return messages.DeviceList{}, err
	}
	list := r.server.list(r, since, f.Repeat)
	if err := f.end(OpDevices, nil); err != nil {
		return messages.DeviceList{}, err
	}
	return list, nil
}

func (s *Server) list(r *Remote, since int64, repeat bool) messages.DeviceList {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := messages.DeviceList{ReadTime: s.now()}
	if repeat && r.devices != nil {
		list = *r.devices
	} else {
		for _, d := range s.devices {
			if since < 0 || d.UploadedOn > since {
				list.Devices = append(list.Devices, d)
			}
		}
		list.Reads = max(1, int64(len(list.Devices)))
		kept := list
		r.devices = &kept
	}
	s.charge(r, Bill{Reads: list.Reads})
	// Records are never changed once stored, so the kept answer shares them.
	devices := make([]messages.Device, len(list.Devices))
	for i, d := range list.Devices {
		devices[i] = copyDevice(d)
	}
	list.Devices = devices
	return list
}

// Device implements the port.
func (r *Remote) Device(ctx context.Context, id string) (messages.Device, error) {
	f, err := r.begin(ctx, Call{Op: OpDevice})
	if err != nil {
		return messages.Device{}, err
	}
	s := r.server
	s.mu.Lock()
	d := s.devices[id]
	if was, ok := r.device[id]; ok && f.Repeat {
		d = was
	}
	if r.device == nil {
		r.device = map[string]messages.Device{}
	}
	r.device[id] = d
	d = copyDevice(d)
	d.ID = id
	s.charge(r, Bill{Reads: 1})
	s.mu.Unlock()
	if err := f.end(OpDevice, nil); err != nil {
		return messages.Device{}, err
	}
	return d, nil
}

// readChunk is how many documents are looked up under one lock.
const readChunk = 256

// Read implements the port. A read time of 0 is now.
func (r *Remote) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	f, err := r.begin(ctx, Call{Op: OpRead, Query: &q})
	if err != nil {
		return 0, err
	}
	s := r.server
	reads, err := s.read(ctx, q, &f, yield)
	if reads == 0 && (err == nil || errors.Is(err, f.Break)) {
		reads = 1
	}
	s.mu.Lock()
	s.charge(r, Bill{Reads: reads})
	s.mu.Unlock()
	if err != nil {
		return reads, err
	}
	return reads, f.end(OpRead, nil)
}

func (s *Server) read(ctx context.Context, q messages.Query, f *Fault, yield func(messages.Document) error) (reads int64, err error) {
	after := q.After
	times := 1
	if f.Repeat {
		times = 2
	}
	for q.Limit == 0 || reads < int64(q.Limit) {
		n := readChunk
		if q.Limit > 0 {
			n = min(n, q.Limit-int(reads))
		}
		s.mu.Lock()
		if q.ReadTime == 0 {
			q.ReadTime = s.now()
		}
		err := s.readable(q.ReadTime)
		var docs []messages.Document
		if err == nil {
			docs = s.tables[q.Table].scan(q, after, n)
		}
		s.mu.Unlock()
		if err != nil {
			return reads, fmt.Errorf("read %q: %w", q.Table, err)
		}
		for _, d := range docs {
			if f.Break != nil && reads >= int64(f.BreakAfter) {
				return reads, fmt.Errorf("%s: %w", OpRead, f.Break)
			}
			if err := ended(ctx); err != nil {
				return reads, fmt.Errorf("%s: %w", OpRead, err)
			}
			reads++
			for range times {
				if err := yield(copyDocument(d)); err != nil {
					return reads, err
				}
			}
			after = messages.Position{Stamp: d.Stamp, ID: d.ID}
		}
		if len(docs) < n {
			break
		}
	}
	if f.Break != nil && reads <= int64(f.BreakAfter) {
		return reads, fmt.Errorf("%s: %w", OpRead, f.Break)
	}
	return reads, nil
}

// Documents implements the port.
func (r *Remote) Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	f, err := r.begin(ctx, Call{Op: OpDocuments})
	if err != nil {
		return messages.Page{}, err
	}
	page, err := r.server.lookUp(r, table, ids, readTime)
	if f.Repeat {
		page.Documents = append(page.Documents, page.Documents...)
	}
	if err := f.end(OpDocuments, err); err != nil {
		return messages.Page{}, err
	}
	return page, nil
}

func (s *Server) lookUp(r *Remote, name string, ids []string, readTime int64) (messages.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if readTime == 0 {
		readTime = s.now()
	}
	if err := s.readable(readTime); err != nil {
		return messages.Page{}, fmt.Errorf("look up in %q: %w", name, err)
	}
	page := messages.Page{Reads: int64(len(ids))}
	t := s.tables[name]
	for _, id := range ids {
		if t == nil {
			break
		}
		if d := t.docs[id].at(readTime); d != nil {
			page.Documents = append(page.Documents, copyDocument(*d))
		}
	}
	s.charge(r, Bill{Reads: page.Reads})
	return page, nil
}

// Commit implements the port. A document that is named twice is rejected.
func (r *Remote) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	s := r.server
	s.mu.Lock()
	start := s.now() / 1000
	s.mu.Unlock()
	f, err := r.begin(ctx, Call{Op: OpCommit, Commit: &c})
	if err != nil {
		return messages.Committed{}, err
	}
	if err := check(&c); err != nil {
		return messages.Committed{}, f.end(OpCommit, err)
	}
	uploadedOn := start - f.Backdate.Milliseconds()
	s.mu.Lock()
	if f.Later != nil {
		s.delayed = append(s.delayed, delayed{copyCommit(c), uploadedOn, r})
		s.mu.Unlock()
		return messages.Committed{}, fmt.Errorf("%s: %w", OpCommit, f.Later)
	}
	done, err := s.commit(r, c, uploadedOn)
	if f.Repeat {
		done, err = s.commit(r, c, uploadedOn)
	}
	s.mu.Unlock()
	if err := f.end(OpCommit, err); err != nil {
		return messages.Committed{}, err
	}
	return done, nil
}
