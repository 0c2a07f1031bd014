// Package file is a remote and an object store in a folder, so that several
// processes on one machine keep in step without any cloud.
//
// The remote is one SQLite file: commits are atomic and durable, update times
// strictly increase over all processes, and every version that was replaced is
// kept for an hour, so reads at a read time work as they do on Firestore. The
// store is one file an object, replaced as a whole. Either survives a kill at any
// moment; a remote and a store may share a folder.
//
// The folder must be on a local disk: the locks of network file systems, and of
// folders that another program synchronizes, cannot be relied on. Everything in it
// is readable by its owner only. Handles are safe for concurrent use; Close them.
//
// The remote's clock is this machine's, and never goes back: after the clock was
// set back, update times creep on from the latest one until it has caught up.
package file
