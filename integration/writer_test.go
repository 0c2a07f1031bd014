package integration

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"
)

// writer is a program that edits a Chinook database and has never heard of sync. It
// remembers what it committed. Its rows carry a mark that never changes and that
// starts with its name.
type writer struct {
	name string
	db   *sql.DB
	rnd  *rand.Rand
	n    int
	// What it last committed, by mark.
	customers map[string]string // Company
	invoices  map[string]invoice
	playlists map[string]int // how many tracks
	changes   int            // rows that it inserted, updated or deleted
}

type invoice struct {
	customer, city  string
	lines, quantity int
}

func newWriter(name string, db *sql.DB, seed uint64) *writer {
	return &writer{
		name: name, db: db, rnd: rand.New(rand.NewPCG(seed, uint64(name[0]))),
		customers: map[string]string{}, invoices: map[string]invoice{}, playlists: map[string]int{},
	}
}

// run edits until ctx ends: a transaction every pace for a while, then nothing for
// a while, as people and programs do.
func (w *writer) run(ctx context.Context, pace time.Duration) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	rest := w.rnd.IntN(40)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if rest--; rest < 0 {
			rest = w.rnd.IntN(40)
		}
		if rest < 20 {
			continue
		}
		if err := w.edit(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("writer %s: %w", w.name, err)
		}
	}
}

func pick[V any](rnd *rand.Rand, m map[string]V) (string, bool) {
	if len(m) == 0 {
		return "", false
	}
	marks := slices.Sorted(maps.Keys(m)) // the seed decides, not the map
	return marks[rnd.IntN(len(marks))], true
}

// edit commits one transaction, and only then believes in it.
func (w *writer) edit(ctx context.Context) error {
	tx, err := w.db.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after the commit there is nothing to roll back
	changes := 0
	exec := func(query string, args ...any) (rows int) {
		if err != nil {
			return 0
		}
		var res sql.Result
		if res, err = tx.ExecContext(context.WithoutCancel(ctx), query, args...); err != nil {
			return 0
		}
		n, _ := res.RowsAffected()
		changes += int(n)
		return int(n)
	}
	believe := w.draw(exec)
	if err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	believe()
	w.changes += changes
	return nil
}

// draw does something and returns what to believe once it is committed.
func (w *writer) draw(exec func(query string, args ...any) int) func() {
	w.n++
	mark, value := fmt.Sprintf("%s-%06d", w.name, w.n), fmt.Sprintf("value %d", w.n)
	customer, any := pick(w.rnd, w.customers)
	inv, anyInvoice := pick(w.rnd, w.invoices)
	list, anyList := pick(w.rnd, w.playlists)
	switch x := w.rnd.IntN(100); {
	case x < 20 || !any:
		exec(`INSERT INTO Customer (FirstName, LastName, Email, Company, SupportRepId) SELECT 'A', 'Writer', ?, ?, min(EmployeeId) FROM Employee`, mark, value)
		return func() { w.customers[mark] = value }
	case x < 40 || !anyInvoice:
		in := invoice{customer: customer, city: value}
		exec(`INSERT INTO Invoice (CustomerId, InvoiceDate, BillingAddress, BillingCity, Total)
			SELECT CustomerId, '2024-01-01 00:00:00', ?, ?, 1.99 FROM Customer WHERE Email = ?`, mark, value, customer)
		for range 1 + w.rnd.IntN(3) { // none on a device that has no track yet
			q := 1 + w.rnd.IntN(9)
			n := exec(`INSERT INTO InvoiceLine (InvoiceId, TrackId, UnitPrice, Quantity)
				SELECT InvoiceId, TrackId, 0.99, ? FROM Invoice, (SELECT TrackId FROM Track ORDER BY TrackId LIMIT 1 OFFSET ?) WHERE BillingAddress = ?`, q, w.rnd.IntN(500), mark)
			in.lines, in.quantity = in.lines+n, in.quantity+n*q
		}
		return func() { w.invoices[mark] = in }
	case x < 45 || !anyList:
		exec(`INSERT INTO Playlist (Name) VALUES (?)`, mark)
		n := exec(`INSERT INTO PlaylistTrack (PlaylistId, TrackId)
			SELECT PlaylistId, TrackId FROM Playlist, (SELECT TrackId FROM Track ORDER BY TrackId LIMIT ?) WHERE Playlist.Name = ?`, w.rnd.IntN(5), mark)
		return func() { w.playlists[mark] = n }
	case x < 60:
		exec(`UPDATE Customer SET Company = ? WHERE Email = ?`, value, customer)
		return func() { w.customers[customer] = value }
	case x < 65: // the idiom that fires no delete trigger
		exec(`INSERT OR REPLACE INTO Customer (CustomerId, FirstName, LastName, Email, Company, SupportRepId)
			SELECT CustomerId, FirstName, 'Replaced', Email, ?, SupportRepId FROM Customer WHERE Email = ?`, value, customer)
		return func() { w.customers[customer] = value }
	case x < 77:
		in := w.invoices[inv]
		exec(`UPDATE Invoice SET BillingCity = ? WHERE BillingAddress = ?`, value, inv)
		exec(`UPDATE InvoiceLine SET Quantity = Quantity + 1 WHERE InvoiceId = (SELECT InvoiceId FROM Invoice WHERE BillingAddress = ?)`, inv)
		in.city, in.quantity = value, in.quantity+in.lines
		return func() { w.invoices[inv] = in }
	case x < 85:
		w.remove(exec, inv)
		return func() { delete(w.invoices, inv) }
	case x < 90: // with all its invoices
		var gone []string
		for m, in := range w.invoices {
			if in.customer == customer {
				w.remove(exec, m)
				gone = append(gone, m)
			}
		}
		exec(`DELETE FROM Customer WHERE Email = ?`, customer)
		return func() {
			delete(w.customers, customer)
			for _, m := range gone {
				delete(w.invoices, m)
			}
		}
	case x < 95:
		exec(`DELETE FROM PlaylistTrack WHERE PlaylistId = (SELECT PlaylistId FROM Playlist WHERE Name = ?)`, list)
		exec(`DELETE FROM Playlist WHERE Name = ?`, list)
		return func() { delete(w.playlists, list) }
	default: // what the other device edits too
		exec(`UPDATE Employee SET Title = ? WHERE EmployeeId = ?`, mark, 1+w.rnd.IntN(3))
		return func() {}
	}
}

func (w *writer) remove(exec func(query string, args ...any) int, inv string) {
	exec(`DELETE FROM InvoiceLine WHERE InvoiceId = (SELECT InvoiceId FROM Invoice WHERE BillingAddress = ?)`, inv)
	exec(`DELETE FROM Invoice WHERE BillingAddress = ?`, inv)
}

// check fails unless a device has exactly what was committed: every row once, with
// its last value.
func (w *writer) check(t *testing.T, d *device) {
	t.Helper()
	want := map[string]string{}
	for m, v := range w.customers {
		want["customer "+m] = v
	}
	for m, in := range w.invoices {
		want["invoice "+m] = fmt.Sprintf("%s %s %d %d", in.customer, in.city, in.lines, in.quantity)
	}
	for m, n := range w.playlists {
		want["playlist "+m] = strconv.Itoa(n)
	}
	like := w.name + "-%"
	rows, err := d.db.DB.QueryContext(t.Context(), `
		SELECT 'customer ' || Email, Company FROM Customer WHERE Email LIKE ?
		UNION ALL SELECT 'invoice ' || BillingAddress, (SELECT Email FROM Customer c WHERE c.CustomerId = i.CustomerId) || ' ' || BillingCity || ' ' ||
			(SELECT count(*) || ' ' || coalesce(sum(Quantity), 0) FROM InvoiceLine l WHERE l.InvoiceId = i.InvoiceId) FROM Invoice i WHERE BillingAddress LIKE ?
		UNION ALL SELECT 'playlist ' || Name, (SELECT count(*) FROM PlaylistTrack x WHERE x.PlaylistId = p.PlaylistId) FROM Playlist p WHERE Name LIKE ?`, like, like, like)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var mark, value string
		if err := rows.Scan(&mark, &value); err != nil {
			t.Fatal(err)
		}
		switch last, ok := want[mark]; {
		case !ok:
			t.Errorf("%s has %s (%s) twice, or after its delete", d.path, mark, value)
		case last != value:
			t.Errorf("%s has %s with %q, its last value is %q", d.path, mark, value, last)
		}
		delete(want, mark)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for mark, value := range want {
		t.Errorf("%s lost %s (%s)", d.path, mark, value)
	}
}
