package file

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tidemark-sync/tidemark/messages"
)

// FillDisk lets the remote's file grow no further; a large limit undoes it.
func FillDisk(ctx context.Context, r *Remote, pages int) error {
	var limit int
	return r.writer.QueryRowContext(ctx, fmt.Sprintf(`PRAGMA max_page_count = %d`, pages)).Scan(&limit)
}

// Age makes everything that was replaced look as if that was so long ago.
func Age(ctx context.Context, r *Remote, us int64) error {
	_, err := r.writer.ExecContext(ctx, `UPDATE versions SET until = until - ? WHERE until IS NOT NULL`, us)
	return err
}

// Versions counts the versions that are kept.
func Versions(ctx context.Context, r *Remote) (n int, err error) {
	err = r.reader.QueryRowContext(ctx, `SELECT count(*) FROM versions`).Scan(&n)
	return n, err
}

// SetClock says when the last commit was.
func SetClock(ctx context.Context, r *Remote, last int64) error {
	_, err := r.writer.ExecContext(ctx, `UPDATE clock SET last = ?`, last)
	return err
}

// Check runs SQLite's integrity check.
func Check(ctx context.Context, r *Remote) error {
	var answer string
	if err := r.reader.QueryRowContext(ctx, `PRAGMA integrity_check`).Scan(&answer); err != nil {
		return err
	}
	if answer != "ok" {
		return errors.New(answer)
	}
	return nil
}

// Plan is how SQLite answers a query.
func Plan(ctx context.Context, r *Remote, q messages.Query) (string, error) {
	query, args := statement(q, 100)
	rows, err := r.reader.QueryContext(ctx, `EXPLAIN QUERY PLAN `+query, args...)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var id, parent, unused int
		var line string
		if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
			return "", err
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n"), rows.Err()
}

var (
	Classify = classify
	Encode   = encode
	Decode   = decode
	Escape   = escape
	Unescape = unescape
)
