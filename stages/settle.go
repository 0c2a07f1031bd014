package stages

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Settler decides what needs the whole download.
type Settler interface {
	// Settle ends a download in one transaction; see persistence. With a Lookup in
	// its answer it has not ended: read those documents and call it again.
	Settle(ctx context.Context, asked map[string][]string, fetched []messages.Document, step messages.Step) (messages.Settlement, error)
	TablesDone(ctx context.Context, cycle string, round int) (map[string]bool, error)
	StageDone(ctx context.Context, cycle string, round int, stage string) (bool, error)
}

// Settle joins the tables of a round: when the last one is downloaded, waiting
// rows, tombstones and unique keys are decided, what was seen moves forward, and
// the upload may begin.
type Settle struct {
	remote  DocumentReader
	settler Settler
}

// NewSettle returns the stage.
func NewSettle(remote DocumentReader, settler Settler) *Settle {
	return &Settle{remote, settler}
}

// Nothing goes straight on when no table has anything new.
func (s *Settle) Nothing(ctx context.Context, in messages.DevicesChecked) ([]messages.DownloadSettled, error) {
	if len(in.Tables) > 0 {
		return nil, nil
	}
	return s.settle(ctx, in.Cycle, in.Round, in.ReadTime)
}

// Handle settles when the set of tables is complete, once a round.
func (s *Settle) Handle(ctx context.Context, in messages.TableDownloaded) ([]messages.DownloadSettled, error) {
	done, err := s.settler.TablesDone(ctx, in.Cycle, in.Round)
	if err != nil {
		return nil, err
	}
	for _, t := range in.Tables {
		if !done[t] {
			return nil, nil
		}
	}
	return s.settle(ctx, in.Cycle, in.Round, in.ReadTime)
}

func (s *Settle) settle(ctx context.Context, cycle string, round int, readTime int64) ([]messages.DownloadSettled, error) {
	if done, err := s.settler.StageDone(ctx, cycle, round, messages.StageSettle); err != nil || done {
		return nil, err
	}
	step := messages.Step{Cycle: cycle, Round: round, Stage: messages.StageSettle, Started: time.Now()}
	asked := map[string][]string{}
	var fetched []messages.Document
	for {
		out, err := s.settler.Settle(ctx, asked, fetched, step)
		if err != nil {
			return nil, err
		}
		if len(out.Lookup) == 0 {
			return []messages.DownloadSettled{{Cycle: cycle, Round: round, Again: out.Again}}, nil
		}
		step.Counts.Add(out.Counts)
		for _, table := range slices.Sorted(maps.Keys(out.Lookup)) { // in order: a cycle can be repeated exactly
			ids := out.Lookup[table]
			page, err := s.remote.Documents(ctx, table, ids, readTime)
			if err != nil {
				return nil, fmt.Errorf("read deleted parents of table %q: %w", table, err)
			}
			step.Counts.Billed.Reads += page.Reads
			fetched = append(fetched, page.Documents...)
			asked[table] = append(asked[table], ids...)
		}
	}
}
