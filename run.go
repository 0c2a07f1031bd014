package tidemark

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tidemark-sync/tidemark/persistence"
)

// Run keeps the database in step until ctx ends, and then returns nil. It syncs every
// interval, and soon after something was written here (see WithSyncSoon) or SyncSoon was
// called. It waits out any outage as WithRetryPolicy says: by default it asks less and
// less often, but every minute, and at once when this machine's network addresses
// change. A cycle that is under way when ctx ends may take ten seconds more; then it is
// cut off, and the next one goes on where it was. Run returns an error for what time
// does not mend: refused credentials, a scope that does not exist, a database that is
// not attached or damaged. The application owns the goroutine.
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
	pace := &pace{policy: p.set.retry, interval: p.set.interval}
	rest := rest{p: p}
	for ctx.Err() == nil {
		began := time.Now()
		r, err := p.sync(cycles, mode{knock: pace.knock()})
		for _, f := range report {
			f(r, err)
		}
		if err != nil && cycles.Err() != nil {
			return nil
		}
		wait, end := pace.after(err)
		if end {
			return err
		}
		p.set.log.Debug("waiting for the next cycle", zap.Duration("wait", wait), zap.Int("failedInARow", pace.inARow))
		rest.wait(ctx, wait, err != nil && !pace.store)
		p.afford(ctx, began)
	}
	return nil
}

// SyncSoon makes Run begin its next cycle now: a push message has arrived, the
// application was brought to the front, the network is back. It does not wait, and
// without a Run it does nothing.
func (p *Pipeline) SyncSoon() {
	select {
	case p.soon <- struct{}{}:
	default: // somebody asked already
	}
}

const (
	watchEvery   = 500 * time.Millisecond // a look at SQLite's counter takes some 0.1 ms
	networkEvery = 2 * time.Second        // only during an outage
	patientTimes = 5                      // writes that do not pause hold a cycle up for so many times the debounce
)

// rest is what Run does between two cycles.
type rest struct {
	p    *Pipeline
	base persistence.Unsent // when the wait began
	last persistence.Unsent // that a wait was cut short for: what is still so did not go up
}

// wait returns after a time, or sooner for a reason: something to upload, or, when the
// cycle has failed, a dead letter to replay or other network addresses.
func (r *rest) wait(ctx context.Context, d time.Duration, failed bool) {
	end := time.NewTimer(d)
	defer end.Stop()
	quiet := r.p.set.soonAfter
	var watch *persistence.Watch
	var look, network <-chan time.Time
	var settled <-chan time.Time // when the writes have paused
	var latest time.Time
	if quiet > 0 {
		watch = r.watch(ctx)
	}
	if watch != nil {
		defer func() { _ = watch.Close() }() // it has only read
		ticker := time.NewTicker(min(watchEvery, max(quiet/2, time.Millisecond)))
		defer ticker.Stop()
		look = ticker.C
		// The cycle moved the counter too; what was edited meanwhile is looked for.
		r.base = persistence.Unsent{}
		now, more := r.more(ctx, failed)
		if r.base = now; more && !failed {
			settled, latest = time.After(quiet), time.Now().Add(patientTimes*quiet)
		}
	}
	was := ""
	if failed {
		was = r.p.set.addresses()
		ticker := time.NewTicker(networkEvery)
		defer ticker.Stop()
		network = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-r.p.soon:
			return
		case <-network:
			if now := r.p.set.addresses(); now != was && now != "" {
				r.p.set.log.Debug("the network has changed: trying at once")
				return
			}
		case <-look:
			changed, err := watch.Changed(ctx)
			if err != nil {
				look = nil // the interval will do
			}
			if changed {
				if latest.IsZero() {
					latest = time.Now().Add(patientTimes * quiet)
				}
				settled = time.After(min(quiet, time.Until(latest)))
			}
		case <-settled:
			if now, more := r.more(ctx, failed); more {
				r.last = now
				return
			}
			settled, latest = nil, time.Time{} // it was nothing that is synced
		}
	}
}

func (r *rest) watch(ctx context.Context) *persistence.Watch {
	w, err := r.p.local.Watch(ctx)
	if err != nil {
		r.p.set.log.Debug("cannot watch for edits: the interval will do", zap.Error(err))
	}
	return w
}

// more reports whether there is something new to upload.
func (r *rest) more(ctx context.Context, failed bool) (persistence.Unsent, bool) {
	now, err := r.p.local.Unsent(ctx)
	switch {
	case err != nil:
		r.p.set.log.Debug("cannot look for edits: the interval will do", zap.Error(err))
		return r.base, false
	case now == r.last:
		return now, false
	case failed:
		return now, now.Replays > r.base.Replays
	}
	return now, now.Rows > now.Held || now.Replays > 0 || now.Rows > 0 && now.Newest > r.base.Newest
}

// addresses are this machine's, in one text that changes when it goes on or off line.
func addresses() string {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
