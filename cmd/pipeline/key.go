package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
	crypt "github.com/tidemark-sync/tidemark/adapters/age"
)

const maxKeyFile = 1 << 20 // bytes

// key is what snapshots are encrypted with; nil when there is none. A secret comes out
// of a file or the environment, never from the command line, which everybody can read.
func (s settings) key() (tidemark.Encryption, error) {
	c := crypt.Config{Recipients: s.recipients, Passphrase: os.Getenv("TIDEMARK_PASSPHRASE")}
	for _, f := range s.keyFiles {
		text, err := readPrivate(f, "key file", ": `pipeline keygen -o FILE` makes one")
		if err != nil {
			return nil, err
		}
		if _, err := crypt.New(crypt.Config{Identities: []string{text}}); err != nil {
			return nil, misuse("%s: %s is no key file: it holds lines that start with AGE-SECRET-KEY-, as `pipeline keygen` writes them", f.from, plain(f.text))
		}
		c.Identities = append(c.Identities, text)
	}
	if len(c.Identities)+len(c.Recipients) == 0 && c.Passphrase == "" {
		return nil, nil //nolint:nilnil // no key is a choice
	}
	k, err := crypt.New(c)
	if err != nil {
		return nil, misuse("the key for the snapshots: %w", err)
	}
	return k, nil
}

// readPrivate reads a secret from a file that nobody else may read; what names its kind,
// and missing says what to do when it is not there.
func readPrivate(file setting, what, missing string) (string, error) {
	if strings.Contains(strings.ToUpper(file.text), "AGE-SECRET-KEY-") {
		return "", misuse("%s takes the name of a file with the key, and not the key itself: write it into a file that only you can read. If it stood on the command line, others may have seen it: make a new one", file.from)
	}
	st, err := os.Stat(file.text)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", misuse("%s: %w", file.from, noFileError{what + " " + plain(file.text) + missing})
	case err != nil:
		return "", misuse("%s: %w", file.from, err)
	case !st.Mode().IsRegular():
		return "", misuse("%s: %s is not a file", file.from, plain(file.text))
	case runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0:
		return "", misuse("%s: others may read the %s %s: chmod 600 it", file.from, what, plain(file.text))
	}
	f, err := os.Open(file.text)
	if err != nil {
		return "", misuse("%s: %w", file.from, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return "", misuse("%s: %w", file.from, err)
	}
	return string(raw), nil
}

// noFileError is a file that is not there.
type noFileError struct{ what string }

func (e noFileError) Error() string { return "there is no " + e.what }
func (e noFileError) Unwrap() error { return fs.ErrNotExist }

// noFolder says what an error of a new file does not: that its folder is missing.
func noFolder(file string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return noFileError{"folder " + plain(filepath.Dir(file)) + ": create it first"}
}

func (a *app) keygen() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "keygen [-o FILE]",
		Short: "make a key to encrypt snapshots with",
		Long: `keygen makes an age key. With -o it writes it to a new file that only you can
read and prints its recipient, the public half; without, it prints both. Keep a
copy in another place than this device: without the key no snapshot opens.

A new key for old snapshots: put the new file first, the old one after it.
The next snapshot is encrypted with the first; all of them open.`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			text, recipient, err := crypt.Generate()
			if err != nil {
				return err
			}
			if file == "" {
				a.out.printf("%s", text)
				return nil
			}
			f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s is there already: a key that is overwritten opens nothing any more; choose another name", plain(file))
			}
			if err != nil {
				return fmt.Errorf("write the key to %s: %w", plain(file), noFolder(file, err))
			}
			_, err = f.WriteString(text)
			if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
				return fmt.Errorf("write the key: %w", errors.Join(err, os.Remove(file)))
			}
			a.complain(0, "", plain(file)+" has the key; only you can read it. Keep a copy in another place: without it no snapshot opens. Use it with --key-file "+shell(file)+". Its public half:")
			a.out.printf("%s\n", recipient)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "new `FILE` for the key, instead of standard output")
	return cmd
}
