package persistence

import "io"

// writeBehind writes from a goroutine of its own: its caller makes the next block
// meanwhile. It holds two blocks and must be closed, also after an error.
type writeBehind struct {
	block       []byte
	full, spare chan []byte
	failed      chan struct{} // closed after err is set
	done        chan struct{}
	err         error
}

func newWriteBehind(w io.Writer, block int) *writeBehind {
	b := &writeBehind{
		block: make([]byte, 0, block), full: make(chan []byte), spare: make(chan []byte, 2),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
	b.spare <- make([]byte, 0, block)
	go func() {
		defer close(b.done)
		for p := range b.full {
			if _, err := w.Write(p); err != nil {
				b.err = err
				close(b.failed)
				return
			}
			b.spare <- p[:0]
		}
	}()
	return b
}

func (b *writeBehind) Write(p []byte) (int, error) {
	for n := 0; ; {
		room := min(len(p)-n, cap(b.block)-len(b.block))
		b.block = append(b.block, p[n:n+room]...)
		if n += room; n == len(p) {
			return n, nil
		}
		if err := b.pass(); err != nil {
			return n, err
		}
	}
}

// pass hands the block over, and waits for the one before.
func (b *writeBehind) pass() error {
	select {
	case b.full <- b.block:
	case <-b.failed:
		return b.err
	}
	select {
	case b.block = <-b.spare:
	case <-b.failed:
		return b.err
	}
	return nil
}

// Close writes what is left and reports what failed.
func (b *writeBehind) Close() error {
	select {
	case b.full <- b.block:
	case <-b.failed:
	}
	close(b.full)
	<-b.done
	return b.err
}
