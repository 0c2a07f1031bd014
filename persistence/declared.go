package persistence

import (
	"context"
	"strings"
)

// declared is what a table's declaration says and no pragma tells.
type declared struct {
	// or is " OR ABORT" where a constraint has ON CONFLICT REPLACE, IGNORE or
	// ROLLBACK: it would silently delete another row for a document, drop the
	// document, or undo its page. It overrides what the application's triggers say as
	// well, and so is only for tables that need it.
	or string
	// auto: AUTOINCREMENT, which never goes below the greatest number there was.
	auto bool
}

// maxSurrogate bounds the numbers that are taken over from a document where
// AUTOINCREMENT goes on from them: after the greatest there is no other, and nobody
// could insert a row any more.
const maxSurrogate = 1 << 62

// declarations reads them by folded table name.
func declarations(ctx context.Context, q queryer) (map[string]declared, error) {
	out := map[string]declared{}
	err := eachRow(ctx, q, `SELECT name, sql FROM sqlite_master WHERE type = 'table' AND (sql LIKE '%conflict%' OR sql LIKE '%autoincrement%')`, func(scan func(...any) error) error {
		var name, sql string
		err := scan(&name, &sql)
		words := strings.Join(strings.Fields(strings.ToUpper(sql)), " ")
		d := declared{auto: strings.Contains(words, "AUTOINCREMENT")}
		for _, c := range []string{"REPLACE", "IGNORE", "ROLLBACK", "FAIL"} {
			if strings.Contains(words, "ON CONFLICT "+c) {
				d.or = " OR ABORT"
			}
		}
		out[fold(name)] = d
		return err
	})
	return out, err
}
