package persistence

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// pagesSuffix names the file beside a database that tells which of its pages have
// changed since the last snapshot that this device made: a hash for each block of a
// page. It is not needed for anything else: without it, or when it does not fit, the
// next snapshot is a whole one.
const pagesSuffix = ".tidemark-pages"

const (
	pagesMagic = "tidemark pages 1\n"
	// hashSize is the part of a block's hash that is kept. Nobody who does not know the
	// salt can make two blocks that share it.
	hashSize = 8
	// maxBlocks is how many blocks a page has: an edit touches its row, the page's head
	// and the list of cells.
	maxBlocks = 16
	minBlock  = 256
)

func blockSize(pageSize int) int { return max(pageSize/maxBlocks, min(minBlock, pageSize)) }

// pageList is the head of the file; the hashes follow, then the SHA-256 of all.
type pageList struct {
	Generation string `json:"generation"`
	RawSHA256  string `json:"rawSha256"`
	PageSize   int    `json:"pageSize"`
	Pages      int64  `json:"pages"`
	// Salt goes into every hash, and into Key: the encryption's fingerprint, "" without.
	Salt string `json:"salt"`
	Key  string `json:"key"`
}

func (l pageList) hashes() int64 { return l.Pages * int64(l.PageSize/blockSize(l.PageSize)) }

func newSalt() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// readPageList opens a list and checks it as a whole; the reader is at its hashes. An
// error means no more than that there is none to use.
func readPageList(path string) (l pageList, hashes *bufio.Reader, f *os.File, err error) {
	f, err = os.Open(path)
	if err != nil {
		return l, nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return l, nil, nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, st.Size()-sha256.Size)); err != nil {
		return l, nil, nil, err
	}
	var want [sha256.Size]byte
	if _, err := io.ReadFull(f, want[:]); err != nil || string(sum.Sum(nil)) != string(want[:]) {
		return l, nil, nil, errors.New("the list of pages is damaged")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return l, nil, nil, err
	}
	hashes = bufio.NewReaderSize(f, 256<<10)
	start := make([]byte, len(pagesMagic)+4)
	if _, err := io.ReadFull(hashes, start); err != nil || string(start[:len(pagesMagic)]) != pagesMagic {
		return l, nil, nil, errors.New("the list of pages is another version's")
	}
	raw := make([]byte, min(binary.BigEndian.Uint32(start[len(pagesMagic):]), 1<<20))
	if _, err := io.ReadFull(hashes, raw); err != nil {
		return l, nil, nil, err
	}
	return l, hashes, f, json.Unmarshal(raw, &l)
}

// writePageList writes a list whose hashes are in a file already.
func writePageList(path string, l pageList, hashes io.Reader) (err error) {
	raw, err := json.Marshal(l)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	out := bufio.NewWriterSize(f, 256<<10)
	both := io.MultiWriter(out, sum)
	start := binary.BigEndian.AppendUint32([]byte(pagesMagic), uint32(len(raw)))
	if _, err := both.Write(append(start, raw...)); err != nil {
		return err
	}
	if n, err := io.Copy(both, hashes); err != nil || n != l.hashes()*hashSize {
		return errors.Join(err, errors.New("the list of pages has not as many hashes as pages"))
	}
	if _, err := out.Write(sum.Sum(nil)); err != nil {
		return err
	}
	return out.Flush()
}

// change is a page that changed and which of its blocks did, a bit each.
type change struct {
	page   uint32
	blocks uint16
}

// scan reads a database file: the hashes of its blocks, which go to hashes, and what
// differs from the old hashes, which goes to changes. old is nil when there is nothing
// to compare with. It counts the pages, and the bytes that changed.
func scan(db io.Reader, pageSize int, salt string, oldPages int64, old io.Reader, hashes, changes io.Writer) (pages, changed int64, err error) {
	block := blockSize(pageSize)
	salted := make([]byte, len(salt)+block)
	copy(salted, salt)
	page, sums := make([]byte, pageSize), make([]byte, 0, maxBlocks*hashSize)
	was := make([]byte, pageSize/block*hashSize)
	record := make([]byte, 6)
	for {
		_, err := io.ReadFull(db, page)
		if errors.Is(err, io.EOF) {
			return pages, changed, nil
		}
		if err != nil {
			return pages, changed, err
		}
		pages++
		sums = sums[:0]
		for at := 0; at < pageSize; at += block {
			copy(salted[len(salt):], page[at:at+block])
			sum := sha256.Sum256(salted)
			sums = append(sums, sum[:hashSize]...)
		}
		if _, err := hashes.Write(sums); err != nil {
			return pages, changed, err
		}
		if old == nil {
			continue
		}
		bits := uint16(1<<(pageSize/block) - 1)
		if pages <= oldPages {
			if _, err := io.ReadFull(old, was); err != nil {
				return pages, changed, err
			}
			for i := range pageSize / block {
				if string(was[i*hashSize:(i+1)*hashSize]) == string(sums[i*hashSize:(i+1)*hashSize]) {
					bits &^= 1 << i
				}
			}
		}
		if bits == 0 {
			continue
		}
		for b := bits; b != 0; b &= b - 1 {
			changed += int64(block)
		}
		binary.BigEndian.PutUint32(record, uint32(pages))
		binary.BigEndian.PutUint16(record[4:], bits)
		if _, err := changes.Write(record); err != nil {
			return pages, changed, err
		}
	}
}

// writeChanges writes what scan found, with the blocks themselves.
func writeChanges(dst io.Writer, changes io.Reader, db io.ReaderAt, pageSize int) error {
	block := blockSize(pageSize)
	page, out, record := make([]byte, pageSize), []byte{}, make([]byte, 6)
	last := uint32(0)
	for {
		if _, err := io.ReadFull(changes, record); errors.Is(err, io.EOF) {
			_, err = dst.Write([]byte{0})
			return err
		} else if err != nil {
			return err
		}
		c := change{binary.BigEndian.Uint32(record), binary.BigEndian.Uint16(record[4:])}
		if _, err := db.ReadAt(page, int64(c.page-1)*int64(pageSize)); err != nil {
			return err
		}
		out = binary.AppendUvarint(out[:0], uint64(c.page-last))
		out = binary.BigEndian.AppendUint16(out, c.blocks)
		for i := range pageSize / block {
			if c.blocks&(1<<i) != 0 {
				out = append(out, page[i*block:(i+1)*block]...)
			}
		}
		if _, err := dst.Write(out); err != nil {
			return err
		}
		last = c.page
	}
}

// applyChanges writes the changed blocks into a file that has its new size already.
func applyChanges(f *os.File, src *bufio.Reader, pageSize int, pages int64) error {
	block := blockSize(pageSize)
	buf, bits := make([]byte, pageSize), make([]byte, 2)
	last := int64(0)
	for {
		step, err := binary.ReadUvarint(src)
		if err != nil {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if step == 0 {
			return nil
		}
		if step > uint64(pages-last) {
			return fmt.Errorf("it changes page %d of %d", uint64(last)+step, pages)
		}
		last += int64(step)
		if _, err := io.ReadFull(src, bits); err != nil {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		blocks := binary.BigEndian.Uint16(bits)
		if int(blocks)>>(pageSize/block) != 0 {
			return fmt.Errorf("it changes what page %d does not have", last)
		}
		for i := 0; i < pageSize/block; i++ {
			from := i
			for i < pageSize/block && blocks&(1<<i) != 0 { // what lies together is written together
				i++
			}
			if i == from {
				continue
			}
			run := buf[:(i-from)*block]
			if _, err := io.ReadFull(src, run); err != nil {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			if _, err := f.WriteAt(run, (last-1)*int64(pageSize)+int64(from*block)); err != nil {
				return &writeError{err}
			}
		}
	}
}

// writeError is a failure of the disk and not of what is read.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }
