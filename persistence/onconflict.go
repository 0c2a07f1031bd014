package persistence

import (
	"context"
	"strings"
)

// A constraint that was declared with ON CONFLICT REPLACE, IGNORE or ROLLBACK would
// silently delete another row for a document, drop the document, or undo its page. OR
// ABORT overrides that, so that we decide; but it also overrides what the
// application's triggers say, and so is only for tables that need it.

// declareConflict lists the tables (folded) whose declaration has such a constraint.
func declareConflict(ctx context.Context, q queryer) (map[string]bool, error) {
	out := map[string]bool{}
	err := eachRow(ctx, q, `SELECT name, sql FROM sqlite_master WHERE type = 'table' AND sql LIKE '%conflict%'`, func(scan func(...any) error) error {
		var name, sql string
		err := scan(&name, &sql)
		words := strings.Join(strings.Fields(strings.ToUpper(sql)), " ")
		for _, c := range []string{"REPLACE", "IGNORE", "ROLLBACK", "FAIL"} {
			out[fold(name)] = out[fold(name)] || strings.Contains(words, "ON CONFLICT "+c)
		}
		return err
	})
	return out, err
}
