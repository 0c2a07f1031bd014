package file

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/tidemark-sync/tidemark/messages"
)

const (
	// History is how old a read time may be.
	History = time.Hour
	// kept is how long versions stay: longer, so that nothing goes while it is read.
	kept = History + 5*time.Minute
	// pruned bounds what one commit clears away; it adds fewer.
	pruned = 1000
	// A read takes as much from the database at once, and holds nothing open while
	// yield runs.
	chunkDocuments = 512
	chunkBytes     = 1 << 20
)

const columns = `id, updateTime, device, seq, createdOn, updatedOn, updatedBy, uploadedOn, deleted, survivor, fields`

// Devices implements the port. The answer and the read time are of one
// transaction that moves the clock on, so every later commit is after it.
func (r *Remote) Devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	list, err := r.devices(ctx, since)
	if err != nil {
		return messages.DeviceList{}, fmt.Errorf("read the devices: %w", classify(ctx, err))
	}
	return list, nil
}

func (r *Remote) devices(ctx context.Context, since int64) (messages.DeviceList, error) {
	var list messages.DeviceList
	if err := r.check(ctx); err != nil {
		return list, err
	}
	tx, err := begin(ctx, r.clock)
	if err != nil {
		return list, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing is lost
	if list.ReadTime, err = tick(ctx, tx, 0); err != nil {
		return list, err
	}
	rows, err := tx.QueryContext(ctx, `SELECT id, updateTime, uploadedOn, record FROM devices WHERE uploadedOn > ? ORDER BY uploadedOn, id`, since)
	if err != nil {
		return list, err
	}
	defer rows.Close()
	for rows.Next() {
		d, err := scanDevice(rows.Scan)
		if err != nil {
			return list, err
		}
		list.Devices = append(list.Devices, d)
	}
	if err := rows.Err(); err != nil {
		return list, err
	}
	list.Reads = max(1, int64(len(list.Devices)))
	return list, tx.Commit()
}

// tick moves the clock on to now, by at least step µs, and returns it.
func tick(ctx context.Context, tx *sql.Tx, step int64) (int64, error) {
	var now int64
	err := tx.QueryRowContext(ctx, `UPDATE clock SET last = max(last + ?, ?) RETURNING last`, step, time.Now().UnixMicro()).Scan(&now)
	return now, err
}

func scanDevice(scan func(...any) error) (messages.Device, error) {
	var (
		id                     string
		updateTime, uploadedOn int64
		record                 []byte
		d                      messages.Device
	)
	if err := scan(&id, &updateTime, &uploadedOn, &record); err != nil {
		return d, err
	}
	if err := json.Unmarshal(record, &d); err != nil {
		return d, messages.Saying(messages.ErrNotFound, "the record of %q is damaged: %w", id, err)
	}
	d.ID, d.UpdateTime, d.UploadedOn = id, updateTime, uploadedOn
	return d, nil
}

// Device implements the port.
func (r *Remote) Device(ctx context.Context, id string) (messages.Device, error) {
	err := r.check(ctx)
	if err == nil {
		var d messages.Device
		d, err = scanDevice(r.reader.QueryRowContext(ctx, `SELECT id, updateTime, uploadedOn, record FROM devices WHERE id = ?`, id).Scan)
		if errors.Is(err, sql.ErrNoRows) {
			return messages.Device{ID: id}, nil
		}
		if err == nil {
			return d, nil
		}
	}
	return messages.Device{}, fmt.Errorf("read the record of %q: %w", id, classify(ctx, err))
}

// view begins a transaction that may read at a read time; 0 is whatever the
// transaction sees.
func (r *Remote) view(ctx context.Context, readTime int64) (*sql.Tx, error) {
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	for {
		tx, err := r.reader.BeginTx(ctx, nil)
		if err != nil || readTime == 0 {
			return tx, err
		}
		var last int64
		err = tx.QueryRowContext(ctx, `SELECT last FROM clock`).Scan(&last)
		now := max(last, time.Now().UnixMicro())
		switch {
		case err != nil:
		case readTime < now-History.Microseconds():
			err = fmt.Errorf("the read time %d is %v old, the remote keeps %v: %w",
				readTime, time.Duration(now-readTime)*time.Microsecond, History, messages.ErrReadTimeTooOld)
		case readTime > now:
			err = fmt.Errorf("the read time %d is ahead of the remote's clock, which was set back: %w", readTime, messages.ErrReadTimeTooOld)
		case readTime > last:
			// A power cut took the clock's last move back, and no commit since.
			if err = errors.Join(tx.Rollback(), r.catchUp(ctx)); err != nil {
				return nil, err
			}
			continue
		default:
			return tx, nil
		}
		return nil, errors.Join(err, tx.Rollback())
	}
}

func (r *Remote) catchUp(ctx context.Context) error {
	tx, err := begin(ctx, r.clock)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // nothing is lost
	if _, err := tick(ctx, tx, 0); err != nil {
		return err
	}
	return tx.Commit()
}

// Read implements the port. A read time of 0 is now.
func (r *Remote) Read(ctx context.Context, q messages.Query, yield func(messages.Document) error) (int64, error) {
	var reads int64
	fail := func(err error) (int64, error) {
		return reads, fmt.Errorf("read %q: %w", q.Table, classify(ctx, err))
	}
	if q.ReadTime == 0 {
		list, err := r.devices(ctx, math.MaxInt64)
		if err != nil {
			return fail(err)
		}
		q.ReadTime = list.ReadTime
	}
	for q.Limit == 0 || reads < int64(q.Limit) {
		n := chunkDocuments
		if q.Limit > 0 {
			n = min(n, q.Limit-int(reads))
		}
		docs, more, err := r.chunk(ctx, q, n)
		if err != nil {
			return fail(err)
		}
		for i, d := range docs {
			if err := ctx.Err(); err != nil {
				return fail(err)
			}
			reads++
			q.After = messages.Position{Stamp: d.Stamp, ID: d.ID}
			docs[i] = messages.Document{} // yield may keep it; we need not
			if err := yield(d); err != nil {
				return reads, err
			}
		}
		if !more {
			break
		}
	}
	return max(1, reads), nil
}

// chunk returns the next documents of a query, up to n, and whether there may be
// more.
func (r *Remote) chunk(ctx context.Context, q messages.Query, n int) (docs []messages.Document, more bool, err error) {
	tx, err := r.view(ctx, q.ReadTime)
	if err != nil {
		return nil, false, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	query, args := statement(q, n)
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, false, err
	}
	defer rows.Close()
	size := 0
	for rows.Next() {
		d, err := scanDocument(rows.Scan, q.Table)
		if err != nil {
			return nil, false, err
		}
		docs = append(docs, d)
		if size += d.Size(); size > chunkBytes {
			return docs, true, nil
		}
	}
	return docs, len(docs) == n, rows.Err()
}

// statement is the query as SQL. Both orders are an index's, so a page costs what
// it holds.
func statement(q messages.Query, n int) (string, []any) {
	const visible = ` AND updateTime <= ? AND (until IS NULL OR until > ?)`
	switch {
	case q.Tombstones:
		return `SELECT ` + columns + ` FROM versions INDEXED BY versions_log WHERE tableName = ? AND device = ? AND (seq, id) > (?, ?) AND (seq > ? OR ? <> '') AND seq <= ? AND deleted = 1` +
				visible + ` ORDER BY seq, id LIMIT ?`,
			[]any{q.Table, q.Device, q.After.Stamp.Seq, q.After.ID, q.After.Stamp.Seq, q.After.ID, q.Till, q.ReadTime, q.ReadTime, n}
	case q.Device == "":
		return `SELECT ` + columns + ` FROM versions WHERE tableName = ? AND id > ?` + visible + ` ORDER BY id LIMIT ?`,
			[]any{q.Table, q.After.ID, q.ReadTime, q.ReadTime, n}
	case q.After.ID == "":
		return `SELECT ` + columns + ` FROM versions INDEXED BY versions_log WHERE tableName = ? AND device = ? AND seq > ?` + visible + ` ORDER BY seq, id LIMIT ?`,
			[]any{q.Table, q.Device, q.After.Stamp.Seq, q.ReadTime, q.ReadTime, n}
	default:
		return `SELECT ` + columns + ` FROM versions INDEXED BY versions_log WHERE tableName = ? AND device = ? AND (seq, id) > (?, ?)` + visible + ` ORDER BY seq, id LIMIT ?`,
			[]any{q.Table, q.Device, q.After.Stamp.Seq, q.After.ID, q.ReadTime, q.ReadTime, n}
	}
}

func scanDocument(scan func(...any) error, table string) (messages.Document, error) {
	d := messages.Document{Table: table}
	var fields sql.RawBytes
	err := scan(&d.ID, &d.UpdateTime, &d.Stamp.Device, &d.Stamp.Seq, &d.CreatedOn, &d.UpdatedOn, &d.UpdatedBy, &d.UploadedOn, &d.Deleted, &d.Survivor, &fields)
	if err != nil {
		return d, err
	}
	if d.Fields, err = decode(fields); err != nil {
		return d, messages.Saying(messages.ErrNotFound, "%w: document %q of %q, put back a copy of the file", err, d.ID, table)
	}
	return d, nil
}

// Documents implements the port.
func (r *Remote) Documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	page, err := r.documents(ctx, table, ids, readTime)
	if err != nil {
		return messages.Page{}, fmt.Errorf("look up %d documents of %q: %w", len(ids), table, classify(ctx, err))
	}
	return page, nil
}

func (r *Remote) documents(ctx context.Context, table string, ids []string, readTime int64) (messages.Page, error) {
	page := messages.Page{Reads: int64(len(ids))}
	tx, err := r.view(ctx, readTime)
	if err != nil {
		return page, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	if readTime == 0 {
		readTime = math.MaxInt64
	}
	stmt, err := tx.PrepareContext(ctx, `SELECT `+columns+` FROM versions WHERE tableName = ? AND id = ? AND updateTime <= ? AND (until IS NULL OR until > ?)`)
	if err != nil {
		return page, err
	}
	defer stmt.Close()
	for _, id := range ids {
		found, err := lookUp(ctx, stmt, table, id, readTime)
		if err != nil {
			return page, err
		}
		page.Documents = append(page.Documents, found...)
	}
	return page, nil
}

func lookUp(ctx context.Context, stmt *sql.Stmt, table, id string, readTime int64) ([]messages.Document, error) {
	rows, err := stmt.QueryContext(ctx, table, id, readTime, readTime)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var docs []messages.Document
	for rows.Next() {
		d, err := scanDocument(rows.Scan, table)
		if err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	return docs, rows.Err()
}

// Commit implements the port. A document that is named twice is rejected.
func (r *Remote) Commit(ctx context.Context, c messages.Commit) (messages.Committed, error) {
	done, err := r.commit(ctx, &c)
	if err != nil {
		return messages.Committed{}, fmt.Errorf("commit: %w", classify(ctx, err))
	}
	return done, nil
}

func (r *Remote) commit(ctx context.Context, c *messages.Commit) (messages.Committed, error) {
	var done messages.Committed
	if err := check(c); err != nil {
		return done, err
	}
	if err := r.check(ctx); err != nil {
		return done, err
	}
	tx, err := begin(ctx, r.writer)
	if err != nil {
		return done, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing is lost
	if done.UpdateTime, err = tick(ctx, tx, 1); err != nil {
		return done, err
	}
	if err := writeDevice(ctx, tx, c, done.UpdateTime); err != nil {
		return done, err
	}
	if c.Remove {
		done.Deletes = 1
	} else {
		done.Writes = 1
	}
	if len(c.Writes) > 0 {
		w, err := newWriter(ctx, tx, done.UpdateTime)
		if err != nil {
			return done, err
		}
		defer w.close()
		for _, one := range inOrder(c.Writes) {
			if err := w.write(ctx, one); err != nil {
				return done, err
			}
			if one.Purge {
				done.Deletes++
			} else {
				done.Writes++
			}
		}
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM versions WHERE (tableName, id, updateTime) IN (
		SELECT tableName, id, updateTime FROM versions INDEXED BY versions_old WHERE until < ? LIMIT ?)`,
		done.UpdateTime-kept.Microseconds(), pruned); err != nil {
		return done, err
	}
	return done, tx.Commit()
}

func writeDevice(ctx context.Context, tx *sql.Tx, c *messages.Commit, now int64) error {
	var version, uploadedOn int64
	err := tx.QueryRowContext(ctx, `SELECT updateTime, uploadedOn FROM devices WHERE id = ?`, c.Device.ID).Scan(&version, &uploadedOn)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if version != c.Expect {
		return fmt.Errorf("the record of %q has version %d, expected %d: %w", c.Device.ID, version, c.Expect, messages.ErrConflict)
	}
	if c.Remove {
		_, err := tx.ExecContext(ctx, `DELETE FROM devices WHERE id = ?`, c.Device.ID)
		return err
	}
	if c.Announce {
		// Of the remote's own clock, which never goes back: nobody who asked for
		// later ones has missed it.
		uploadedOn = now / 1000
	}
	record, err := json.Marshal(c.Device)
	if err != nil {
		return fmt.Errorf("the record of %q: %w: %w", c.Device.ID, err, messages.ErrRejected)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO devices (id, updateTime, uploadedOn, record) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET updateTime = excluded.updateTime, uploadedOn = excluded.uploadedOn, record = excluded.record`,
		c.Device.ID, now, uploadedOn, string(record))
	return err
}

// writer writes the documents of one commit.
type writer struct {
	now                  int64
	current, end, insert *sql.Stmt
}

// inOrder returns the writes in the order of the key: ids are random, and neighbours
// share pages.
func inOrder(writes []messages.Write) []*messages.Write {
	sorted := make([]*messages.Write, len(writes))
	for i := range writes {
		sorted[i] = &writes[i]
	}
	slices.SortFunc(sorted, func(a, b *messages.Write) int {
		return cmp.Or(cmp.Compare(a.Document.Table, b.Document.Table), cmp.Compare(a.Document.ID, b.Document.ID))
	})
	return sorted
}

func newWriter(ctx context.Context, tx *sql.Tx, now int64) (w *writer, err error) {
	w = &writer{now: now}
	prepare := func(query string) *sql.Stmt {
		stmt, perr := tx.PrepareContext(ctx, query)
		err = errors.Join(err, perr)
		return stmt
	}
	w.current = prepare(`SELECT updateTime, until, fields FROM versions WHERE tableName = ? AND id = ? ORDER BY updateTime DESC LIMIT 1`)
	w.end = prepare(`UPDATE versions SET until = ? WHERE tableName = ? AND id = ? AND updateTime = ?`)
	w.insert = prepare(`INSERT INTO versions (tableName, id, updateTime, device, seq, createdOn, updatedOn, updatedBy, uploadedOn, deleted, survivor, fields)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`)
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *writer) close() {
	for _, s := range []*sql.Stmt{w.current, w.end, w.insert} {
		if s != nil {
			_ = s.Close() // the transaction's end closes it anyway
		}
	}
}

func (w *writer) write(ctx context.Context, one *messages.Write) error {
	d := one.Document
	var (
		version int64
		until   sql.NullInt64
		stored  []byte
	)
	err := w.current.QueryRowContext(ctx, d.Table, d.ID).Scan(&version, &until, &stored)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if until.Valid {
		version = 0 // it was purged
	}
	if version != one.Expect {
		return fmt.Errorf("document %q of %q has version %d, expected %d: %w", d.ID, d.Table, version, one.Expect, messages.ErrConflict)
	}
	if version != 0 {
		if _, err := w.end.ExecContext(ctx, w.now, d.Table, d.ID, version); err != nil {
			return err
		}
	}
	if one.Purge {
		return nil
	}
	if version != 0 {
		fields, err := decode(stored)
		if err != nil {
			return messages.Saying(messages.ErrNotFound, "%w: document %q of %q, put back a copy of the file", err, d.ID, d.Table)
		}
		maps.Copy(fields, d.Fields)
		d.Fields = fields
		if err := checkSize(&d); err != nil {
			return err
		}
	}
	_, err = w.insert.ExecContext(ctx, d.Table, d.ID, w.now, d.Stamp.Device, d.Stamp.Seq, d.CreatedOn, d.UpdatedOn, d.UpdatedBy, w.now/1000, d.Deleted, d.Survivor, encode(d.Fields))
	return err
}
