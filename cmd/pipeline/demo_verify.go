package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// demoTables says how the rows of each table are compared: by document id, foreign
// keys by the parent's, since every device numbers its rows itself.
var demoTables = []struct{ name, query string }{
	{"notebooks", `SELECT r.serverId, quote(name) || quote(colour) FROM notebooks r`},
	{"notes", `SELECT r.serverId, quote(b.serverId) || quote(r.title) || quote(r.body) || quote(r.pinned) || quote(r.rating)
		FROM notes r LEFT JOIN notebooks b ON b.id = r.notebook`},
	{"comments", `SELECT r.serverId, quote(n.serverId) || quote(c.serverId) || quote(r.text)
		FROM comments r LEFT JOIN notes n ON n.id = r.note LEFT JOIN comments c ON c.id = r.answers`},
	{"tags", `SELECT r.serverId, quote(name) FROM tags r`},
	{"note_tags", `SELECT r.serverId, quote(n.serverId) || quote(t.serverId) FROM note_tags r LEFT JOIN notes n ON n.id = r.note LEFT JOIN tags t ON t.id = r.tag`},
}

// verify believes nobody: it compares every value on every device.
func (s *story) verify(ctx context.Context) error {
	s.title("Do all three hold the same?")
	var names, counts []string
	for _, t := range demoTables {
		var want []string
		for i, d := range s.devices {
			rows, err := d.documents(ctx, t.name, t.query)
			if err != nil {
				return err
			}
			if i == 0 {
				want = rows
			} else if !slices.Equal(rows, want) {
				return fmt.Errorf("the %s of %s and %s are not the same", t.name, s.devices[0].name, d.name)
			}
		}
		counts = append(counts, fmt.Sprintf("%d %s", len(want), t.name))
	}
	for _, d := range s.devices {
		names = append(names, d.name)
		st, err := d.pipe.Status(ctx)
		if err != nil {
			return err
		}
		if !st.InStep {
			return fmt.Errorf("%s is not in step: %d dirty, %d waiting, %d set aside", d.name, st.Dirty, st.Waiting, st.Dead)
		}
		if err := d.sound(ctx); err != nil {
			return err
		}
	}
	s.line("yes", "%s: every value, by document id", strings.Join(names, ", "))
	s.line("", "%s;", strings.Join(counts, ", "))
	s.line("", "every file is sound, and no foreign key dangles")
	s.line("cost", "%s, %s, %s in all, %s", count(s.reads, "read", "reads"), count(s.writes, "write", "writes"), count(s.deletes, "delete", "deletes"), duration(time.Since(s.started)))
	return nil
}

// documents are the rows of a table in the order of their document ids.
func (d *device) documents(ctx context.Context, table, query string) ([]string, error) {
	rows, err := d.db.DB.QueryContext(ctx, query+" ORDER BY r.serverId")
	if err != nil {
		return nil, fmt.Errorf("%s: read %s: %w", d.name, table, err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id *string
		var values string
		if err := rows.Scan(&id, &values); err != nil {
			return nil, fmt.Errorf("%s: read %s: %w", d.name, table, err)
		}
		if id == nil {
			return nil, fmt.Errorf("%s: a row of %s has no document", d.name, table)
		}
		out = append(out, *id+" "+values)
	}
	return out, rows.Err()
}

// sound asks SQLite itself.
func (d *device) sound(ctx context.Context) error {
	verdict, err := d.text(ctx, `PRAGMA integrity_check`)
	if err == nil && verdict != "ok" {
		err = errors.New(d.name + ": integrity check: " + verdict)
	}
	if err != nil {
		return err
	}
	dangling, err := d.text(ctx, `SELECT coalesce(group_concat("table"), '') FROM pragma_foreign_key_check`)
	if err == nil && dangling != "" {
		err = errors.New(d.name + ": dangling foreign keys in " + dangling)
	}
	return err
}
