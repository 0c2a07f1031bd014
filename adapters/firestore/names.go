package firestore

import (
	"fmt"
	"strconv"
	"strings"
)

// devicesCollection holds the Devices records.
const devicesCollection = "Devices"

// The fields of ours in every document.
const (
	createdOn  = "createdOn"
	updatedOn  = "updatedOn"
	updatedBy  = "updatedBy"
	uploadedOn = "uploadedOn"
	deleted    = "deleted"
	stamp      = "stamp"
	tombstone  = "tombstone"
	survivor   = "survivor"
)

// Making a replacer takes longer than all else about a document.
var (
	idEscaper   = strings.NewReplacer("%", "%25", "/", "%2F")
	pathEscaper = strings.NewReplacer(`\`, `\\`, "`", "\\`")
)

func isMeta(name string) bool {
	switch name {
	case createdOn, updatedOn, updatedBy, uploadedOn, deleted, stamp, tombstone, survivor:
		return true
	}
	return false
}

// fieldName is the stored name of a column, or of a key of a map: the name
// itself, with its first byte escaped if it is one of ours, forbidden, or starts
// with the escape sign.
func fieldName(column string) string {
	switch {
	case column == "":
		return "%"
	case column[0] == '%' || isMeta(column) || reserved(column):
		return escapeByte(column[0]) + column[1:]
	}
	return column
}

// columnName reverses fieldName. ok is false for a name that fieldName never
// writes: one of ours, or somebody else's that starts with a percent sign.
func columnName(field string) (column string, ok bool) {
	switch {
	case field == "%":
		return "", true
	case field == "" || isMeta(field) || reserved(field):
		return "", false
	case field[0] != '%':
		return field, true
	case len(field) < 3:
		return "", false
	}
	b, err := strconv.ParseUint(field[1:3], 16, 8)
	if err != nil {
		return "", false
	}
	column = string([]byte{byte(b)}) + field[3:]
	return column, fieldName(column) == field
}

// collectionID is the collection of a table. Different tables have different
// collections, none of which is Devices.
func collectionID(table string) string {
	escaped := idEscaper.Replace(table)
	switch {
	case escaped == "":
		return "%"
	case escaped == "." || escaped == ".." || escaped == devicesCollection || reserved(escaped):
		return escapeByte(escaped[0]) + escaped[1:]
	}
	return escaped
}

func escapeByte(b byte) string { return fmt.Sprintf("%%%02X", b) }

// fieldPath quotes a field's name for update masks and queries.
func fieldPath(name string) string {
	return "`" + pathEscaper.Replace(name) + "`"
}
