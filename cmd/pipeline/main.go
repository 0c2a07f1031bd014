// Command pipeline keeps a SQLite database in step with Firestore and keeps a
// snapshot of it in S3. `pipeline demo` shows it without any account.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tidemark-sync/tidemark"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(start(os.Args[1:])) }

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

// errNoCommand: there is nothing on the command line.
var errNoCommand = errors.New("no command")

// usageError is a command line or a configuration that cannot be meant: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// toldError is a failure that was printed already.
type toldError struct{ error }

func misuse(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// app is what all commands share.
type app struct {
	out      *output
	err      io.Writer
	progress *progress
	given    given
	options  []tidemark.Option // of every pipeline that is opened
	verbose  bool
}

// start runs one command line and returns the exit code.
func start(args []string) int {
	a := &app{out: &output{w: os.Stdout}, err: os.Stderr}
	ctx, stop := interruptible(context.Background())
	defer stop()
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	a.progress.end()
	if err == nil {
		err = a.out.failed()
	}
	if err == nil {
		return exitDone
	}
	if errors.Is(err, errNoCommand) {
		return exitUsage // the help was the answer
	}
	if errors.As(err, new(toldError)) {
		return exitFailed
	}
	if errors.Is(err, errInterrupted) {
		a.complain(2, "pipeline: ", "interrupted. Nothing is lost: the next one goes on from here.")
		return exitFailed
	}
	a.complain(2, "pipeline: ", err.Error())
	for _, h := range append(hints(err), goesOn(cmd.Name(), err)...) {
		a.complain(0, "", h)
	}
	if errors.As(err, new(usageError)) {
		fmt.Fprintf(a.err, "Run `%s --help` to see how it is used.\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// hints are the remedies that the error itself does not name.
func hints(err error) []string {
	switch {
	case errors.Is(err, tidemark.ErrSignedOut):
		return []string{"Nothing is lost: edits wait in the database until the user signs in again."}
	case errors.Is(err, tidemark.ErrWrongKey):
		return []string{"Give the key that the snapshot was made with: TIDEMARK_PASSPHRASE, or --key-file, which may be repeated, the newest first."}
	case errors.Is(err, tidemark.ErrUnavailable):
		return []string{"The server did not answer as it should: check network, URL and server."}
	case failedDisk(err):
		return []string{"The disk refused: check its room, its limits and its health."}
	}
	return nil
}

// goesOn says of a command that moves rows what comes of it after an outage.
func goesOn(command string, err error) []string {
	switch outage := errors.Is(err, tidemark.ErrUnavailable) || failedDisk(err); {
	case errors.Is(err, tidemark.ErrSignedOut) || !outage:
		return nil
	case command == "sync" || command == "run":
		return []string{"Nothing is lost: the next sync goes on from here."}
	case command == "restore":
		return []string{"Nothing is lost: run it again, and it goes on where it was."}
	}
	return nil
}

// interruptible ends the context at the first SIGINT or SIGTERM, and the process at
// the second.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-signals:
			case <-done:
				return
			}
			if n > 0 {
				os.Exit(exitFailed)
			}
			cancel(errInterrupted)
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}

const about = `pipeline keeps a SQLite database in step with Firestore, and a fresh snapshot
of it in S3. A sync checks Devices for what is new, downloads it, uploads what
is dirty, registers this device and, when it is Big Brother, backs up. A new
device restores the snapshot first. Try it first: pipeline demo`

// settingsHelp ends the help of every command that takes settings.
const settingsHelp = `
A remote is firestore://PROJECT/users/alice[?database=NAME], where the path is
the scope below which the collections live, or file:///DIR. A store is
s3://BUCKET/PREFIX[?region=…&endpoint=…] (a shell wants ? and & quoted) or
file:///DIR. What no flag says is read from TIDEMARK_DB, TIDEMARK_REMOTE and
TIDEMARK_STORE, then tidemark.yaml (db, remote, store, every, exclude, policies,
key-file, recipients, budget, prices). Credentials: gcloud's and aws's, or
TIDEMARK_FIREBASE_TOKEN_FILE; key: TIDEMARK_KEY_FILE or TIDEMARK_PASSPHRASE.
`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "pipeline",
		Short:         "keep a SQLite database in step with Firestore, and a snapshot of it in S3",
		Long:          about,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(a.err)
			return errors.Join(errNoCommand, cmd.Help())
		},
		PersistentPreRun: func(*cobra.Command, []string) {
			if !a.verbose {
				a.progress = newProgress(os.Stderr)
			}
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.SetVersionTemplate("pipeline {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	root.SetUsageTemplate(usageTemplate)
	root.PersistentFlags().StringVar(&a.given.config, "config", "", "`FILE` with the settings, instead of tidemark.yaml")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "log every step to standard error")
	cobra.EnableCommandSorting = false // they stand in the order of their use
	root.AddCommand(
		a.demo(), a.attach(), a.sync(), a.run(), a.restore(), a.verify(), a.snapshots(), a.keygen(), a.status(), a.trace(), a.doctor(), a.devices(),
		a.conflicts(), a.failed(), a.forget(), a.firestoreConfig(), a.policy(), a.topology(),
		&cobra.Command{
			Use: "version", Short: "say which version this is", Args: noArguments,
			RunE: func(*cobra.Command, []string) error {
				a.out.printf("pipeline %s\n", version())
				return nil
			},
		})
	for _, c := range root.Commands() {
		for _, c := range append(c.Commands(), c) {
			c.DisableFlagsInUseLine, c.SuggestionsMinimumDistance = true, root.SuggestionsMinimumDistance
		}
	}
	return root
}

// usageTemplate is cobra's with the sections that we have, in 80 columns.
const usageTemplate = `Usage:
  {{if and .HasAvailableSubCommands (not .HasParent)}}{{.CommandPath}} COMMAND [flags]{{else}}{{.UseLine}}{{end}}
{{- if .HasAvailableSubCommands}}

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}

Flags:
{{.Flags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}
{{- if .HasAvailableSubCommands}}

"{{.CommandPath}} COMMAND --help" says more about a command.{{end}}
{{if or (.Flags.Lookup "db") (.Flags.Lookup "store")}}` + settingsHelp + `{{end}}`

// flagError repeats no value: what was mistyped may be a secret.
func flagError(err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			return misuse("there is no flag -%s", plain(name))
		}
		return misuse("there is no flag --%s", plain(name))
	case errors.As(err, &missing):
		return misuse("the flag --%s needs a value", missing.GetFlag().Name)
	case errors.As(err, &invalid):
		return misuse("the value of --%s is not one: it takes %s", invalid.GetFlag().Name, takes(invalid.GetFlag().Value.Type()))
	}
	return misuse("the flags cannot be read: check their spelling")
}

// takes says what a value of a type looks like.
func takes(kind string) string {
	switch kind {
	case "duration":
		return "a time such as 30s, 5m or 2h"
	case "age":
		return "a time such as 90d or 12h"
	case "int", "int64":
		return "a whole number such as 20"
	case "bool":
		return "true or false"
	}
	return "a " + kind
}

// noSuchCommand refuses what stands in the place of a command.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return misuse("there is no such command; did you mean `%s %s`?", cmd.CommandPath(), near[0])
	}
	return misuse("there is no such command")
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.Flags().Lookup("db") != nil {
		return misuse("%s takes flags only; name the database with --db", cmd.Name())
	}
	return misuse("%s takes flags only", cmd.Name())
}

// version is the module's, with the commit it was built from where Go knows it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	v, commit := "(devel)", ""
	if ok {
		if info.Main.Version != "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && !strings.Contains(v, s.Value[:min(12, len(s.Value))]) {
				commit = ", commit " + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return fmt.Sprintf("%s (%s, %s/%s%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH, commit)
}

// logger is nil unless somebody looks at what it says.
func (a *app) logger() *zap.Logger {
	if !a.verbose {
		return nil
	}
	config := zap.NewDevelopmentEncoderConfig()
	config.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
	config.CallerKey, config.StacktraceKey = zapcore.OmitKey, zapcore.OmitKey
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(config), zapcore.Lock(zapcore.AddSync(a.err)), zap.DebugLevel))
}
