package persistence

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/tidemark-sync/tidemark/messages"
)

// An object of format 2 is one zstd stream, encrypted when there is a key:
//
//	objectMagic, the length of the header (4 bytes, big-endian), the header in JSON;
//	of a whole snapshot, the database file;
//	of changes, for each page that changed: how many pages after the last one (a
//	varint, the first page is 1), which of its blocks changed (2 bytes, a bit each),
//	those blocks; then a zero.
//
// Of format 1 it is the database file in a zstd stream and nothing else.
const (
	objectMagic = "tidemark snapshot\n"
	zstdMagic   = "\x28\xb5\x2f\xfd"
	sqliteMagic = "SQLite format 3\x00"

	maxHeader = 16 << 20
	maxWindow = 8 << 20 // a hostile object gets no more memory
)

// writeObject streams an object: body writes what follows the header.
func writeObject(dst io.Writer, h messages.Header, enc Encryption, body func(io.Writer) error) (err error) {
	if enc != nil {
		sealed, err := enc.Seal(dst)
		if err != nil {
			return err
		}
		if err := writeObject(sealed, h, nil, body); err != nil {
			return err // unfinished, it does not open
		}
		return sealed.Close()
	}
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	z, err := newFrames(dst)
	if err != nil {
		return err
	}
	start := binary.BigEndian.AppendUint32([]byte(objectMagic), uint32(len(raw)))
	if _, err := z.Write(append(start, raw...)); err != nil {
		return errors.Join(err, z.Close())
	}
	if err := body(z); err != nil {
		return errors.Join(err, z.Close())
	}
	return z.Close()
}

// object is one that is being read.
type object struct {
	io.Reader
	header messages.Header
	close  func()
}

// openObject decrypts, decompresses and reads the header, which it does not judge.
func openObject(src io.Reader, format int, enc Encryption) (*object, error) {
	in := bufio.NewReaderSize(src, 1<<20)
	start, err := in.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch sealed := string(start) != zstdMagic; {
	case sealed && enc == nil:
		return nil, ErrNoKey
	case !sealed && enc != nil:
		return nil, ErrNotEncrypted
	case sealed:
		plain, err := enc.Open(in)
		if err != nil {
			return nil, err
		}
		in = bufio.NewReaderSize(plain, 256<<10)
	}
	o := &object{}
	if framed(in) {
		z, err := newUnframes(in)
		if err != nil {
			return nil, err
		}
		o.Reader, o.close = z, z.Close
	} else if err := o.stream(in); err != nil {
		return nil, err
	}
	o.Reader = bufio.NewReaderSize(o.Reader, 256<<10)
	if format >= 2 {
		if err := o.readHeader(); err != nil {
			o.close()
			return nil, err
		}
	}
	return o, nil
}

// stream reads one long frame, as other programs write them.
func (o *object) stream(src io.Reader) error {
	z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return err
	}
	o.Reader, o.close = z, z.Close
	return nil
}

func (o *object) readHeader() error {
	start := make([]byte, len(objectMagic)+4)
	if _, err := io.ReadFull(o, start); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	if string(start[:len(objectMagic)]) != objectMagic {
		return errors.New("it does not start as a snapshot does")
	}
	n := binary.BigEndian.Uint32(start[len(objectMagic):])
	if n > maxHeader {
		return errors.New("its header is too long")
	}
	var raw bytes.Buffer
	if m, err := io.Copy(&raw, io.LimitReader(o, int64(n))); err != nil || m < int64(n) {
		return fmt.Errorf("read the header: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	if err := json.Unmarshal(raw.Bytes(), &o.header); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	if o.header.Format != 2 {
		return ErrNewer
	}
	return nil
}

// end demands that nothing follows; so the encryption's own end is checked too.
func (o *object) end() error {
	n, err := io.Copy(io.Discard, io.LimitReader(o, 1))
	if err == nil && n > 0 {
		err = errors.New("something follows its end")
	}
	return err
}
