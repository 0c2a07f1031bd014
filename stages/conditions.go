package stages

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// probeKey is a small object that stays: whoever finds it there needs a request less.
const probeKey = "conditions-probe"

// ErrNoConditions says that the store takes a conditional write although its condition does
// not hold.
var ErrNoConditions = fmt.Errorf("this store ignores the conditions of writes (If-None-Match, If-Match): two devices that back up at once would replace "+
	"each other's manifest, and an older snapshot could end up as the newest; use a store that honours them, or accept this "+
	"(?conditions=ignored in the store's URL, WithUnconditionalStore in a program): %w", messages.ErrRejected)

// only is the condition of a write, none where the owner knows that there are none.
func (s *BackUp) only(c messages.Condition) messages.Condition {
	if s.policy.Unconditional {
		return messages.Condition{}
	}
	return c
}

// conditional finds out whether the store honours conditional writes, before
// anything depends on it. The manifest remembers the answer for everybody.
func (s *BackUp) conditional(ctx context.Context, m messages.Manifest, use *messages.StoreUse) (bool, error) {
	if m.Conditional || s.policy.Unconditional {
		return m.Conditional, nil
	}
	const text = "tidemark tries here whether this store honours conditional writes\n"
	const wrong = `"00000000000000000000000000000000"` // an ETag that no object has
	refused := func(cond messages.Condition) (bool, error) {
		o, err := s.store.Put(ctx, probeKey, strings.NewReader(text), cond)
		use.Puts += max(1, o.Requests)
		use.BytesUp += int64(len(text))
		if errors.Is(err, messages.ErrConflict) {
			return true, nil
		}
		return false, err
	}
	absent := messages.Condition{IfAbsent: true}
	ok, err := refused(absent)
	if err == nil && !ok { // now it is there
		ok, err = refused(absent)
	}
	if err == nil && ok {
		ok, err = refused(messages.Condition{IfMatch: wrong})
	}
	switch {
	case errors.Is(err, messages.ErrRejected): // it does not even know the headers
		return false, fmt.Errorf("%w: %w", ErrNoConditions, err)
	case err != nil:
		return false, fmt.Errorf("try the store's conditional writes: %w", err)
	case !ok:
		return false, ErrNoConditions
	}
	return true, nil
}
