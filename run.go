package tidemark

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
)

// Run keeps the database in step until ctx ends, and then returns nil. It waits out
// any outage: while the server is unavailable it asks less and less often, up to
// every five minutes. A cycle that is under way when ctx ends may take ten seconds
// more; then it is cut off, and the next one goes on where it was. Run returns an
// error for what time does not mend: refused credentials, a scope that does not
// exist, a database that is not attached or damaged. The application owns the
// goroutine.
func (p *Pipeline) Run(ctx context.Context, report ...func(Report, error)) error {
	cycles, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	defer context.AfterFunc(ctx, func() {
		timer := time.NewTimer(p.set.grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			stop(context.Cause(ctx))
		case <-cycles.Done():
		}
	})()
	wait := p.set.interval
	for ctx.Err() == nil {
		r, err := p.Sync(cycles)
		for _, f := range report {
			f(r, err)
		}
		switch {
		case err == nil:
			wait = p.set.interval
		case cycles.Err() != nil:
			return nil
		case errors.Is(err, ErrUnauthorized), errors.Is(err, ErrNotFound), errors.Is(err, ErrNotAttached), errors.Is(err, ErrNotDatabase), errors.Is(err, ErrOtherScope):
			return err
		default:
			wait = min(wait*2, max(p.set.interval, 5*time.Minute))
			p.set.log.Warn("sync failed", zap.Error(err), zap.Duration("next", wait))
		}
		timer := time.NewTimer(wait - wait/10 + rand.N(wait/5))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}
