// Package memory is a remote and an object store in memory, with Firestore's and
// S3's semantics: atomic commits on preconditions, update times that strictly
// increase, reads at a read time up to an hour old, conditional writes, ETags. It
// is for tests and simulations, so it also fails on demand: a Fault or a
// StoreFault plans what goes wrong with one call.
//
// One Server is talked to through any number of Remotes, one Bucket through any
// number of Stores; each handle has its own faults and its own bill. Everything is
// safe for concurrent use. The clock is time.Now, so it works in synctest bubbles.
package memory
