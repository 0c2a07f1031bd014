package integration

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"

	"github.com/ThreeDotsLabs/watermill/message"

	tidemark "github.com/tidemark-sync/tidemark"
)

// simBus delivers one message at a time, whichever chance picks, some of them twice.
// The next one goes out when the whole bubble has come to rest, so that chance, and
// not the scheduler, decides what happens.
type simBus struct {
	rnd     *rand.Rand
	repeat  int // one message in so many is delivered twice; 0: none
	shuffle bool

	mu      sync.Mutex
	subs    map[string][]*simSubscription
	queue   []simDelivery
	wake    chan struct{}
	closed  chan struct{}
	closing sync.Once
	done    sync.WaitGroup
}

type simSubscription struct {
	stage string
	ctx   context.Context //nolint:containedctx // of the subscription; its messages get it
	ch    chan *message.Message
}

type simDelivery struct {
	sub *simSubscription
	msg *message.Message
}

func newSimBus(rnd *rand.Rand, repeat int, shuffle bool) *simBus {
	b := &simBus{
		rnd: rnd, repeat: repeat, shuffle: shuffle, subs: map[string][]*simSubscription{},
		wake: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	b.done.Go(b.dispatch)
	return b
}

func (b *simBus) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &simSubscription{stage: tidemark.StageOf(ctx), ctx: ctx, ch: make(chan *message.Message)}
	// The router subscribes in no order.
	i, _ := slices.BinarySearchFunc(b.subs[topic], s, func(a, b *simSubscription) int { return strings.Compare(a.stage, b.stage) })
	b.subs[topic] = slices.Insert(b.subs[topic], i, s)
	context.AfterFunc(ctx, b.end) // all of a router end together
	return s.ch, nil
}

func (b *simBus) Publish(topic string, msgs ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range msgs {
		for _, s := range b.subs[topic] {
			b.queue = append(b.queue, simDelivery{s, m})
			if b.repeat > 0 && b.rnd.IntN(b.repeat) == 0 {
				b.queue = append(b.queue, simDelivery{s, m})
			}
		}
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return nil
}

func (b *simBus) next() (simDelivery, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return simDelivery{}, false
	}
	i := 0
	if b.shuffle {
		i = b.rnd.IntN(len(b.queue))
	}
	d := b.queue[i]
	b.queue = slices.Delete(b.queue, i, i+1)
	return d, true
}

func (b *simBus) dispatch() {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, subs := range b.subs {
			for _, s := range subs {
				close(s.ch)
			}
		}
	}()
	for {
		select {
		case <-b.wake:
		case <-b.closed:
			return
		}
		for {
			synctest.Wait()
			select {
			case <-b.closed:
				return
			default:
			}
			d, ok := b.next()
			if !ok {
				break
			}
			m := d.msg.Copy()
			m.SetContext(d.sub.ctx)
			select {
			case d.sub.ch <- m:
			case <-b.closed:
				return
			}
			select {
			case <-m.Acked():
			case <-m.Nacked():
			case <-b.closed:
				return
			}
		}
	}
}

func (b *simBus) end() { b.closing.Do(func() { close(b.closed) }) }

// Close ends all subscriptions; the router calls it once a handler.
func (b *simBus) Close() error {
	b.end()
	b.done.Wait()
	return nil
}
