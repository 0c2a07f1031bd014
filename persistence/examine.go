package persistence

import (
	"context"
	"fmt"
	"slices"

	"github.com/uptrace/bun"
)

// Examination is what there is to say about a database file without asking anybody.
type Examination struct {
	// Path is the file's, "" for a database in memory.
	Path string
	// Journal is the journal mode, such as "wal".
	Journal string
	// Damage is what SQLite's integrity check finds, at most ten lines; none when all is
	// well.
	Damage []string
	// Pages of PageSize bytes make the file, FreePages of them are empty.
	Pages, FreePages, PageSize int64
	// Attached: the bookkeeping tables are there and some table takes part. What
	// follows needs it.
	Attached bool
	// Tables take part. New ones would with the next Attach.
	Tables, New []string
	// Missing are triggers and indexes of ours that are not there, Altered those that
	// are not as they should be.
	Missing, Altered []string
	Dangling         []Dangling
	// Scope is the remote that the database is bound to, "" for none yet.
	Scope string
}

// Examine looks at a database; it changes nothing. The checks of integrity read the
// whole file.
func Examine(ctx context.Context, db *bun.DB) (Examination, error) {
	var e Examination
	var err error
	if e.Path, err = View(db).Path(ctx); err != nil { // first: the pool may have one connection
		return e, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return e, fmt.Errorf("get a database connection: %w", explain(err))
	}
	defer conn.Close()
	q := conn.Conn
	for _, v := range []struct {
		pragma string
		to     any
	}{{"journal_mode", &e.Journal}, {"page_count", &e.Pages}, {"freelist_count", &e.FreePages}, {"page_size", &e.PageSize}} {
		if err := q.QueryRowContext(ctx, "PRAGMA "+v.pragma).Scan(v.to); err != nil {
			return e, fmt.Errorf("read PRAGMA %s: %w", v.pragma, explain(err))
		}
	}
	err = eachRow(ctx, q, "PRAGMA integrity_check(10)", func(scan func(...any) error) error {
		var line string
		err := scan(&line)
		if line != "ok" {
			e.Damage = append(e.Damage, line)
		}
		return err
	})
	if err != nil {
		return e, fmt.Errorf("check the integrity: %w", explain(err))
	}
	var attached bool
	err = q.QueryRowContext(ctx, `SELECT count(*) = 2 FROM sqlite_master WHERE type = 'table' AND name IN ('tidemark_tables', 'tidemark_state')`).Scan(&attached)
	if err == nil && attached {
		err = q.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM tidemark_tables WHERE excluded = 0), (SELECT scope FROM tidemark_state)`).Scan(&e.Attached, &e.Scope)
	}
	if err != nil {
		return e, fmt.Errorf("read the bookkeeping: %w", explain(err))
	}
	if !e.Attached {
		return e, nil
	}
	a := &attacher{ctx: ctx, q: q}
	if err := e.compare(a); err != nil {
		return e, fmt.Errorf("compare the triggers: %w", explain(err))
	}
	if err := a.findDangling(); err != nil {
		return e, fmt.Errorf("look for dangling references: %w", explain(err))
	}
	e.Dangling = a.out.Dangling
	return e, nil
}

// compare finds what Attach would put right.
func (e *Examination) compare(a *attacher) error {
	if err := a.read(); err != nil {
		return err
	}
	if err := a.choose(); err != nil {
		return err
	}
	if err := a.chooseOptions(); err != nil {
		return err
	}
	for _, t := range a.schema.Tables {
		if _, known := a.stored[t.Name]; !known {
			e.New = append(e.New, t.Name)
			continue
		}
		e.Tables = append(e.Tables, t.Name)
		for _, o := range append(t.indexes(), t.triggers(a.watch(t))...) {
			i := slices.IndexFunc(a.objects[fold(t.Name)], func(m masterObject) bool { return m.name == o.name })
			switch {
			case i < 0:
				e.Missing = append(e.Missing, o.name)
			case a.objects[fold(t.Name)][i].sql != o.sql:
				e.Altered = append(e.Altered, o.name)
			}
		}
	}
	return nil
}
