package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/tidemark-sync/tidemark"
)

// setting is a value and where it came from, so that an error can name it.
type setting struct{ text, from string }

// given is what the flags say.
type given struct {
	config, db, remote, store string
	keyFiles                  []string
	every                     time.Duration
	budget                    int64
	exclude                   []string
}

// settings are what holds: flags before the environment before the file.
type settings struct {
	db, remote, store setting
	keyFiles          []setting
	recipients        []string
	every             time.Duration
	budget            int64 // reads a day; 0: none
	prices            tidemark.Prices
	policies          map[string]tidemark.Policy
	exclude           []string
}

const (
	defaultConfig = "tidemark.yaml"
	defaultEvery  = 30 * time.Second
	maxConfig     = 1 << 20 // bytes
)

// takes adds the flags that a command knows.
func (a *app) takes(cmd *cobra.Command, names ...string) *cobra.Command {
	for _, n := range names {
		switch n {
		case "db":
			cmd.Flags().StringVar(&a.given.db, n, "", "`FILE` of the SQLite database")
		case "remote":
			cmd.Flags().StringVar(&a.given.remote, n, "", "`URL` of the server: firestore://… or file:///DIR")
		case "store":
			cmd.Flags().StringVar(&a.given.store, n, "", "`URL` of the snapshots: s3://… or file:///DIR")
		case "key-file":
			cmd.Flags().StringArrayVar(&a.given.keyFiles, n, nil, "age identity `FILE` for the snapshots; repeat it to give older keys too")
		case "every":
			cmd.Flags().DurationVar(&a.given.every, n, defaultEvery, "`TIME` between two cycles, at least 1s")
		case "budget":
			cmd.Flags().Int64Var(&a.given.budget, n, 0, "slow down to about `READS` a day; 0: as fast as --every")
		case "exclude":
			cmd.Flags().StringArrayVar(&a.given.exclude, n, nil, "`TABLE` to leave out of sync; may be repeated")
		}
	}
	return cmd
}

// settings brings flags, environment and file together.
func (a *app) settings(cmd *cobra.Command) (settings, error) {
	s := settings{every: defaultEvery, prices: tidemark.DefaultPrices()}
	if err := a.configFile(cmd, &s); err != nil {
		return s, err
	}
	for _, v := range []struct {
		flag, text string
		to         *setting
	}{
		{"db", a.given.db, &s.db},
		{"remote", a.given.remote, &s.remote},
		{"store", a.given.store, &s.store},
	} {
		variable := "TIDEMARK_" + strings.ToUpper(v.flag)
		if text := os.Getenv(variable); text != "" {
			*v.to = setting{text, variable}
		}
		if cmd.Flags().Changed(v.flag) {
			*v.to = setting{v.text, "--" + v.flag}
		}
	}
	if text := os.Getenv("TIDEMARK_KEY_FILE"); text != "" {
		s.keyFiles = []setting{{text, "TIDEMARK_KEY_FILE"}}
	}
	if cmd.Flags().Changed("key-file") {
		s.keyFiles = nil
		for _, name := range a.given.keyFiles {
			s.keyFiles = append(s.keyFiles, setting{name, "--key-file"})
		}
	}
	if cmd.Flags().Changed("every") {
		s.every = a.given.every
	}
	if s.every < time.Second {
		return s, misuse("--every takes at least 1s: every cycle is billed")
	}
	if cmd.Flags().Changed("budget") {
		s.budget = a.given.budget
	}
	if s.budget < 0 {
		return s, misuse("--budget takes no negative number")
	}
	if cmd.Flags().Changed("exclude") {
		s.exclude = a.given.exclude
	}
	return s, nil
}

// need refuses to begin without the named settings.
func (s settings) need(names ...string) error {
	for _, n := range names {
		switch {
		case n == "db" && s.db.text == "":
			return missing("database", n, "FILE")
		case n == "remote" && s.remote.text == "":
			return missing("remote", n, "URL, such as firestore://PROJECT/users/alice or file:///DIR")
		case n == "store" && s.store.text == "":
			return missing("store for snapshots", n, "URL, such as s3://BUCKET/PREFIX or file:///DIR")
		}
	}
	return nil
}

func missing(what, flag, value string) error {
	return misuse("there is no %s: name it with --%s %s, or in TIDEMARK_%s, or as %q in %s",
		what, flag, value, strings.ToUpper(flag), flag+":", defaultConfig)
}

// configFile reads the file named by --config, or tidemark.yaml where there is one.
func (a *app) configFile(cmd *cobra.Command, s *settings) error {
	name := defaultConfig
	if cmd.Flags().Changed("config") {
		name = a.given.config
	}
	raw, err := readConfig(name)
	if errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config") {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return misuse("--config: %w", noFileError{"file " + plain(name) + ": check the name"})
	}
	if err != nil {
		return misuse("read the settings: %w", err)
	}
	if err := s.parse(raw, name); err != nil {
		return misuse("%s: %w", plain(name), err)
	}
	beside := func(file *string) {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(filepath.Dir(name), *file) // beside the file that names it
		}
	}
	beside(&s.db.text)
	for i := range s.keyFiles {
		beside(&s.keyFiles[i].text)
	}
	return nil
}

func readConfig(name string) ([]byte, error) {
	regular := func(st os.FileInfo) error {
		if !st.Mode().IsRegular() {
			return fmt.Errorf("%s is not a regular file: name one, or move it away", plain(name))
		}
		return nil
	}
	st, err := os.Stat(name) // before it is opened: a FIFO would hold us for ever
	if err == nil {
		err = regular(st)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(raw) > maxConfig {
		err = fmt.Errorf("%s is larger than 1 MiB: it is something else than our settings", plain(name))
	}
	return raw, err
}

// parse repeats no value in its errors: somebody may keep a secret where none belongs.
func (s *settings) parse(raw []byte, name string) error {
	dec := yaml.NewDecoder(strings.NewReader(string(raw)))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return notYAML(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("it holds more than one document: keep one")
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil
	}
	if top.Kind != yaml.MappingNode {
		return errors.New("it has to be a list of settings such as `db: notes.db`")
	}
	seen := map[string]bool{}
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if seen[key.Value] {
			return fmt.Errorf("line %d: %q is there twice: keep one", key.Line, fit(key.Value, 40))
		}
		seen[key.Value] = true
		if err := s.set(key.Value, value, name); err != nil {
			if at, ok := errors.AsType[lineError](err); ok {
				return at
			}
			return lineError{key.Line, err}
		}
	}
	return nil
}

// lineError is about a line of the settings.
type lineError struct {
	line int
	error
}

func (e lineError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.error) }
func (e lineError) Unwrap() error { return e.error }

var lineNumber = regexp.MustCompile(`line \d+`)

// notYAML keeps of the parser's error only the line: it may repeat a value.
func notYAML(err error) error {
	where := ""
	if line := lineNumber.FindString(err.Error()); line != "" {
		where = ", see " + line
	}
	return errors.New("it is not valid YAML" + where + ": indent with blanks, and put values with special characters between quotes")
}

func (s *settings) set(key string, value *yaml.Node, name string) error {
	text, isText := value.Value, value.Kind == yaml.ScalarNode && value.Tag != "!!null"
	if !isText {
		switch key {
		case "db", "remote", "store", "every", "budget":
			return fmt.Errorf("%q needs one value", key)
		}
	}
	from := setting{text, plain(name) + ": " + key}
	switch key {
	case "db":
		s.db = from
	case "remote":
		s.remote = from
	case "store":
		s.store = from
	case "every":
		d, err := time.ParseDuration(text)
		if err != nil || d < time.Second {
			return errors.New(`"every" takes a duration of at least a second, such as 30s or 5m`)
		}
		s.every = d
	case "budget":
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			return errors.New(`"budget" takes a number of reads a day, such as 20000`)
		}
		s.budget = n
	case "prices":
		return s.setPrices(value, name)
	case "policies":
		return s.setPolicies(value)
	case "exclude":
		list, err := texts(value, `"exclude" takes a table's name, or a list of them`)
		s.exclude = list
		return err
	case "key-file":
		list, err := texts(value, `"key-file" takes the name of a file, or a list of them`)
		for _, file := range list {
			s.keyFiles = append(s.keyFiles, setting{file, from.from})
		}
		return err
	case "recipients":
		list, err := texts(value, `"recipients" takes a public key that starts with age1, or a list of them`)
		s.recipients = list
		return err
	default:
		return fmt.Errorf("there is no setting %q: the settings are db, remote, store, every, exclude, key-file, recipients, policies, budget and prices", fit(key, 40))
	}
	return nil
}

// texts reads one text or a list of them.
func texts(value *yaml.Node, otherwise string) ([]string, error) {
	list := value.Content
	if value.Kind == yaml.ScalarNode {
		list = []*yaml.Node{value}
	} else if value.Kind != yaml.SequenceNode {
		return nil, errors.New(otherwise)
	}
	var out []string
	for _, n := range list {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			return nil, errors.New(otherwise)
		}
		out = append(out, n.Value)
	}
	return out, nil
}

// setPolicies reads who wins conflicts, by table.
func (s *settings) setPolicies(value *yaml.Node) error {
	const known = "the policies are last-writer-wins, server-wins, client-wins and merge-by-field"
	wrong := errors.New(`"policies" takes a policy for each table, such as "notes: merge-by-field"; ` + known)
	if value.Kind != yaml.MappingNode {
		return wrong
	}
	s.policies = map[string]tidemark.Policy{}
	for i := 0; i+1 < len(value.Content); i += 2 {
		table, policy := value.Content[i], value.Content[i+1]
		switch p := tidemark.Policy(policy.Value); {
		case table.Kind != yaml.ScalarNode || policy.Kind != yaml.ScalarNode:
			return lineError{table.Line, wrong}
		case p == tidemark.LastWriterWins, p == tidemark.ServerWins, p == tidemark.ClientWins, p == tidemark.MergeByField:
			if _, twice := s.policies[table.Value]; twice {
				return lineError{table.Line, fmt.Errorf("table %q has two policies: keep one", fit(table.Value, 40))}
			}
			s.policies[table.Value] = p
		default:
			return lineError{policy.Line, fmt.Errorf("table %q has a policy that is none: %s", fit(table.Value, 40), known)}
		}
	}
	return nil
}
