package age

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/scrypt"

	"github.com/tidemark-sync/tidemark/messages"
)

const (
	// workFactor is the passphrase's cost, 2^workFactor: 32 MiB of memory and a tenth of a
	// second. age's own default takes 256 MiB, which a phone does not have to spare.
	workFactor = 15
	// maxWorkFactor bounds what a hostile snapshot can make a restore spend: 64 MiB.
	maxWorkFactor = 16
	// minPassphrase in bytes: whoever reads the bucket may try as long as they like.
	minPassphrase = 12
	maxKeyFile    = 1 << 20 // bytes
)

// Config says with what to encrypt and to decrypt: with keys, or with a passphrase.
type Config struct {
	// Identities are the contents of identity files, as Generate and age-keygen write
	// them. All of them decrypt: after a change of keys, give the old one too.
	Identities []string
	// Recipients are the public keys ("age1…") to encrypt for. Without any, it is the
	// first identity's own.
	Recipients []string
	// Passphrase encrypts when there is neither; it decrypts also beside them. At least
	// 12 bytes.
	Passphrase string
}

// Key encrypts and decrypts. It is safe for concurrent use.
type Key struct {
	load func() (*keys, error)
}

type keys struct {
	recipients []age.Recipient
	names      []string // of the recipients, sorted
	identities []age.Identity
	passphrase string
}

// New checks the configuration. No error repeats a secret.
func New(c Config) (*Key, error) {
	k, err := parse(c)
	if err != nil {
		return nil, err
	}
	return &Key{func() (*keys, error) { return k, nil }}, nil
}

// Ask returns a key that is asked for when it is first needed: out of a keychain, or
// from a person. After an error it is asked for again.
func Ask(ask func() (Config, error)) *Key {
	var mu sync.Mutex
	var known *keys
	return &Key{func() (*keys, error) {
		mu.Lock()
		defer mu.Unlock()
		if known != nil {
			return known, nil
		}
		c, err := ask()
		if err != nil {
			return nil, fmt.Errorf("ask for the key: %w", err)
		}
		k, err := parse(c)
		if err != nil {
			return nil, err
		}
		known = k
		return k, nil
	}}
}

func parse(c Config) (*keys, error) {
	k := &keys{}
	for i, text := range c.Identities {
		if len(text) > maxKeyFile {
			return nil, fmt.Errorf("identity file %d is larger than 1 MiB: it is something else", i+1)
		}
		ids, err := age.ParseIdentities(strings.NewReader(text))
		if err != nil { // its text may repeat a line of the file
			return nil, fmt.Errorf("identity file %d is not one: it holds lines that start with AGE-SECRET-KEY-, as `pipeline keygen` writes them", i+1)
		}
		k.identities = append(k.identities, ids...)
	}
	for _, text := range c.Recipients {
		r, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil || len(r) != 1 || strings.HasPrefix(strings.ToUpper(text), "AGE-SECRET-KEY") {
			return nil, errors.New("a recipient is not one: it starts with age1, and `pipeline keygen` prints it")
		}
		k.recipients = append(k.recipients, r[0])
		k.names = append(k.names, strings.TrimSpace(text))
	}
	secret := c.Passphrase != ""
	if secret && len(c.Passphrase) < minPassphrase {
		return nil, fmt.Errorf("the passphrase is shorter than %d bytes: whoever reads the bucket may guess as long as they like", minPassphrase)
	}
	switch {
	case len(k.recipients) > 0:
	case len(k.identities) > 0:
		r, name, err := recipientOf(k.identities[0])
		if err != nil {
			return nil, err
		}
		k.recipients, k.names = []age.Recipient{r}, []string{name}
	case !secret:
		return nil, errors.New("there is neither an identity, nor a recipient, nor a passphrase")
	default:
		k.passphrase = c.Passphrase
		r, err := age.NewScryptRecipient(c.Passphrase)
		if err != nil {
			return nil, fmt.Errorf("use the passphrase: %w", err)
		}
		r.SetWorkFactor(workFactor)
		k.recipients = []age.Recipient{r}
	}
	if secret {
		id, err := age.NewScryptIdentity(c.Passphrase)
		if err != nil {
			return nil, fmt.Errorf("use the passphrase: %w", err)
		}
		id.SetMaxWorkFactor(maxWorkFactor)
		k.identities = append(k.identities, id)
	}
	slices.Sort(k.names)
	return k, nil
}

func recipientOf(id age.Identity) (age.Recipient, string, error) {
	switch id := id.(type) {
	case *age.X25519Identity:
		return id.Recipient(), id.Recipient().String(), nil
	case *age.HybridIdentity:
		return id.Recipient(), id.Recipient().String(), nil
	}
	return nil, "", errors.New("the first identity has no recipient of its own: name the recipients")
}

// forget gives back what a passphrase has cost before it costs it again.
func (k *keys) forget() {
	if k.passphrase != "" {
		runtime.GC()
	}
}

// Seal returns a writer whose Close ends the encrypted text; it does not close dst.
func (k *Key) Seal(dst io.Writer) (io.WriteCloser, error) {
	keys, err := k.load()
	if err != nil {
		return nil, err
	}
	defer keys.forget()
	w, err := age.Encrypt(dst, keys.recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return w, nil
}

// Open returns the text that Seal was given. It fails with messages.ErrWrongKey when
// no key fits; what was changed or cut off fails here or when it is read.
func (k *Key) Open(src io.Reader) (io.Reader, error) {
	keys, err := k.load()
	if err != nil {
		return nil, err
	}
	if len(keys.identities) == 0 {
		return nil, fmt.Errorf("there are only recipients, which encrypt: give the identity file too: %w", messages.ErrWrongKey)
	}
	defer keys.forget()
	r, err := age.Decrypt(src, keys.identities...)
	if none, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, keys.wrong(slices.Contains(none.StanzaTypes, "scrypt"))
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return r, nil
}

// wrong says what of the keys does not fit a text that a passphrase, or else a key,
// encrypted.
func (k *keys) wrong(passphrase bool) error {
	given := slices.ContainsFunc(k.identities, func(id age.Identity) bool {
		_, is := id.(*age.ScryptIdentity)
		return is
	})
	switch {
	case passphrase && given:
		return messages.Saying(messages.ErrWrongKey, "decrypt: it was encrypted with another passphrase")
	case passphrase:
		return messages.Saying(messages.ErrWrongKey, "decrypt: it was encrypted with a passphrase, and none was given")
	case given && len(k.identities) == 1:
		return messages.Saying(messages.ErrWrongKey, "decrypt: it was encrypted with a key file, and only a passphrase was given")
	}
	return fmt.Errorf("decrypt: %w", messages.ErrWrongKey)
}

// Fingerprint tells the key from others, and reveals nothing of it: with it a change
// of keys is noticed. salt is random and goes with the fingerprint.
func (k *Key) Fingerprint(salt string) (string, error) {
	keys, err := k.load()
	if err != nil {
		return "", err
	}
	if keys.passphrase == "" {
		sum := sha256.Sum256([]byte(salt + "\n" + strings.Join(keys.names, "\n")))
		return hex.EncodeToString(sum[:16]), nil
	}
	defer keys.forget()
	sum, err := scrypt.Key([]byte(keys.passphrase), []byte(salt), 1<<workFactor, 8, 1, 16)
	if err != nil {
		return "", fmt.Errorf("derive the fingerprint: %w", err)
	}
	return hex.EncodeToString(sum), nil
}

// Generate makes a new identity file and names its recipient.
func Generate() (file, recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	recipient = id.Recipient().String()
	file = fmt.Sprintf("# created: %s\n# recipient: %s\n%s\n", time.Now().UTC().Format(time.RFC3339), recipient, id)
	return file, recipient, nil
}
