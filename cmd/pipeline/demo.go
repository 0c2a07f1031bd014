package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	"github.com/tidemark-sync/tidemark"
)

var (
	//go:embed demo.sql
	demoSchema string
	//go:embed demo_rows.sql
	demoRows string
)

func (a *app) demo() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo [--keep]",
		Short: "see it work: three devices in a temporary folder, no account",
		Long: `demo plays the whole story in a temporary folder, with folders for Firestore
and S3: a phone, a laptop and a tablet share a notes database, edit it offline,
come together again, and the phone is lost and restored. It needs no account,
no network and a few seconds.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			dir, err := os.MkdirTemp("", "tidemark-demo-")
			if err != nil {
				return fmt.Errorf("make a temporary folder (set TMPDIR to another place): %w", err)
			}
			ctx := cmd.Context()
			s := &story{a: a, dir: dir, started: time.Now()}
			err = s.tell(ctx)
			s.close()
			if keep {
				laptop := shell(filepath.Join(dir, "laptop.db"))
				a.out.printf("\nKept in\n  %s\nTo look at it:\n  %s status --db %s\n  %s conflicts --db %s\n", dir, itself(), laptop, itself(), laptop)
			} else if rerr := os.RemoveAll(dir); rerr != nil {
				err = errors.Join(err, fmt.Errorf("clean up: %w", rerr))
			} else if err == nil {
				a.out.printf("\nThe temporary folder is removed; `demo --keep` leaves it to look at.\nYour own: %s attach --db FILE\n", itself())
			}
			return cause(ctx, err)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the folder, and say how to look at it")
	return cmd
}

// itself is how this program is called: by `go run` it lies in a folder that is gone
// when it has ended.
func itself() string {
	name := os.Args[0]
	if strings.Contains(name, string(filepath.Separator)+"go-build") {
		return "go run ./cmd/pipeline"
	}
	return shell(name)
}

// story is a run of the demo.
type story struct {
	a       *app
	dir     string
	started time.Time
	remote  tidemark.Remote
	store   tidemark.SnapshotStore
	closers []io.Closer
	devices []*device
	chapter int
	reads   int64
	writes  int64
	deletes int64
}

// device is one installation of the notes application.
type device struct {
	name string
	db   *bun.DB
	pipe *tidemark.Pipeline
}

func (s *story) close() {
	for _, d := range s.devices {
		_ = d.db.Close() // already closed when the story came to its end
	}
	for _, c := range s.closers {
		_ = c.Close() // nobody uses it any more
	}
}

// title begins a chapter.
func (s *story) title(text string) {
	s.chapter++
	s.a.out.printf("\n%d. %s\n", s.chapter, text)
}

func (s *story) line(who, format string, args ...any) {
	s.a.out.printf("%s\n", strings.TrimRight(fmt.Sprintf("   %-9s ", who)+fmt.Sprintf(format, args...), " "))
}

func (s *story) tell(ctx context.Context) (err error) {
	s.a.out.printf("A notes app on a phone, a laptop and a tablet. In %s\n"+
		"the folder \"remote\" plays Firestore and the folder \"store\" plays S3; reads and\nwrites are what Firestore would bill.\n", s.dir)
	var c io.Closer
	if s.remote, c, err = openRemote(ctx, address{scheme: "file", path: filepath.Join(s.dir, "remote")}); err != nil {
		return err
	}
	s.closers = append(s.closers, c)
	if s.store, c, err = openStore(ctx, address{scheme: "file", path: filepath.Join(s.dir, "store")}); err != nil {
		return err
	}
	s.closers = append(s.closers, c)
	for _, chapter := range []func(context.Context) error{s.first, s.more, s.offline, s.together, s.idle, s.lost, s.verify} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) path(name string) string {
	return filepath.Join(s.dir, strings.ReplaceAll(name, " ", "-")+".db")
}

// open opens a device's database the way an application would: with foreign keys on.
func (s *story) open(name, mode string) (*device, error) {
	db, err := sql.Open("sqlite", dsn(s.path(name), mode, "foreign_keys(1)"))
	if err != nil {
		return nil, err
	}
	d := &device{name: name, db: bun.NewDB(db, sqlitedialect.New())}
	s.devices = append(s.devices, d)
	return d, nil
}

// install makes a device with the application's empty schema, and attaches it.
func (s *story) install(ctx context.Context, name string, rows string) (*device, tidemark.Attached, error) {
	d, err := s.open(name, "rwc")
	if err != nil {
		return nil, tidemark.Attached{}, err
	}
	if err := d.exec(ctx, demoSchema, rows); err != nil {
		return nil, tidemark.Attached{}, err
	}
	attached, err := tidemark.Attach(ctx, d.db)
	if err != nil {
		return nil, attached, err
	}
	return d, attached, s.pipeline(ctx, d)
}

func (s *story) pipeline(ctx context.Context, d *device) (err error) {
	d.pipe, err = tidemark.New(ctx, d.db, s.remote, s.store, tidemark.WithDevice(d.name, version()))
	return err
}

// exec is the application at work: it knows nothing of tidemark.
func (d *device) exec(ctx context.Context, statements ...string) error {
	for _, q := range statements {
		if _, err := d.db.DB.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (d *device) text(ctx context.Context, query string) (string, error) {
	var out string
	if err := d.db.DB.QueryRowContext(ctx, query).Scan(&out); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("%s: %w", d.name, err)
	}
	return out, nil
}

// sync runs a cycle and tells of it in one line.
func (s *story) sync(ctx context.Context, d *device, remark string) (tidemark.Report, error) {
	r, err := d.pipe.Sync(ctx)
	if err != nil {
		return r, fmt.Errorf("%s: %w", d.name, err)
	}
	s.reads += r.Billed.Reads
	s.writes += r.Billed.Writes
	s.deletes += r.Billed.Deletes
	t := r.Total()
	moved := fmt.Sprintf("%2d down, %2d up", t.Downloaded, t.Uploaded)
	if t.Downloaded+t.Uploaded == 0 {
		moved = "nothing new"
	}
	s.line(d.name, "%-15s %-19s %s", moved, fmt.Sprintf("%s, %s", count(r.Billed.Reads, "read", "reads"), count(r.Billed.Writes, "write", "writes")), remark)
	if r.Snapshot != nil {
		s.line("", "and is Big Brother: it backs up, %s with the manifest", size(r.Store.BytesUp))
	}
	return r, nil
}

func (s *story) first(ctx context.Context) error {
	s.title("The phone has been used for a while. Now it is attached, and synced")
	phone, attached, err := s.install(ctx, "phone", demoRows)
	if err != nil {
		return err
	}
	s.line("phone", "attached: %d tables, %d rows marked dirty", len(attached.Tables), attached.Rows)
	_, err = s.sync(ctx, phone, "everything goes up")
	return err
}

func (s *story) more(ctx context.Context) error {
	s.title("The laptop and the tablet are new: the same tables, no rows")
	for _, name := range []string{"laptop", "tablet"} {
		d, _, err := s.install(ctx, name, "")
		if err != nil {
			return err
		}
		if _, err := s.sync(ctx, d, "all of it, parents first"); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) offline(ctx context.Context) error {
	s.title("All three are offline and go on writing")
	phone, laptop, tablet := s.devices[0], s.devices[1], s.devices[2]
	for _, e := range []struct {
		d    *device
		what string
		sql  string
	}{
		{phone, `changes the note "Lisbon" to "Lisbon in May"`, `UPDATE notes SET title = 'Lisbon in May' WHERE title = 'Lisbon'`},
		{phone, `deletes the note "Old wifi password", its comment and its tag`, `DELETE FROM notes WHERE title = 'Old wifi password'`},
		{laptop, `changes the same note "Lisbon" to "Lisbon with Ana", later`, `UPDATE notes SET title = 'Lisbon with Ana' WHERE title = 'Lisbon'`},
		{tablet, `writes a new note "Packing list", with a comment`, `INSERT INTO notes (notebook, title, body) SELECT id, 'Packing list', 'Raincoat. It rains in Lisbon.' FROM notebooks WHERE name = 'Travel';
			INSERT INTO comments (note, text) SELECT id, 'And a hat' FROM notes WHERE title = 'Packing list'`},
	} {
		if err := e.d.exec(ctx, e.sql); err != nil {
			return err
		}
		select { // two edits in the same millisecond would have no later one
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		s.line(e.d.name, "%s", e.what)
	}
	return nil
}

func (s *story) together(ctx context.Context) error {
	s.title("They are back, one after the other")
	phone, laptop, tablet := s.devices[0], s.devices[1], s.devices[2]
	if _, err := s.sync(ctx, phone, "its edit and its deletes"); err != nil {
		return err
	}
	r, err := s.sync(ctx, laptop, "the note was changed twice")
	if err != nil {
		return err
	}
	if r.Total().Conflicts == 0 {
		return errors.New("the laptop and the phone changed the same note, and nobody noticed")
	}
	won, err := laptop.text(ctx, `SELECT title FROM notes WHERE title LIKE 'Lisbon%'`)
	if err != nil {
		return err
	}
	lost, err := laptop.text(ctx, `SELECT json_extract(CAST(iif(winner = 'local', serverVersion, localVersion) AS TEXT), '$.fields.title') FROM tidemark_conflicts`)
	if err != nil {
		return err
	}
	s.line("", "conflict: %q is later and wins;", won)
	s.line("", "%q lost and is kept in tidemark_conflicts", lost)
	if _, err := s.sync(ctx, tablet, "its note and its comment"); err != nil {
		return err
	}
	for _, d := range []*device{phone, laptop} {
		if _, err := s.sync(ctx, d, "what the others did since"); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) idle(ctx context.Context) error {
	s.title("The laptop syncs again, and nothing has happened")
	r, err := s.sync(ctx, s.devices[1], "and writes nothing")
	if err != nil {
		return err
	}
	if t := r.Total(); t.Downloaded+t.Uploaded+r.Billed.Writes+r.Store.Puts != 0 {
		return errors.New("an idle cycle moved something")
	}
	if r.Billed.Reads > 1 {
		s.line("", "(one for each device that uploaded in the last 5 minutes)")
	}
	return nil
}

func (s *story) lost(ctx context.Context) error {
	s.title("The phone is lost. A new one restores the snapshot")
	phone := s.devices[0]
	if err := phone.db.Close(); err != nil {
		return err
	}
	for _, suffix := range []string{"", "-wal", "-shm", ".tidemark-lock"} {
		if err := os.Remove(s.path(phone.name) + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	restored, err := tidemark.Restore(ctx, s.path("new phone"), s.store, tidemark.RestoreDriver(fileDriver))
	if err != nil {
		return err
	}
	fresh, err := s.open("new phone", "rw")
	if err != nil {
		return err
	}
	rows, err := fresh.text(ctx, `SELECT (SELECT count(*) FROM notebooks) + (SELECT count(*) FROM notes) + (SELECT count(*) FROM comments)
		+ (SELECT count(*) FROM tags) + (SELECT count(*) FROM note_tags)`)
	if err != nil {
		return err
	}
	s.line(fresh.name, "%s rows from a snapshot of %s, checked; no reads", rows, size(restored.Store.BytesDown))
	if err := s.pipeline(ctx, fresh); err != nil {
		return err
	}
	if _, err := s.sync(ctx, fresh, "only what came after it"); err != nil {
		return err
	}
	s.devices = append(s.devices[1:len(s.devices)-1:len(s.devices)-1], fresh) // the lost one is out
	return nil
}
