package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark-sync/tidemark"
)

// restoring opens what restore and verify have in common: the store, and the options
// that the settings come to.
func (a *app) restoring(ctx context.Context, s settings, at string) (tidemark.SnapshotStore, io.Closer, []tidemark.RestoreOption, error) {
	u, err := parseStore(s.store)
	if err != nil {
		return nil, nil, nil, err
	}
	opts, err := parseAt(at, time.Now())
	if err != nil {
		return nil, nil, nil, err
	}
	opts = append(opts, tidemark.RestoreDriver(fileDriver))
	key, err := s.key()
	if err != nil {
		return nil, nil, nil, err
	}
	if key != nil {
		opts = append(opts, tidemark.RestoreKey(key))
	}
	scope, err := scopeOf(ctx, s.remote)
	if err != nil {
		return nil, nil, nil, err
	}
	if scope != "" {
		opts = append(opts, tidemark.RestoreScope(scope))
	}
	store, closer, err := openStoreThatIs(ctx, u)
	return store, closer, opts, err
}

// scopeOf names whose rows the remote holds, when one is set. No server is asked; one
// that cannot be opened here is no reason not to restore.
func scopeOf(ctx context.Context, remote setting) (string, error) {
	if remote.text == "" {
		return "", nil
	}
	u, err := parseRemote(remote)
	if err != nil || u.scheme == "file" { // a folder has a name of its own only once it is there
		return "", err
	}
	r, closer, err := openRemote(ctx, u)
	if err != nil {
		return "", nil // as said
	}
	defer closer.Close()
	return r.Scope(), nil
}

// restoreProgress shows the phases of a restore.
func (a *app) restoreProgress(what string) tidemark.RestoreOption {
	var mu sync.Mutex
	var phase tidemark.Phase
	var done, total int64
	a.progress.begin(what, func() string {
		mu.Lock()
		defer mu.Unlock()
		switch phase {
		case tidemark.PhaseDownload:
			return fmt.Sprintf("%s of %s", size(done), size(total))
		case tidemark.PhaseUnpack:
			return fmt.Sprintf("unpacking, %s of %s", size(done), size(total))
		case tidemark.PhaseCheck:
			return "checking"
		}
		return ""
	})
	return tidemark.RestoreProgress(func(p tidemark.Phase, d, t int64) {
		mu.Lock()
		phase, done, total = p, d, t
		mu.Unlock()
	})
}

func (a *app) restore() *cobra.Command {
	var at string
	var keep bool
	cmd := a.takes(&cobra.Command{
		Use:   "restore --db FILE --store URL [--at GENERATION|TIME]",
		Short: "bring the database back from a snapshot",
		Long: `restore downloads the newest snapshot and checks it: checksum, integrity,
foreign keys and version. Only then it takes FILE's place, as a device of its
own. A file that is there already is replaced only when all its rows were
uploaded; its conflicts are carried over. The next sync downloads what came
after the snapshot. A download that was cut off goes on where it was when
restore is run again.

--at takes an older one: by the name that "pipeline snapshots" lists, or the
newest that was not made after a moment, such as 2026-03-01T12:00:00Z, or a time
ago, such as 2h or 90m.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			s, err := a.settings(cmd)
			if err == nil {
				err = s.need("db", "store")
			}
			if err != nil {
				return err
			}
			store, closer, opts, err := a.restoring(ctx, s, at)
			if err != nil {
				return err
			}
			defer closer.Close()
			opts = append(opts, a.restoreProgress("restoring "+s.db.text))
			if keep {
				opts = append(opts, tidemark.RestoreKeepUnsynced())
			}
			r, err := tidemark.Restore(ctx, s.db.text, store, opts...)
			a.progress.end()
			if err != nil {
				if err := cause(ctx, err); errors.Is(err, errInterrupted) {
					return err
				}
				if errors.Is(err, tidemark.ErrNotDatabase) && !errors.Is(err, tidemark.ErrDamaged) {
					return fmt.Errorf("%s is there, and is no SQLite database or a damaged one: move it away first, or name another file", s.db.text)
				}
				if errors.Is(err, tidemark.ErrUnsynced) {
					return fmt.Errorf("%s: %s; --keep-unsynced restores all the same, and keeps the file beside", s.db.text, strings.TrimPrefix(err.Error(), "restore: "))
				}
				return fmt.Errorf("%s: %w", s.db.text, unnamed(at, explain(err)))
			}
			a.out.printf("%s is restored: %s, from a snapshot of %s.\n\n  snapshot  %s, %s\n  device    %s, new\n",
				plain(s.db.text), size(r.Bytes), size(r.StoredBytes), plain(r.Generation), encrypted(r.Encrypted), plain(r.DeviceID))
			a.out.printf("  store     %s (%s%s)\n", count(r.Store.Gets, "GET", "GETs"), size(r.Store.BytesDown), resumed(r))
			if r.Conflicts > 0 {
				a.out.printf("  conflicts %s carried over from the old file\n", thousands(r.Conflicts))
			}
			if r.Kept != "" {
				a.out.printf("\nThe file that was there is kept as\n  %s\n", plain(r.Kept))
			}
			if r.Unsynced {
				a.tellOnlyThere(ctx, r)
			}
			if r.ConflictsLeft > 0 {
				a.out.printf("It has %s of another scope, and nothing else has them:\npipeline conflicts --db shows them.\n", count(r.ConflictsLeft, "conflict", "conflicts"))
			}
			a.next("sync", s, "remote", "store")
			return nil
		},
	}, "db", "remote", "store", "key-file")
	cmd.Flags().StringVar(&at, "at", "", "an older snapshot: its `GENERATION`, a moment, or a time ago")
	cmd.Flags().BoolVar(&keep, "keep-unsynced", false, "keep a file with rows that were never uploaded beside, instead of refusing")
	return cmd
}

// tellOnlyThere says what to do about the rows of a file that was kept for them.
func (a *app) tellOnlyThere(ctx context.Context, r tidemark.Restored) {
	switch {
	case r.NotUploaded && a.neverAttached(ctx, r.Kept):
		a.out.printf("It was never attached, and is no device. Its rows may be in the snapshot already:\nattached and synced, they would be there twice. Copy by SQL what is missing.\n")
	case r.NotUploaded:
		a.out.printf("It has rows that no other device has, and a sync does not upload them all: their\ntable is left out, or the server refuses them. Keep it.\n")
	default:
		a.out.printf("It has rows that no other device has, and is still a device: sync it once, and\nthey are everywhere. Then remove it.\n")
	}
}

// neverAttached reports whether a file is a database without our tables.
func (a *app) neverAttached(ctx context.Context, name string) bool {
	db, err := a.openDatabase(ctx, setting{text: name})
	if err != nil {
		return false
	}
	defer db.Close()
	var ours bool
	err = db.DB.DB.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tidemark_tables')`).Scan(&ours)
	return err == nil && !ours
}

// resumed says why a restore has downloaded less than the snapshot is.
func resumed(r tidemark.Restored) string {
	if r.Store.BytesDown < r.StoredBytes {
		return "; the rest was here already"
	}
	return ""
}

// unnamed adds to the error of an --at that was taken for a name how a time is written.
func unnamed(at string, err error) error {
	if at == "" || !strings.Contains(err.Error(), "there is no snapshot of generation") {
		return err
	}
	return fmt.Errorf("%w; a moment is written 2026-03-01T12:00:00Z, and a time ago 2h", err)
}

// parseAt tells a moment and a time ago from the name of a generation.
func parseAt(at string, now time.Time) ([]tidemark.RestoreOption, error) {
	if at == "" {
		return nil, nil
	}
	if moment, err := time.Parse(time.RFC3339, at); err == nil {
		return []tidemark.RestoreOption{tidemark.RestoreAsOf(moment)}, nil
	}
	ago, err := time.ParseDuration(at)
	if err != nil {
		return []tidemark.RestoreOption{tidemark.RestoreGeneration(at)}, nil //nolint:nilerr // it is no time, so it is a name
	}
	if ago < 0 {
		return nil, misuse("--at takes a time ago without a sign, such as 2h")
	}
	return []tidemark.RestoreOption{tidemark.RestoreAsOf(now.Add(-ago))}, nil
}
