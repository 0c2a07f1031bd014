package persistence

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/tidemark-sync/tidemark/messages"
)

func packed(tb testing.TB, content []byte) *bytes.Buffer {
	tb.Helper()
	var out bytes.Buffer
	if err := writeObject(&out, messages.Header{Format: 2}, nil, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	return &out
}

// An object of several frames comes back as it was, however the parts arrive, and never as
// something else; what goes wrong underneath is told.
func TestFramesComeBack(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 6*frameSize) // the header makes the last frame a short one
	for i := range content {             // some of it compresses, some of it does not
		if content[i] = byte(i / 100); i > 3*frameSize {
			content[i] = byte(rnd.Uint32())
		}
	}
	packed := packed(t, content)
	read := func(src io.Reader) ([]byte, error) {
		o, err := openObject(src, 2, nil)
		if err != nil {
			return nil, err
		}
		defer o.close()
		return io.ReadAll(o)
	}
	for name, src := range map[string]io.Reader{
		"whole": bytes.NewReader(packed.Bytes()), "in halves": iotest.HalfReader(bytes.NewReader(packed.Bytes())),
		"with the error at once": iotest.DataErrReader(bytes.NewReader(packed.Bytes())),
	} {
		if got, err := read(src); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d of %d bytes come back: %v", name, len(got), len(content), err)
		}
	}
	for range 60 {
		at := rnd.IntN(packed.Len())
		if got, err := read(bytes.NewReader(packed.Bytes()[:at])); err == nil && len(got) >= len(content) {
			t.Errorf("cut off at %d it is read as a whole", at)
		}
		broken := errors.New("the disk is broken")
		if _, err := read(io.MultiReader(bytes.NewReader(packed.Bytes()[:at]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
			t.Errorf("a failure at %d of %d is told as %v", at, packed.Len(), err)
		}
		damaged := bytes.Clone(packed.Bytes())
		damaged[at] ^= 1 << rnd.IntN(8)
		if got, err := read(bytes.NewReader(damaged)); err == nil && !bytes.Equal(got, content) {
			t.Errorf("with a bit of byte %d flipped it is read as something else", at)
		}
	}
}

// Other programs make one long frame.
func TestALongFrameIsRead(t *testing.T) {
	t.Parallel()
	content := append([]byte(sqliteMagic), make([]byte, 3<<20)...)
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	o, err := openObject(&packed, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	if got, err := io.ReadAll(o); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d of %d bytes come back: %v", len(got), len(content), err)
	}
}

func BenchmarkUnframe(b *testing.B) {
	content := make([]byte, 64<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(content); i += 16 {
		copy(content[i:], fmt.Sprintf("%08x        ", rnd.Uint32()))
	}
	packed := packed(b, content)
	b.Run("frames", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			o, err := openObject(bytes.NewReader(packed.Bytes()), 2, nil)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, o); err != nil {
				b.Fatal(err)
			}
			o.close()
		}
	})
	b.Run("stream", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			var o object
			if err := o.stream(bytes.NewReader(packed.Bytes())); err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, o); err != nil {
				b.Fatal(err)
			}
			o.close()
		}
	})
}
