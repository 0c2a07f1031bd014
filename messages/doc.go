// Package messages is the vocabulary of tidemark: what travels on the topics of
// one sync cycle (SyncRequested … BackupReady), and what the local database and
// the server exchange (Document, Device, Commit). One noun a file, the standard
// library only.
//
// Units: createdOn, updatedOn and uploadedOn are Unix milliseconds; update times
// and read times are Unix microseconds, as Firestore keeps them.
package messages
