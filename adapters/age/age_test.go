package age

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/tidemark-sync/tidemark/messages"
)

func seal(t *testing.T, k *Key, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := k.Seal(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(k *Key, sealed []byte) ([]byte, error) {
	r, err := k.Open(bytes.NewReader(sealed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func key(t *testing.T, c Config) *Key {
	t.Helper()
	k, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func generate(t *testing.T) (file, recipient string) {
	t.Helper()
	file, recipient, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	return file, recipient
}

func TestWhoCanOpen(t *testing.T) {
	alice, toAlice := generate(t)
	bob, toBob := generate(t)
	text := bytes.Repeat([]byte("tidemark "), 100_000)
	for name, c := range map[string]struct {
		seal        Config
		opens, shut []Config
	}{
		"an identity": {
			Config{Identities: []string{alice}},
			[]Config{{Identities: []string{alice}}, {Identities: []string{bob, alice}}},
			[]Config{{Identities: []string{bob}}, {Passphrase: "a long enough passphrase"}, {Recipients: []string{toAlice}}},
		},
		"several recipients": {
			Config{Recipients: []string{toAlice, toBob}},
			[]Config{{Identities: []string{alice}}, {Identities: []string{bob}}},
			nil,
		},
		"recipients before the own": {
			Config{Identities: []string{alice}, Recipients: []string{toBob}},
			[]Config{{Identities: []string{bob}}},
			[]Config{{Identities: []string{alice}}},
		},
		"after a change of keys": {
			Config{Identities: []string{bob, alice}},
			[]Config{{Identities: []string{bob}}},
			[]Config{{Identities: []string{alice}}},
		},
		"a passphrase": {
			Config{Passphrase: "a long enough passphrase"},
			[]Config{{Passphrase: "a long enough passphrase"}, {Identities: []string{alice}, Passphrase: "a long enough passphrase"}},
			[]Config{{Passphrase: "another one of them"}, {Identities: []string{alice}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			sealed := seal(t, key(t, c.seal), text)
			if bytes.Contains(sealed, []byte("tidemark tidemark")) {
				t.Fatal("it is not encrypted")
			}
			for i, o := range c.opens {
				if got, err := open(key(t, o), sealed); err != nil || !bytes.Equal(got, text) {
					t.Errorf("key %d does not open it: %v", i, err)
				}
			}
			for i, o := range c.shut {
				if _, err := open(key(t, o), sealed); !errors.Is(err, messages.ErrWrongKey) {
					t.Errorf("wrong key %d: %v", i, err)
				}
			}
		})
	}
}

func TestWhatIsWrongWithAKey(t *testing.T) {
	t.Parallel()
	alice, _ := generate(t)
	bob, _ := generate(t)
	const phrase, another = "a long enough passphrase", "another one of them"
	for name, c := range map[string]struct {
		seal, open Config
		says       string
	}{
		"another passphrase":      {Config{Passphrase: phrase}, Config{Passphrase: another}, "with another passphrase"},
		"no passphrase":           {Config{Passphrase: phrase}, Config{Identities: []string{alice}}, "with a passphrase, and none was given"},
		"a passphrase for a key":  {Config{Identities: []string{alice}}, Config{Passphrase: phrase}, "with a key file, and only a passphrase was given"},
		"another key":             {Config{Identities: []string{alice}}, Config{Identities: []string{bob}}, "none of the keys opens it"},
		"another key, and phrase": {Config{Identities: []string{alice}}, Config{Identities: []string{bob}, Passphrase: phrase}, "none of the keys opens it"},
	} {
		sealed := seal(t, key(t, c.seal), []byte("tidemark"))
		if _, err := open(key(t, c.open), sealed); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// One changed bit, or a missing end, wherever it is, is an error.
func TestChangedTextDoesNotOpen(t *testing.T) {
	file, _ := generate(t)
	k := key(t, Config{Identities: []string{file}})
	sealed := seal(t, k, bytes.Repeat([]byte("tidemark"), 20_000))
	for at := 0; at < len(sealed); at += 1 + at/8 {
		bad := bytes.Clone(sealed)
		bad[at] ^= 1
		if _, err := open(k, bad); err == nil {
			t.Errorf("a bit changed in byte %d, and it opens", at)
		}
		if _, err := open(k, sealed[:at]); err == nil {
			t.Errorf("cut off at byte %d, and it opens", at)
		}
	}
}

func TestFingerprint(t *testing.T) {
	file, recipient := generate(t)
	other, _ := generate(t)
	print := func(c Config, salt string) string {
		f, err := key(t, c).Fingerprint(salt)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	mine := print(Config{Identities: []string{file}}, "salt")
	if got := print(Config{Recipients: []string{recipient}}, "salt"); got != mine {
		t.Error("who encrypts for the same recipients has another fingerprint")
	}
	secret := print(Config{Passphrase: "a long enough passphrase"}, "salt")
	if got := print(Config{Passphrase: "a long enough passphrase"}, "salt"); got != secret {
		t.Error("a passphrase has two fingerprints")
	}
	for i, got := range []string{
		print(Config{Identities: []string{other}}, "salt"), print(Config{Identities: []string{file}}, "pepper"),
		print(Config{Passphrase: "another one of them"}, "salt"), print(Config{Passphrase: "a long enough passphrase"}, "pepper"),
	} {
		if got == mine || got == secret {
			t.Errorf("%d: another key or salt has the same fingerprint", i)
		}
	}
}

func TestRefusedConfigurations(t *testing.T) {
	file, _ := generate(t)
	for name, c := range map[string]Config{
		"nothing":              {},
		"a short passphrase":   {Passphrase: "hunter2"},
		"no identity":          {Identities: []string{"hunter2"}},
		"no recipient":         {Recipients: []string{"hunter2"}},
		"a secret as public":   {Recipients: []string{strings.Split(file, "\n")[2]}},
		"a damaged identity":   {Identities: []string{strings.Replace(file, "AGE-SECRET-KEY-1", "AGE-SECRET-KEY-1A", 1)}},
		"an empty file":        {Identities: []string{"# created: yesterday\n"}},
		"an enormous key file": {Identities: []string{strings.Repeat("#", 2<<20)}},
	} {
		_, err := New(c)
		if err == nil {
			t.Errorf("%s is accepted", name)
		} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), strings.Split(file, "\n")[2][16:]) {
			t.Errorf("%s: the error repeats a secret: %v", name, err)
		}
	}
}

func TestAsk(t *testing.T) {
	file, _ := generate(t)
	asked, fail := 0, errors.New("nobody answers")
	k := Ask(func() (Config, error) {
		if asked++; asked == 1 {
			return Config{}, fail
		}
		return Config{Identities: []string{file}}, nil
	})
	if _, err := k.Seal(io.Discard); !errors.Is(err, fail) {
		t.Fatalf("%v", err)
	}
	text := []byte("asked for")
	if got, err := open(k, seal(t, k, text)); err != nil || !bytes.Equal(got, text) || asked != 2 {
		t.Errorf("%q, %v, asked %d times", got, err, asked)
	}
}
