package persistence

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// StageKey is a stage and the table it worked on, "" for all.
type StageKey struct{ Stage, Table string }

// StageLetter is a message that a stage could not handle at all: it panicked.
type StageLetter struct {
	Stage, Table string
	// Topic is where the message came from, Payload the message.
	Topic, Cycle  string
	Class, Reason string
	Payload       []byte
	// Stack are the functions that ran, the innermost first.
	Stack []string
}

// isStage tells the letters of messages from those of rows and documents.
const isStage = `documentId = '' AND topic <> ''`

type letterMetadata struct {
	Stack []string `json:"stack,omitempty"`
}

// waitingForReplay is the updatedOn of a letter that nobody asked to be tried again;
// it is 0 when somebody did.
const waitingForReplay = 1

// StageFailed keeps the message, one letter a stage and table.
func (l *Local) StageFailed(ctx context.Context, s StageLetter) error {
	meta, err := json.Marshal(letterMetadata{s.Stack})
	if err != nil {
		return err
	}
	now := time.Now().UnixMilli()
	err = l.write(ctx, func(tx *tx) error {
		n, err := tx.run(`UPDATE tidemark_dead_letters SET topic = ?, cycle = ?, class = ?, payload = ?, metadata = ?, traceparent = ?, attempts = attempts + 1, lastOn = ?,
			state = CASE WHEN reason = ? THEN state ELSE 'dead' END, reason = ?, updatedOn = ?
			WHERE handler = ? AND tableName = ? AND `+isStage,
			s.Topic, s.Cycle, s.Class, s.Payload, string(meta), messages.Traceparent(ctx), now, s.Reason, s.Reason, waitingForReplay, s.Stage, s.Table)
		if err != nil || n > 0 {
			return err
		}
		return tx.exec(`INSERT INTO tidemark_dead_letters (handler, tableName, topic, cycle, class, reason, payload, metadata, traceparent, firstOn, lastOn, updatedOn)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, s.Stage, s.Table, s.Topic, s.Cycle, s.Class, s.Reason, s.Payload, string(meta), messages.Traceparent(ctx), now, now, waitingForReplay)
	})
	if err != nil {
		return fmt.Errorf("keep the message of stage %q: %w", s.Stage, err)
	}
	return nil
}

// StageLetters are the stages and tables that have a letter.
func (l *Local) StageLetters(ctx context.Context) (map[StageKey]bool, error) {
	out := map[StageKey]bool{}
	err := eachRow(ctx, l.db.DB, `SELECT handler, tableName FROM tidemark_dead_letters WHERE `+isStage, func(scan func(...any) error) error {
		var k StageKey
		err := scan(&k.Stage, &k.Table)
		out[k] = true
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the dead letters: %w", explain(err))
	}
	return out, nil
}

// StageRecovered takes the letter of a stage away: it has handled such a message.
func (l *Local) StageRecovered(ctx context.Context, stage, table string) error {
	err := l.write(ctx, func(tx *tx) error {
		return tx.exec(`DELETE FROM tidemark_dead_letters WHERE handler = ? AND tableName = ? AND `+isStage, stage, table)
	})
	if err != nil {
		return fmt.Errorf("remove the dead letter of stage %q: %w", stage, err)
	}
	return nil
}
