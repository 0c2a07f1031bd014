package persistence

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// DeleteGuard stops a download that would delete more than Share (0 to 1) of a
// table's rows and more than Rows of them.
type DeleteGuard struct {
	Share float64
	Rows  int64
}

// ErrMassDelete says that a download would delete an unusual share of a table.
var ErrMassDelete = errors.New("the download would delete much of a table")

// SetDeleteGuard sets the limits; the zero DeleteGuard lets everything pass.
func (l *Local) SetDeleteGuard(g DeleteGuard) {
	l.mu.Lock()
	l.guard = g
	l.mu.Unlock()
}

func (l *Local) deleteGuard() DeleteGuard {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guard
}

// AllowDeletes lets the next download that ends delete what it wants.
func (l *Local) AllowDeletes(ctx context.Context) error {
	if err := l.write(ctx, func(tx *tx) error { return tx.exec(`UPDATE tidemark_state SET deletesAllowed = 1`) }); err != nil {
		return fmt.Errorf("allow the deletes: %w", err)
	}
	return nil
}

// guard fails when the tombstones that have arrived would delete too much. They stay
// in the inbox, so nothing has to be downloaded again.
func (s *settler) guard(g DeleteGuard) error {
	var allowed bool
	if err := s.tx.row(`SELECT deletesAllowed FROM tidemark_state`).Scan(&allowed); err != nil {
		return err
	}
	if allowed {
		return s.tx.exec(`UPDATE tidemark_state SET deletesAllowed = 0`)
	}
	if g == (DeleteGuard{}) {
		return nil
	}
	var tables []string // that would lose rows
	var much string
	for _, p := range s.plans {
		var going, all int64
		if err := s.tx.row(`SELECT count(*) FROM tidemark_inbox AS i WHERE tableName = ? AND kind = 'tombstone' AND EXISTS (SELECT 1 FROM `+p.name+` AS t WHERE t.clientId = i.documentId)`, p.t.Name).Scan(&going); err != nil {
			return err
		}
		if going > 0 {
			tables = append(tables, p.name)
		}
		if going <= g.Rows || much != "" {
			continue
		}
		if err := s.tx.row(`SELECT count(*) FROM ` + p.name).Scan(&all); err != nil {
			return err
		}
		if float64(going) > g.Share*float64(all) {
			much = fmt.Sprintf("%d of the %d rows of table %q were deleted elsewhere", going, all, p.t.Name)
		}
	}
	if much == "" {
		return nil
	}
	return fmt.Errorf("%w: %s; they are still here. If that is right, allow it once (pipeline sync --allow-deletes, or Pipeline.AllowDeletes). If not, make them edits of this device before you do: "+
		"later edits win, and bring the rows back everywhere. In each of the tables %s: UPDATE %s SET isDirty = 1 WHERE clientId IN (SELECT documentId FROM tidemark_inbox WHERE kind = 'tombstone')",
		ErrMassDelete, much, strings.Join(tables, ", "), tables[len(tables)-1])
}
