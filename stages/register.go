package stages

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// Registrar knows whether our record is due.
type Registrar interface {
	Outbox
	// RegisterDue reports whether our record has to be written although there is
	// nothing to upload: it does not exist yet, or last told what we have seen too
	// long ago.
	RegisterDue(ctx context.Context) (bool, error)
}

// Register keeps our record in Devices. Uploads have written it on their way; alone
// it is written at most once a day, and then neither its number nor its uploadedOn
// rises: devices that tell each other how far they have read would wake each other
// for ever.
type Register struct {
	remote    CommitReader
	registrar Registrar
}

// NewRegister returns the stage.
func NewRegister(remote CommitReader, registrar Registrar) *Register {
	return &Register{remote, registrar}
}

// Handle writes the record when it is due. An idle cycle writes nothing.
func (s *Register) Handle(ctx context.Context, in messages.DirtyUploaded) ([]messages.DeviceRegistered, error) {
	step := messages.Step{Cycle: in.Cycle, Round: in.Round, Stage: messages.StageRegister, Started: time.Now()}
	again := in.Again
	if !again {
		var err error
		if again, err = s.register(ctx, &step.Counts); err != nil {
			return nil, err
		}
	}
	if err := s.registrar.Step(ctx, step); err != nil {
		return nil, err
	}
	return []messages.DeviceRegistered{{Cycle: in.Cycle, Round: in.Round, Again: again}}, nil
}

func (s *Register) register(ctx context.Context, counts *messages.Counts) (again bool, err error) {
	due, err := s.registrar.RegisterDue(ctx)
	if err != nil || !due {
		return false, err
	}
	c, err := s.registrar.Prepare(ctx, nil)
	if err != nil {
		return false, err
	}
	done, err := s.remote.Commit(ctx, c)
	if err != nil {
		refusal := fmt.Errorf("register this device: %w", err)
		if !perhapsMoved(err) {
			return false, refusal
		}
		settled, n, err := ownRecord(ctx, s.remote, s.registrar, c)
		counts.Add(n)
		switch {
		case errors.Is(err, errAnotherIdentity):
			return true, nil
		case err == nil && !settled && errors.Is(refusal, messages.ErrConflict):
			return false, errHolds
		case err == nil && !settled:
			return false, refusal
		}
		return false, err
	}
	counts.Billed.Writes += done.Writes
	_, err = s.registrar.Acknowledge(ctx, c.Device.Token, done.UpdateTime)
	return false, err
}
