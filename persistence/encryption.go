package persistence

import (
	"errors"
	"io"
)

// Encryption keeps what is in the bucket from those who can read the bucket;
// adapters/age has one. It may be called from any goroutine.
type Encryption interface {
	// Seal returns a writer whose Close ends the encrypted text; it does not close
	// dst.
	Seal(dst io.Writer) (io.WriteCloser, error)
	// Open returns what Seal was given. It fails with messages.ErrWrongKey when no key
	// fits; what was changed or cut off fails here or when it is read.
	Open(src io.Reader) (io.Reader, error)
	// Fingerprint tells the key that Seal uses from others and reveals nothing of it.
	// It is kept beside the database together with its salt.
	Fingerprint(salt string) (string, error)
}

// Errors of encryption that a caller can act on.
var (
	// ErrNoKey: the snapshot is encrypted and there is no key.
	ErrNoKey = errors.New("the snapshot is encrypted: give the key (--key-file, TIDEMARK_KEY_FILE or TIDEMARK_PASSPHRASE)")
	// ErrNotEncrypted: there is a key, and the snapshot is not encrypted.
	ErrNotEncrypted = errors.New("the snapshot is not encrypted although a key is given: somebody may have put it there; leave the key out only if you know that it was made without one")
)
