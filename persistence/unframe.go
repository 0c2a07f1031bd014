package persistence

import (
	"bufio"
	"errors"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
)

// unframes reads what frames wrote, with frames decompressed side by side. It must be
// closed.
type unframes struct {
	src   *bufio.Reader
	z     *zstd.Decoder
	slots []*unframe // used in turn
	at    int
	rest  []byte // of the oldest frame, not read yet
	err   error  // after the frames that are being decompressed
}

type unframe struct {
	packed, plain []byte
	err           error
	done          chan struct{} // nil unless it is being decompressed
}

var errFrame = errors.New("a frame is damaged")

// framed reports whether what comes starts as frames write it, and not in one long frame.
func framed(src *bufio.Reader) bool {
	h, err := frameHeader(src)
	return err == nil && h.HasFCS && h.FrameContentSize <= frameSize
}

func frameHeader(src *bufio.Reader) (h zstd.Header, err error) {
	start, err := src.Peek(zstd.HeaderMaxSize)
	if err != nil && (len(start) == 0 || !errors.Is(err, io.EOF)) {
		return h, err
	}
	if h.Decode(start) != nil || h.Skippable {
		return h, errFrame
	}
	return h, nil
}

func newUnframes(src *bufio.Reader) (*unframes, error) {
	n := min(runtime.GOMAXPROCS(0), 3)
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(n), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(frameSize))
	if err != nil {
		return nil, err
	}
	u := &unframes{src: src, z: z}
	for range 3 * n { // while one is awaited, written or decrypted, the others have work
		u.slots = append(u.slots, &unframe{})
	}
	return u, nil
}

func (u *unframes) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		for range u.slots { // a slot is free again when the one after it has been read
			u.start()
			u.at = (u.at + 1) % len(u.slots)
		}
		s := u.slots[u.at]
		if s.done == nil {
			return 0, u.err
		}
		<-s.done
		s.done, u.rest = nil, s.plain
		if s.err != nil {
			u.rest, u.err = nil, s.err
			return 0, u.err
		}
		u.at = (u.at + 1) % len(u.slots)
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

// start has the next frame decompressed, where there is room.
func (u *unframes) start() {
	s := u.slots[u.at]
	if u.err != nil || s.done != nil {
		return
	}
	if s.packed, u.err = u.next(s.packed[:0]); u.err != nil {
		return
	}
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		s.plain, s.err = u.z.DecodeAll(s.packed, s.plain[:0])
	}()
}

// next reads a frame as it is. The format says where it ends only block by block.
func (u *unframes) next(buf []byte) ([]byte, error) {
	h, err := frameHeader(u.src)
	if err != nil {
		return buf, err
	}
	more := func(n int) (part []byte) {
		start := len(buf)
		if err != nil || start+n > 2*frameSize {
			err = errors.Join(err, errFrame)
			return make([]byte, 3)
		}
		buf = append(buf, make([]byte, n)...)
		if _, e := io.ReadFull(u.src, buf[start:]); e != nil {
			err = io.ErrUnexpectedEOF
			if !errors.Is(e, io.EOF) {
				err = e
			}
		}
		return buf[start:]
	}
	more(h.HeaderSize)
	for last := false; !last && err == nil; {
		b := more(3)
		block := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
		last = block&1 == 1
		size := block >> 3
		if block>>1&3 == 1 { // one byte, so many times
			size = 1
		}
		more(size)
	}
	if h.HasCheckSum {
		more(4)
	}
	return buf, err
}

// Close waits for what runs.
func (u *unframes) Close() {
	for _, s := range u.slots {
		if s.done != nil {
			<-s.done
		}
	}
	u.z.Close()
}
