package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/messages"
)

// unused fails when another program has the file open, as far as SQLite can tell, and
// leaves it as it is. A file that is not there, or no database, is for others to say.
func unused(ctx context.Context, name string) (err error) {
	path, err := checkPath(name)
	if err != nil {
		return err
	}
	db, err := sql.Open(fileDriver, path)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, `PRAGMA busy_timeout = 1000`); err != nil {
		return fmt.Errorf("%s: %w", name, explain(err))
	}
	var was, mode string
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&was); err != nil {
		return fmt.Errorf("%s: %w", name, explain(err))
	}
	err = explain(db.QueryRowContext(ctx, `PRAGMA journal_mode = DELETE`).Scan(&mode)) // needs the file for itself
	if err != nil && !errors.Is(err, tidemark.ErrLocked) {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err != nil || mode != "delete" {
		return messages.Saying(tidemark.ErrLocked, "%s is in use: close the programs that have it open, and run this again; nothing was done", name)
	}
	if was != "wal" {
		return nil
	}
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode = WAL`).Scan(&mode); err != nil {
		return fmt.Errorf("%s: %w", name, explain(err))
	}
	return nil
}

// removable refuses a link before anything is done: behind it everything would stay.
func removable(name string) error {
	if st, err := os.Lstat(name); err == nil && st.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link: name the file itself; nothing was done", name)
	}
	return nil
}

// wipe closes the database and removes it. What a restore kept stays.
func (a *app) wipe(ctx context.Context, w *work, f forgetFlags) error {
	if f.keepFile {
		return nil
	}
	w.close()
	opts := []tidemark.WipeOption{tidemark.WipeDriver(fileDriver), tidemark.WipeSpareKept()}
	if f.discard {
		opts = append(opts, tidemark.WipeUnsynced())
	}
	err := tidemark.Wipe(ctx, w.db.path, opts...)
	if errors.Is(err, tidemark.ErrUnsynced) {
		return fmt.Errorf("the device is forgotten, and its file stays: copy away what was written meanwhile, or run this again with --discard-unsynced: %w", err)
	}
	return cause(ctx, err)
}

// keptBeside are the files that `restore --keep-unsynced` left.
func keptBeside(name string) []string {
	entries, _ := os.ReadDir(filepath.Dir(name)) // what cannot be read is not ours
	var kept []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(name)+".unsynced-") && filepath.Ext(e.Name()) != ".tidemark-lock" {
			kept = append(kept, filepath.Join(filepath.Dir(name), e.Name()))
		}
	}
	return kept
}
