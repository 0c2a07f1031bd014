package main

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/sqlitedialect"

	"github.com/tidemark-sync/tidemark"
	"github.com/tidemark-sync/tidemark/adapters/memory"
)

// Cycles that fail before the ledger has a word of them are no other program's: the
// application holds the write lock for a while, and nobody else syncs the file.
func TestALockedDatabaseIsNoCompany(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.db")
	open := func() *bun.DB {
		raw, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5)&_txlock=immediate")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = raw.Close() })
		return bun.NewDB(raw, sqlitedialect.New())
	}
	db, app := open(), open()
	if _, err := db.DB.Exec(`CREATE TABLE note (id INTEGER PRIMARY KEY, title TEXT)`); err != nil {
		t.Fatal(err)
	}
	if _, err := tidemark.Attach(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	p, err := tidemark.New(t.Context(), db, memory.NewServer().Remote(), nil, tidemark.WithRetries(0, time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	w := &work{pipeline: p, db: &database{DB: db, path: path}}
	tell := companyTeller(t.Context(), w, func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) })
	for range 4 {
		r, err := p.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tell(r, err)
	}
	tx, err := app.DB.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for range 6 {
		ctx, end := context.WithTimeout(t.Context(), 300*time.Millisecond) // it would wait longer, to no other end
		r, err := p.Sync(ctx)
		end()
		if err == nil {
			t.Fatal("it is not locked")
		}
		tell(r, err)
	}
	_ = tx.Rollback()
	if len(said) != 0 {
		t.Errorf("there is one program, and run says: %s", said)
	}
}

// What is printed to be copied is what has to be typed.
func TestAMessageKeepsASpaceTwice(t *testing.T) {
	t.Parallel()
	if got := message(2, "pipeline: ", "there is no file my  notes.db: check the name", 80); !strings.Contains(got, "my  notes.db") {
		t.Errorf("at a terminal: %s", got)
	}
}
