package stages

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Outbox holds the rows that have to go up.
type Outbox interface {
	Standing(ctx context.Context) (messages.Standing, error)
	// Dirty gathers the next commit's worth of writes, none when all is up.
	Dirty(ctx context.Context, cur *messages.Cursor) ([]messages.Write, error)
	// Closed drops from the parts of a split commit what lost its parent.
	Closed(ctx context.Context, cur *messages.Cursor, writes []messages.Write) ([]messages.Write, error)
	// Prepare makes a commit of some writes (none: the record alone) and saves its
	// token and journal before it is sent.
	Prepare(ctx context.Context, writes []messages.Write) (messages.Commit, error)
	Acknowledge(ctx context.Context, token string, updateTime int64) (messages.Counts, error)
	// Moved settles a commit whose precondition did not hold.
	Moved(ctx context.Context, c messages.Commit, now []messages.Document) (messages.Moved, error)
	// SetAside puts a row that the server refuses into the dead letters.
	// Held records how many rows an upload had to leave behind.
	Held(ctx context.Context, rows int) error
	SetAside(ctx context.Context, w messages.Write, class, reason string) error
	NewIdentity(ctx context.Context) error
	Step(ctx context.Context, step messages.Step) error
}

// CommitReader is what an upload and a registration need of the server.
type CommitReader interface {
	DeviceReader
	DocumentReader
	Committer
}

// Upload sends dirty rows in atomic commits, one after the other. Every commit also
// writes our record with the next number.
type Upload struct {
	remote CommitReader
	outbox Outbox
}

// NewUpload returns the stage.
func NewUpload(remote CommitReader, outbox Outbox) *Upload {
	return &Upload{remote, outbox}
}

// errAnotherIdentity: somebody else writes under our id; check devices again.
var errAnotherIdentity = errors.New("this file has a new installation id")

// errHolds: it was not a precondition, or it holds again.
var errHolds = fmt.Errorf("the server refused a precondition that holds: %w", messages.ErrUnavailable)

// perhapsMoved reports whether a commit may have failed because what it stands on has
// moved. A server that looks at its rules first calls that unauthorized: a number that
// does not follow on the record's is against them.
func perhapsMoved(err error) bool {
	return errors.Is(err, messages.ErrConflict) || errors.Is(err, messages.ErrUnauthorized) && !errors.Is(err, messages.ErrSignedOut)
}

// Handle uploads until nothing is left that can go up now.
func (s *Upload) Handle(ctx context.Context, in messages.DownloadSettled) ([]messages.DirtyUploaded, error) {
	step := messages.Step{Cycle: in.Cycle, Round: in.Round, Stage: messages.StageUpload, Started: time.Now()}
	again := in.Again
	if !again { // with a broken cut there may be newer versions of what we would send
		var err error
		if again, err = s.upload(ctx, &step.Counts); err != nil {
			return nil, err
		}
	}
	if err := s.outbox.Step(ctx, step); err != nil {
		return nil, err
	}
	return []messages.DirtyUploaded{{Cycle: in.Cycle, Round: in.Round, Again: again}}, nil
}

func (s *Upload) upload(ctx context.Context, counts *messages.Counts) (again bool, err error) {
	var cur messages.Cursor
	var parts [][]messages.Write // of commits that were refused as a whole, to be sent first
	defer func() { counts.Add(cur.Counts) }()
	for {
		var writes []messages.Write
		if len(parts) > 0 {
			if writes, err = s.outbox.Closed(ctx, &cur, parts[0]); err != nil {
				return again, err
			}
			parts = parts[1:]
			if len(writes) == 0 {
				continue
			}
		} else {
			if writes, err = s.outbox.Dirty(ctx, &cur); err != nil {
				return again, err
			}
			if len(writes) == 0 {
				return again, s.outbox.Held(ctx, len(cur.Held))
			}
		}
		c, err := s.outbox.Prepare(ctx, writes)
		if err != nil {
			return again, err
		}
		done, err := s.remote.Commit(ctx, c)
		switch {
		case err == nil:
			counts.Billed.Writes += done.Writes
			counts.Billed.Deletes += done.Deletes
			for _, w := range c.Writes {
				counts.Bytes += int64(w.Document.Size())
			}
			n, err := s.outbox.Acknowledge(ctx, c.Device.Token, done.UpdateTime)
			if err != nil {
				return again, err
			}
			counts.Add(n)
		case errors.Is(err, messages.ErrConflict):
			leave, stuck, err := s.moved(ctx, c, counts)
			if errors.Is(err, errAnotherIdentity) {
				return true, nil
			}
			if err != nil {
				return again, err
			}
			again = again || !stuck
			if leave == nil {
				continue // a commit of ours had succeeded; if an earlier one, these rows go up in the next round
			}
			for k := range leave {
				cur.Hold(k.Table, k.ID)
			}
			rest := slices.DeleteFunc(slices.Clone(writes), func(w messages.Write) bool {
				return leave[messages.DocumentKey{Table: w.Document.Table, ID: w.Document.ID}]
			})
			if len(rest) > 0 {
				parts = slices.Insert(parts, 0, rest)
			}
		case errors.Is(err, messages.ErrRejected), errors.Is(err, messages.ErrUnauthorized):
			split, moved, err := s.refused(ctx, c, writes, err, &cur, counts)
			if errors.Is(err, errAnotherIdentity) {
				return true, nil
			}
			if err != nil {
				return again, err
			}
			again = again || moved
			parts = slices.Insert(parts, 0, split...)
		default:
			return again, fmt.Errorf("upload %d documents: %w", len(writes), err)
		}
	}
}

// moved finds out which precondition did not hold: the record's, because that
// commit had succeeded after all (then it returns nil) or because a stranger writes
// under our id, or some documents', which it returns.
func (s *Upload) moved(ctx context.Context, c messages.Commit, counts *messages.Counts) (leave map[messages.DocumentKey]bool, stuck bool, err error) {
	settled, n, err := ownRecord(ctx, s.remote, s.outbox, c)
	counts.Add(n)
	if err != nil {
		return nil, false, err
	}
	if settled {
		return nil, false, nil
	}
	ids := map[string][]string{}
	for _, w := range c.Writes {
		ids[w.Document.Table] = append(ids[w.Document.Table], w.Document.ID)
	}
	var now []messages.Document
	for _, table := range slices.Sorted(maps.Keys(ids)) {
		page, err := s.remote.Documents(ctx, table, ids[table], 0)
		if err != nil {
			return nil, false, fmt.Errorf("read the documents of a commit that moved: %w", err)
		}
		counts.Billed.Reads += page.Reads
		now = append(now, page.Documents...)
	}
	out, err := s.outbox.Moved(ctx, c, now)
	if err != nil {
		return nil, false, err
	}
	counts.Add(out.Counts)
	if len(out.Leave) == 0 {
		return nil, false, errHolds
	}
	return out.Leave, out.Stuck, nil
}

// ownRecord reads our record after a commit met a conflict. settled: the record
// says that a commit of ours had landed, and it is acknowledged.
func ownRecord(ctx context.Context, remote DeviceReader, outbox Outbox, c messages.Commit) (settled bool, counts messages.Counts, err error) {
	record, err := remote.Device(ctx, c.Device.ID)
	if err != nil {
		return false, counts, fmt.Errorf("read our own record: %w", err)
	}
	counts.Billed.Reads++
	if record.UpdateTime == c.Expect {
		return false, counts, nil
	}
	if record.UpdateTime == 0 || record.Forgotten {
		marker, err := remote.Device(ctx, messages.ForgottenScope)
		if err != nil {
			return false, counts, fmt.Errorf("see whether the scope was forgotten: %w", err)
		}
		counts.Billed.Reads++
		if scopeForgotten([]messages.Device{marker}) {
			return false, counts, errScopeForgotten
		}
	}
	if record.UpdateTime == 0 {
		return false, counts, messages.Saying(messages.ErrNotFound, "our record in Devices is gone: somebody deleted it; restore it or start from a fresh copy")
	}
	st, err := outbox.Standing(ctx)
	if err != nil {
		return false, counts, err
	}
	if !slices.Contains(st.Tokens, record.Token) {
		if err := outbox.NewIdentity(ctx); err != nil {
			return false, counts, err
		}
		return false, counts, errAnotherIdentity
	}
	n, err := outbox.Acknowledge(ctx, record.Token, record.UpdateTime)
	counts.Add(n)
	return true, counts, err
}

// ruled is into how many documents a commit is cut that rules refuse. Rules may look
// the record up for every document, and servers bound how often they do so for one
// commit: Firestore 20 times, not counting what it has cached.
const ruled = 20

// refused cuts a commit that the server refuses as a whole, until the row that it
// does not take stands alone and is set aside. Servers do not reliably name it. moved
// tells that it was not refused: something newer is there.
func (s *Upload) refused(ctx context.Context, c messages.Commit, writes []messages.Write, refusal error, cur *messages.Cursor, counts *messages.Counts) (parts [][]messages.Write, moved bool, err error) {
	part := max(len(writes)/2, 1)
	if errors.Is(refusal, messages.ErrUnauthorized) {
		part = min(part, ruled)
		failed := fmt.Errorf("upload %d documents: %w", len(writes), refusal)
		if !perhapsMoved(refusal) {
			return nil, false, failed
		}
		settled, n, err := ownRecord(ctx, s.remote, s.outbox, c)
		counts.Add(n)
		if errors.Is(err, messages.ErrUnauthorized) && perhapsMoved(err) {
			return nil, false, failed
		}
		if err != nil || settled {
			return nil, true, err
		}
		// Rules may refuse one document, or the whole scope: is our own record still ours
		// to write?
		alone, err := s.outbox.Prepare(ctx, nil)
		if err != nil {
			return nil, false, err
		}
		done, err := s.remote.Commit(ctx, alone)
		if errors.Is(err, messages.ErrUnauthorized) && perhapsMoved(err) {
			return nil, false, failed
		}
		if err != nil {
			return nil, false, fmt.Errorf("write our own record: %w", err)
		}
		counts.Billed.Writes += done.Writes
		if _, err := s.outbox.Acknowledge(ctx, alone.Device.Token, done.UpdateTime); err != nil {
			return nil, false, err
		}
	}
	if len(writes) == 1 {
		w := writes[0]
		cur.Hold(w.Document.Table, w.Document.ID)
		counts.Table(w.Document.Table, messages.TableCounts{Dead: 1})
		return nil, false, s.outbox.SetAside(ctx, w, messages.Class(refusal), refusal.Error())
	}
	for p := range slices.Chunk(writes, part) {
		parts = append(parts, slices.Clone(p))
	}
	return parts, false, nil
}
