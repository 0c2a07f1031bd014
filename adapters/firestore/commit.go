package firestore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	pb "cloud.google.com/go/firestore/apiv1/firestorepb"

	"github.com/tidemark-sync/tidemark/messages"
)

// Commit writes everything or nothing, in one request.
func (r *Remote) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	op := fmt.Sprintf("commit %d documents of device %s", len(c.Writes), c.Device.ID)
	req := &pb.CommitRequest{Database: r.database, Writes: make([]*pb.Write, 0, len(c.Writes)+1)}
	done := messages.Committed{Writes: 1}
	if c.Remove {
		done = messages.Committed{Deletes: 1}
	}
	// The record goes first, so that the answer's first result is its version.
	w, err := r.deviceWrite(&c)
	if err != nil {
		return messages.Committed{}, fmt.Errorf("firestore: %s: %w", op, err)
	}
	req.Writes = append(req.Writes, w)
	for i := range c.Writes {
		if w, err = r.documentWrite(&c.Writes[i]); err != nil {
			return messages.Committed{}, fmt.Errorf("firestore: %s: %w", op, err)
		}
		req.Writes = append(req.Writes, w)
		if c.Writes[i].Purge {
			done.Deletes++
		} else {
			done.Writes++
		}
	}
	call, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var resp *pb.CommitResponse
	err = r.signed(call, func(ctx context.Context) (err error) {
		resp, err = r.client.Commit(ctx, req)
		return err
	})
	if err != nil {
		return messages.Committed{}, r.commitError(ctx, op, err, c.Writes)
	}
	if c.Remove { // what is gone has no version
		done.UpdateTime = micros(resp.GetCommitTime())
		return done, nil
	}
	results := resp.GetWriteResults()
	if len(results) == 0 || results[0].GetUpdateTime() == nil {
		return messages.Committed{}, fmt.Errorf("firestore: %s: the acknowledgement has no update time: %w", op, messages.ErrUnavailable)
	}
	done.UpdateTime = micros(results[0].GetUpdateTime())
	return done, nil
}

// values are the texts that documents hold, as they are and as a quotation has them.
func values(writes []messages.Write) (list []string) {
	for i := range writes {
		for _, v := range writes[i].Document.Fields {
			text := ""
			switch v := v.(type) {
			case string:
				text = v
			case []byte:
				text = string(v)
			case int64, float64:
				text = fmt.Sprint(v)
			}
			list = append(list, text)
			if quoted := strconv.Quote(text); len(quoted) != len(text)+2 {
				list = append(list, quoted[1:len(quoted)-1])
			}
		}
	}
	return list
}

// names are the words that an error says of its own: the tables, the columns, and the
// parts of the documents' path.
func (r *Remote) names(writes []messages.Write) []string {
	list := strings.FieldsFunc(r.database+"/documents/"+r.scope, func(c rune) bool { return c == '/' })
	for i := range writes {
		list = append(list, writes[i].Document.Table)
		list = slices.AppendSeq(list, maps.Keys(writes[i].Document.Fields))
	}
	return slices.Compact(slices.Sorted(slices.Values(list)))
}
