package persistence

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// copyPages copies the database page by page, as one consistent state, with plain SQL:
// what has not changed stays in its place, which VACUUM INTO does not promise. It
// reports false when this SQLite has no sqlite_dbpage. Free pages come out empty: what
// was deleted does not travel in them.
func copyPages(ctx context.Context, c *sql.Conn, path string) (done bool, err error) {
	var n int
	if err := c.QueryRowContext(ctx, `SELECT length(data) FROM sqlite_dbpage('main') WHERE pgno = 1`).Scan(&n); err != nil {
		return false, ctx.Err()
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	out := newWriteBehind(f, 256<<10)
	pages, err := eachPage(ctx, c, n, out)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return false, err
	}
	// No write-ahead log belongs to the copy.
	if _, err := f.WriteAt([]byte{1, 1}, 18); err != nil {
		return false, err
	}
	return true, emptyFreePages(f, int64(n), pages)
}

// eachPage writes all pages of the database in their order, and counts them.
func eachPage(ctx context.Context, c *sql.Conn, size int, out io.Writer) (pages int64, err error) {
	rows, err := c.QueryContext(ctx, `SELECT pgno, data FROM sqlite_dbpage('main') ORDER BY pgno`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var number int64
	var page sql.RawBytes
	for rows.Next() {
		if err := rows.Scan(&number, &page); err != nil {
			return pages, err
		}
		if pages++; number != pages || len(page) != size {
			return pages, fmt.Errorf("page %d is not where it belongs: check the database with PRAGMA integrity_check", pages)
		}
		if _, err := out.Write(page); err != nil {
			return pages, err
		}
	}
	return pages, rows.Err()
}

// emptyFreePages overwrites what free pages still hold. A free list that makes no
// sense is left as it is: a check of the file finds that.
func emptyFreePages(f *os.File, pageSize, pages int64) error {
	head := make([]byte, 16)
	if _, err := f.ReadAt(head, 20); err != nil {
		return err
	}
	if head[0] != 0 {
		return nil // an extension keeps something of its own in every page
	}
	trunk, zero, buf := int64(binary.BigEndian.Uint32(head[12:])), make([]byte, pageSize), make([]byte, pageSize)
	for range pages {
		if trunk < 2 || trunk > pages {
			return nil
		}
		at := (trunk - 1) * pageSize
		if _, err := f.ReadAt(buf, at); err != nil {
			return err
		}
		leaves := int64(binary.BigEndian.Uint32(buf[4:]))
		if leaves > pageSize/4-2 {
			return nil
		}
		for i := range leaves {
			leaf := int64(binary.BigEndian.Uint32(buf[8+4*i:]))
			if leaf < 2 || leaf > pages {
				return nil
			}
			if _, err := f.WriteAt(zero, (leaf-1)*pageSize); err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(zero[8+4*leaves:], at+8+4*leaves); err != nil {
			return err
		}
		trunk = int64(binary.BigEndian.Uint32(buf))
	}
	return nil
}

// readPageSize reads it from a database file, in bytes.
func readPageSize(f io.ReaderAt) (int, error) {
	head := make([]byte, 18)
	if _, err := f.ReadAt(head, 0); err != nil || string(head[:len(sqliteMagic)]) != sqliteMagic {
		return 0, ErrNotDatabase
	}
	n := int(binary.BigEndian.Uint16(head[16:]))
	if n == 1 {
		n = 1 << 16
	}
	if n < 512 || n&(n-1) != 0 {
		return 0, ErrNotDatabase
	}
	return n, nil
}
