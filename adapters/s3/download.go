package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tidemark-sync/tidemark/messages"
)

// guard cancels a call whose server has fallen silent. The time that the caller
// takes with what came does not count.
type guard struct {
	timer *time.Timer
	limit time.Duration
}

// guarded starts waiting for the beginning of an answer.
func (s *Store) guarded(ctx context.Context) (context.Context, context.CancelFunc, guard) {
	ctx, cancel := context.WithCancel(ctx)
	g := guard{time.AfterFunc(s.timeout, cancel), s.timeout}
	return ctx, func() { g.timer.Stop(); cancel() }, g
}

func (g guard) wait() { g.timer.Reset(g.limit) }
func (g guard) rest() { g.timer.Stop() }

// outgoing is what a request sends: the server is not silent while it takes it.
type outgoing struct {
	r     *bytes.Reader
	guard guard
}

func (o *outgoing) Read(p []byte) (int, error) {
	o.guard.wait()
	return o.r.Read(p)
}

func (o *outgoing) Seek(offset int64, whence int) (int64, error) { return o.r.Seek(offset, whence) }

// download gives the errors of a body their class.
type download struct {
	op    string
	ctx   context.Context //nolint:containedctx // the caller's, as long as the body lives
	body  io.ReadCloser
	guard guard
	stop  context.CancelFunc
}

func (d *download) Read(p []byte) (int, error) {
	d.guard.wait()
	n, err := d.body.Read(p)
	d.guard.rest()
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case d.ctx.Err() != nil:
		return n, ended(d.ctx, d.op)
	case ourEnd(err):
		return n, fmt.Errorf("%s: nothing came for %v: %w", d.op, d.guard.limit, messages.ErrUnavailable)
	default:
		return n, fmt.Errorf("%s: the download broke off: %w: %w", d.op, messages.ErrUnavailable, err)
	}
}

func (d *download) Close() error {
	d.stop()
	if err := d.body.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: close: %w: %w", d.op, messages.ErrUnavailable, err)
	}
	return nil
}
