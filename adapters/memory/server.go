package memory

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/tidemark-sync/tidemark/messages"
)

// History is how old a read time may be.
const History = time.Hour

// maxCommitBytes is Firestore's limit for one request.
const maxCommitBytes = 10 << 20

// Bill is what calls were billed.
type Bill struct {
	Reads, Writes, Deletes int64
	// Calls counts port calls, those that failed included.
	Calls int64
}

func (b *Bill) add(o Bill) {
	b.Reads += o.Reads
	b.Writes += o.Writes
	b.Deletes += o.Deletes
	b.Calls += o.Calls
}

// Server is the database that Remotes talk to. The zero value is not usable.
type Server struct {
	scope   string
	mu      sync.Mutex
	last    int64 // µs, the greatest time given out
	devices map[string]messages.Device
	tables  map[string]*table
	old     []superseded
	delayed []delayed
	bill    Bill
}

// superseded remembers that a document has a version to forget an hour later.
type superseded struct {
	at    int64
	table *table
	id    string
}

// delayed is a commit that arrives when Deliver is called.
type delayed struct {
	commit     messages.Commit
	uploadedOn int64
	handle     *Remote
}

// NewServer returns an empty database.
func NewServer() *Server {
	return &Server{scope: "memory:" + rand.Text(), devices: map[string]messages.Device{}, tables: map[string]*table{}}
}

// Remote returns a new handle without faults.
func (s *Server) Remote() *Remote { return &Remote{server: s} }

// Bill returns what all handles were billed so far.
func (s *Server) Bill() Bill {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bill
}

// Dump returns every document as it is now, in order of (table, id).
func (s *Server) Dump() []messages.Document {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []messages.Document
	for _, t := range s.tables {
		for _, d := range t.docs {
			if doc := d.at(s.last); doc != nil {
				all = append(all, copyDocument(*doc))
			}
		}
	}
	slices.SortFunc(all, func(a, b messages.Document) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// DumpDevices returns every record as it is now, in order of id.
func (s *Server) DumpDevices() []messages.Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]messages.Device, 0, len(s.devices))
	for _, id := range slices.Sorted(maps.Keys(s.devices)) {
		all = append(all, copyDevice(s.devices[id]))
	}
	return all
}

// Put writes a document as somebody who is no device does (a console, a cloud
// function): whole, exactly as given, on no condition. It returns the document's
// update time in Unix microseconds.
func (s *Server) Put(d messages.Document) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	d = copyDocument(d)
	d.UpdateTime = s.next()
	s.put(d.Table, d.ID, version{time: d.UpdateTime, doc: d})
	return d.UpdateTime
}

// Edit changes fields of a document as somebody who is no device does: whatever
// else the document holds, its stamp included, stays. It returns the document's
// update time, or 0 when there is no such document.
func (s *Server) Edit(table, id string, fields map[string]any) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.current(table, id)
	if was == nil {
		return 0
	}
	d := *was
	d.Fields = merge(was.Fields, fields)
	d.UpdateTime = s.next()
	s.put(table, id, version{time: d.UpdateTime, doc: d})
	return d.UpdateTime
}

// Remove deletes a document as somebody who is no device does: no tombstone
// stays. It reports whether there was one.
func (s *Server) Remove(table, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current(table, id) == nil {
		return false
	}
	now := s.next()
	s.put(table, id, version{time: now, gone: true})
	return true
}

// Delayed returns how many commits have yet to arrive (Fault.Later).
func (s *Server) Delayed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.delayed)
}

// Deliver lets the commits that were delayed by Fault.Later arrive, in the order
// they were sent, and returns what became of each: nil, or why it was refused.
func (s *Server) Deliver() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var results []error
	for _, d := range s.delayed {
		_, err := s.commit(d.handle, d.commit, d.uploadedOn)
		results = append(results, err)
	}
	s.delayed = nil
	return results
}

// now is the server's time in µs; it never goes back.
func (s *Server) now() int64 {
	s.last = max(s.last, time.Now().UnixMicro())
	return s.last
}

// next is the update time of a new commit: above every time given out before.
func (s *Server) next() int64 {
	s.last = max(s.last+1, time.Now().UnixMicro())
	return s.last
}

func (s *Server) current(table, id string) *messages.Document {
	t := s.tables[table]
	if t == nil {
		return nil
	}
	return t.docs[id].at(s.last)
}

func (s *Server) put(name, id string, v version) {
	t := s.tables[name]
	if t == nil {
		t = newTable()
		s.tables[name] = t
	}
	if t.docs[id] != nil {
		s.old = append(s.old, superseded{v.time, t, id})
	}
	t.put(id, v)
	horizon := v.time - History.Microseconds()
	n := 0
	for n < len(s.old) && s.old[n].at < horizon {
		s.old[n].table.trim(s.old[n].id, horizon)
		n++
	}
	s.old = s.old[n:]
}

// charge adds to both bills.
func (s *Server) charge(r *Remote, b Bill) {
	s.bill.add(b)
	r.bill.add(b)
}

// readable checks a read time.
func (s *Server) readable(readTime int64) error {
	now := s.now()
	if readTime < now-History.Microseconds() {
		return fmt.Errorf("read time %d is %v old, the server keeps %v: %w",
			readTime, time.Duration(now-readTime)*time.Microsecond, History, messages.ErrReadTimeTooOld)
	}
	if readTime > now {
		return fmt.Errorf("read time %d is in the future: %w", readTime, messages.ErrRejected)
	}
	return nil
}

// commit checks all preconditions, and writes when all of them hold.
func (s *Server) commit(r *Remote, c messages.Commit, uploadedOn int64) (messages.Committed, error) {
	s.now()
	if was := s.devices[c.Device.ID]; was.UpdateTime != c.Expect {
		return messages.Committed{}, fmt.Errorf("the record of %q has version %d, expected %d: %w",
			c.Device.ID, was.UpdateTime, c.Expect, messages.ErrConflict)
	}
	merged := make([]messages.Document, len(c.Writes))
	for i := range c.Writes {
		w := &c.Writes[i]
		d := w.Document
		was := s.current(d.Table, d.ID)
		var v int64
		if was != nil {
			v = was.UpdateTime
		}
		if v != w.Expect {
			return messages.Committed{}, fmt.Errorf("document %q of %q has version %d, expected %d: %w",
				d.ID, d.Table, v, w.Expect, messages.ErrConflict)
		}
		if w.Purge {
			continue
		}
		if was != nil {
			d.Fields = merge(was.Fields, d.Fields)
		} else {
			d.Fields = merge(nil, d.Fields)
		}
		if n := d.Size(); n > messages.MaxDocumentBytes {
			return messages.Committed{}, fmt.Errorf("document %q of %q has %d bytes, the limit is %d: %w",
				d.ID, d.Table, n, messages.MaxDocumentBytes, messages.ErrRejected)
		}
		merged[i] = d
	}
	now := s.next()
	bill := Bill{Writes: 1}
	if c.Remove {
		bill = Bill{Deletes: 1}
	}
	for i, d := range merged {
		if w := &c.Writes[i]; w.Purge {
			if w.Expect != 0 {
				s.put(w.Document.Table, w.Document.ID, version{time: now, gone: true})
			}
			bill.Deletes++
			continue
		}
		d.UpdateTime, d.UploadedOn = now, uploadedOn
		s.put(d.Table, d.ID, version{time: now, doc: d})
		bill.Writes++
	}
	if c.Remove {
		delete(s.devices, c.Device.ID)
		s.charge(r, bill)
		return messages.Committed{UpdateTime: now, Writes: bill.Writes, Deletes: bill.Deletes}, nil
	}
	record := copyDevice(c.Device)
	record.UpdateTime, record.UploadedOn = now, s.devices[record.ID].UploadedOn
	if c.Announce {
		record.UploadedOn = uploadedOn
	}
	s.devices[record.ID] = record
	s.charge(r, bill)
	return messages.Committed{UpdateTime: now, Writes: bill.Writes, Deletes: bill.Deletes}, nil
}

// check refuses what the server could never take, whatever it holds.
func check(c *messages.Commit) error {
	if err := checkName("device id", c.Device.ID); err != nil {
		return err
	}
	for _, text := range []string{c.Device.Token, c.Device.Name, c.Device.Platform, c.Device.Version} {
		if !utf8.ValidString(text) {
			return fmt.Errorf("the record of %q holds %q, which is not valid UTF-8: %w", c.Device.ID, text, messages.ErrRejected)
		}
	}
	total := 0
	seen := make(map[[2]string]bool, len(c.Writes))
	for i := range c.Writes {
		d := &c.Writes[i].Document
		err := errors.Join(checkName("table name", d.Table), checkName("document id", d.ID))
		for _, text := range []string{d.UpdatedBy, d.Survivor, d.Stamp.Device} {
			if !utf8.ValidString(text) {
				err = errors.Join(err, fmt.Errorf("%q is not valid UTF-8", text))
			}
		}
		if d.Stamp.Seq < 0 || d.Stamp.Seq > messages.MaxSeq {
			err = errors.Join(err, fmt.Errorf("the number %d does not fit a stamp", d.Stamp.Seq))
		}
		for name, v := range d.Fields {
			if !utf8.ValidString(name) || name == "" {
				err = errors.Join(err, fmt.Errorf("the field name %q is empty or not valid UTF-8", name))
			}
			switch v := v.(type) {
			case nil, int64, float64, bool, []byte:
			case string:
				if !utf8.ValidString(v) {
					err = errors.Join(err, fmt.Errorf("the field %q is not valid UTF-8", name))
				}
			default:
				err = errors.Join(err, fmt.Errorf("the field %q has a value of type %T", name, v))
			}
		}
		if key := [2]string{d.Table, d.ID}; seen[key] {
			err = errors.Join(err, errors.New("it is written twice in one commit"))
		} else {
			seen[key] = true
		}
		if err != nil {
			return fmt.Errorf("document %q of %q: %w: %w", d.ID, d.Table, err, messages.ErrRejected)
		}
		total += d.Size()
	}
	if total > maxCommitBytes {
		return fmt.Errorf("the commit has %d bytes, the limit is %d: %w", total, maxCommitBytes, messages.ErrRejected)
	}
	return nil
}

func checkName(what, name string) error {
	if name == "" || len(name) > 1500 || !utf8.ValidString(name) {
		return fmt.Errorf("the %s %.40q is empty, longer than 1500 bytes or not valid UTF-8: %w", what, name, messages.ErrRejected)
	}
	return nil
}

// merge returns a new map: what was there, and over it copies of what is new.
func merge(was, fields map[string]any) map[string]any {
	m := make(map[string]any, len(was)+len(fields))
	maps.Copy(m, was)
	for k, v := range fields {
		m[k] = copyValue(v)
	}
	return m
}

func copyValue(v any) any {
	if b, ok := v.([]byte); ok {
		return append([]byte{}, b...)
	}
	return v
}

func copyDocument(d messages.Document) messages.Document {
	d.Fields = merge(nil, d.Fields)
	return d
}

func copyDevice(d messages.Device) messages.Device {
	d.Tables = maps.Clone(d.Tables)
	d.Seen, d.Fence = maps.Clone(d.Seen), maps.Clone(d.Fence)
	return d
}

func copyCommit(c messages.Commit) messages.Commit {
	c.Device = copyDevice(c.Device)
	c.Writes = slices.Clone(c.Writes)
	for i := range c.Writes {
		c.Writes[i].Document = copyDocument(c.Writes[i].Document)
	}
	return c
}
