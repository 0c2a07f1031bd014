// Package tidemark keeps a local SQLite database in step with Google Cloud
// Firestore, and keeps one fresh snapshot of the file in S3, so that a new login
// restores the snapshot and downloads only what came after it.
//
// [Attach] an application's database once, make a Pipeline with [New], and call
// [Pipeline.Sync] for one cycle or [Pipeline.Run] to stay in step. [Restore] brings
// a lost database back. The application goes on reading and writing its tables with
// whatever it likes, also from other processes: triggers notice every change.
//
// A cycle is a chain of stages connected by in-process Watermill topics: check
// devices, download (a table at a time, parents before children), settle, upload,
// register, back up. SQLite remembers, the bus only moves work: after a crash at any
// moment the next cycle goes on where the last one was.
//
// What it promises: no edit is lost, no row becomes two documents, nothing deleted
// comes back by itself, foreign keys hold at every moment, and an idle cycle costs
// one billed read. What it does not do: it never listens to the server (it polls),
// and documents that somebody writes without being a device are only found by a full
// sync.
//
// # Concurrency
//
// All methods of a Pipeline are safe for concurrent use. One cycle runs at a time
// per database file, across processes: a second Sync waits for the first. Neither
// New nor Attach starts a goroutine; Sync's are gone when it returns.
//
// The package imports no SDK and no SQLite driver: the application brings the
// driver, and adapters/firestore, adapters/s3, adapters/file or adapters/memory as it
// needs them.
package tidemark
