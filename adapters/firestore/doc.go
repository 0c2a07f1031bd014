// Package firestore keeps tidemark's documents and Devices records in Google
// Cloud Firestore.
//
// # What is stored where
//
// Below Config.Scope there is one collection per table and the collection
// Devices. A document holds the row's data columns under their own names, and
//
//	createdOn, updatedOn  integer, Unix milliseconds
//	updatedBy             string, the installation id of the uploader
//	uploadedOn            timestamp, set by the server
//	deleted               boolean
//	stamp                 string, installation id and sequence number
//	tombstone             string, the stamp again; only while deleted is true
//	survivor              string; only on the tombstone of a merged row
//
// A column with one of these names, or one that Firestore forbids (empty, or
// between two double underscores), is stored with its first byte
// percent-escaped, and so is a column that starts with a percent sign: the column
// stamp is the field %73tamp. In the name of a collection every slash and every
// percent sign is escaped, and the first byte of a table called Devices, "." or
// "..".
//
// Every query is answered by Firestore's automatic single-field indexes (on
// stamp, uploadedOn and the document id): nobody has to deploy one.
//
// # Who may write
//
// A user of Firebase Auth (Config.User), in a scope of their own, and there only what
// a device writes: Rules has the security rules that see to it. An operator (a service
// account, the application default credentials) may write anything; no rule stops them.
//
// A document without our fields is taken as it is: createdOn and updatedOn are
// then its own create_time and update_time, and its stamp is zero. A field of a
// type that no SQLite column can hold is messages.Unsupported.
package firestore
