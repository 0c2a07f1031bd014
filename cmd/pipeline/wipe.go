package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tidemark-sync/tidemark"
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
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode = DELETE`).Scan(&mode); err != nil || mode != "delete" { // needs the file for itself
		return fmt.Errorf("%s is in use: close the programs that have it open, and run this again; nothing was done: %w", name, errors.Join(tidemark.ErrLocked, err))
	}
	if was != "wal" {
		return nil
	}
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode = WAL`).Scan(&mode); err != nil {
		return fmt.Errorf("%s: %w", name, explain(err))
	}
	return nil
}

// beside are the files that SQLite and we keep beside a database. The lock is the last to
// go but for the database: as long as that is there, forget can be run again.
var beside = []string{"-wal", "-shm", "-journal", ".tidemark-pages", ".tidemark-download", ".tidemark-lock"}

// wipe closes the database and removes it.
func (a *app) wipe(ctx context.Context, w *work, f forgetFlags) error {
	if f.keepFile {
		return nil
	}
	name := w.db.path
	w.close()
	if err := unused(ctx, name); err != nil {
		return err
	}
	path, err := checkPath(name)
	if err != nil {
		return err
	}
	for _, suffix := range append(beside, "") {
		if err := os.RemoveAll(path + suffix); err != nil {
			return fmt.Errorf("remove the local copy, run this again: %w", err)
		}
	}
	return nil
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
