package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tidemark-sync/tidemark/adapters/firestore"
	"github.com/tidemark-sync/tidemark/integration/servers"
)

// withServers stops the servers that a test started.
type withServers struct{ m *testing.M }

func (w withServers) Run() int { return servers.Main(w.m) }

func TestMain(m *testing.M) {
	helper := func(f func(args []string) error) func() {
		return func() {
			if err := f(os.Args[1:]); err != nil {
				if exit, ok := errors.AsType[*exec.ExitError](err); ok {
					os.Exit(exit.ExitCode())
				}
				fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
				os.Exit(1)
			}
		}
	}
	testscript.Main(withServers{m}, map[string]func(){
		"pipeline": main,
		// code N COMMAND… demands the exit code N.
		"code": helper(exitCode),
		// sql FILE STATEMENT… writes to a database, as an application does.
		"sql": helper(sqlCommand),
		// rows FILE QUERY prints the answer, a line a row.
		"rows": helper(rowsCommand),
		// sound FILE… demands that SQLite finds nothing wrong.
		"sound": helper(soundCommand),
		// keys prints the names in a JSON object on standard input, a line a path.
		"keys": helper(keysCommand),
		// widest COLUMNS LINES looks at the size of a text on standard input.
		"widest": helper(widestCommand),
		// repeat TEXT COUNT prints a text many times.
		"repeat": helper(repeatCommand),
		// locked FILE COMMAND… runs a command while somebody holds the database.
		"locked": helper(lockedCommand),
		// onscreen COMMAND… gives a command the terminal for its standard error.
		"onscreen": helper(onscreenCommand),
		// until TEXT SIGNAL COMMAND… sends a signal when the command has printed a text.
		"until": helper(untilCommand),
		// playing FILE COMMAND… reads lines of "TEXT | SIGNAL | FROM | TO": when the command
		// has printed the text, FROM is copied to TO and the signal sent.
		"playing": helper(playingCommand),
		// collected COMMAND… plays an OpenTelemetry collector and prints the spans.
		"collected": helper(collectedCommand),
		// scraped TEXT COMMAND… prints the metrics that a command serves, when it has
		// printed a text, and interrupts it.
		"scraped": helper(scrapedCommand),
		// measured PAGE FILE… demands that a page has the metrics that files name.
		"measured": helper(measuredCommand),
		// answering CODE TEXT COMMAND… plays a Firestore that answers every call so.
		"answering": helper(answeringCommand),
		// interrupting SIGNAL,… COMMAND… plays a Firestore that never answers, and
		// sends signals when it is called.
		"interrupting": helper(interruptingCommand),
		// cutting ADDRESS BYTES COMMAND… is the line to a server, which breaks after so
		// many bytes; LINE in the command is its address.
		"cutting": helper(cuttingCommand),
		// limited BYTES COMMAND… lets no file grow beyond a size.
		"limited": helper(limitedCommand),
	})
}

// environment keeps what this machine knows of clouds out of the scripts.
func environment(env *testscript.Env) error {
	ops, err := filepath.Abs(filepath.Join("..", "..", "ops"))
	if err != nil {
		return err
	}
	env.Vars = append(env.Vars,
		"TERM=dumb",
		"OPS="+ops,                 // the dashboard and the alert rules
		"GORACE=atexit_sleep_ms=0", // else, under the race detector, every command sleeps for a second
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_CONFIG_FILE="+filepath.Join(env.WorkDir, "no-aws-config"),
		"AWS_SHARED_CREDENTIALS_FILE="+filepath.Join(env.WorkDir, "no-aws-credentials"),
		"GOOGLE_APPLICATION_CREDENTIALS="+filepath.Join(env.WorkDir, "no-google-credentials.json"),
	)
	return nil
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: environment, RequireExplicitExec: true})
}

func TestFirestore(t *testing.T) {
	t.Parallel()
	emulator := servers.Firestore(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/firestore", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Vars = append(env.Vars, "FIRESTORE_EMULATOR_HOST="+emulator, "PROJECT="+servers.Project(t))
			return environment(env)
		},
	})
}

// Signed-in users on an emulator that evaluates the file which firestore-config prints.
// Their refresh tokens are their ids.
func TestFirestoreRules(t *testing.T) {
	t.Parallel()
	rules, err := firestore.Rules("users/{uid}")
	if err != nil {
		t.Fatal(err)
	}
	file, project := filepath.Join(t.TempDir(), "firestore.rules"), servers.Project(t)
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	emulator := servers.FirestoreWithRules(t, file)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user := r.FormValue("refresh_token")
		if r.URL.Path != "/securetoken.googleapis.com/v1/token" || r.URL.Query().Get("key") != "web-key" || user == "nobody" {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":{"message":"TOKEN_EXPIRED","status":"INVALID_ARGUMENT"}}`)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"id_token": servers.IDToken(project, user), "expires_in": "3600", "refresh_token": user})
	}))
	t.Cleanup(tokens.Close)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/rules", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Vars = append(env.Vars, "FIRESTORE_EMULATOR_HOST="+emulator, "FIREBASE_AUTH_EMULATOR_HOST="+strings.TrimPrefix(tokens.URL, "http://"), "PROJECT="+project, "RULES="+file)
			return environment(env)
		},
	})
}

func TestS3(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata/s3", RequireExplicitExec: true, Setup: bucketEnvironment(servers.S3(t))})
}

// bucketEnvironment lets a script find a bucket.
func bucketEnvironment(bucket servers.S3Server) func(*testscript.Env) error {
	return func(env *testscript.Env) error {
		env.Vars = append(env.Vars,
			"AWS_ACCESS_KEY_ID="+bucket.AccessKey, "AWS_SECRET_ACCESS_KEY="+bucket.SecretKey,
			"BUCKET="+bucket.Bucket, "REGION="+bucket.Region, "ENDPOINT="+bucket.Endpoint,
			"ADDRESS="+strings.TrimPrefix(bucket.Endpoint, "http://"))
		return environment(env)
	}
}

// child is a command that takes over our input, output and exit code.
func child(args []string, env ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

func exitCode(args []string) error {
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	cmd := child(args[1:])
	_ = cmd.Run() // the exit code is looked at
	if got := cmd.ProcessState.ExitCode(); got != want {
		return fmt.Errorf("exit code %d, want %d", got, want)
	}
	return nil
}

// openTest opens a database as an application would, and creates it.
func openTest(path string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(abs, "rwc", "foreign_keys(1)"))
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

func sqlCommand(args []string) error {
	db, err := openTest(args[0])
	if err != nil {
		return err
	}
	for _, q := range args[1:] {
		if name, ok := strings.CutPrefix(q, "@"); ok { // a file of statements
			raw, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			q = string(raw)
		}
		if _, err := db.ExecContext(context.Background(), q); err != nil {
			return errors.Join(err, db.Close())
		}
	}
	return db.Close()
}

func rowsCommand(args []string) error {
	db, err := openTest(args[0])
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.QueryContext(context.Background(), args[1])
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	for err == nil && rows.Next() {
		values := make([]any, len(names))
		for i := range values {
			values[i] = new(any)
		}
		if err = rows.Scan(values...); err != nil {
			break
		}
		var line []string
		for _, v := range values {
			line = append(line, fmt.Sprint(*v.(*any)))
		}
		fmt.Println(strings.Join(line, "|"))
	}
	return errors.Join(err, rows.Err())
}

func soundCommand(args []string) error {
	for _, path := range args {
		db, err := openTest(path)
		if err != nil {
			return err
		}
		var verdict string
		var dangling int
		err = db.QueryRowContext(context.Background(), `SELECT (SELECT group_concat(integrity_check) FROM pragma_integrity_check), (SELECT count(*) FROM pragma_foreign_key_check)`).
			Scan(&verdict, &dangling)
		if err == nil && (verdict != "ok" || dangling != 0) {
			err = fmt.Errorf("%s is not sound: %s, %d dangling references", path, verdict, dangling)
		}
		if err = errors.Join(err, db.Close()); err != nil {
			return err
		}
	}
	return nil
}

// keysCommand prints the paths in the order in which they stand there.
func keysCommand([]string) error {
	dec := json.NewDecoder(os.Stdin)
	seen := map[string]bool{}
	var walk func(path string) error
	walk = func(path string) error {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		if path != "" && !seen[path] {
			seen[path] = true
			fmt.Println(path)
		}
		switch tok {
		case json.Delim('{'):
			for dec.More() {
				key, err := dec.Token()
				if err != nil {
					return err
				}
				if err := walk(strings.TrimPrefix(path+"."+key.(string), ".")); err != nil {
					return err
				}
			}
			_, err = dec.Token()
		case json.Delim('['):
			for dec.More() {
				if err := walk(path + "[]"); err != nil {
					return err
				}
			}
			_, err = dec.Token()
		}
		return err
	}
	if err := walk(""); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one object")
	}
	return nil
}

func repeatCommand(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err == nil {
		fmt.Print(strings.Repeat(args[0], n))
	}
	return err
}

func lockedCommand(args []string) error {
	db, err := openTest(args[0])
	if err != nil {
		return err
	}
	if _, err := db.ExecContext(context.Background(), "BEGIN EXCLUSIVE"); err != nil {
		return errors.Join(err, db.Close())
	}
	err = child(args[1:]).Run()
	return errors.Join(err, db.Close())
}

// widestCommand demands that standard input has no wider line than so many columns,
// and no more lines than that.
func widestCommand(args []string) error {
	width, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	height, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if len(lines) > height {
		return fmt.Errorf("%d lines, want at most %d", len(lines), height)
	}
	for _, l := range lines {
		if n := utf8.RuneCountInString(l); n > width {
			return fmt.Errorf("a line of %d columns: %s", n, l)
		}
	}
	return nil
}

func onscreenCommand(args []string) error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	cmd := child(args)
	cmd.Stderr = tty
	return errors.Join(cmd.Run(), tty.Close())
}
