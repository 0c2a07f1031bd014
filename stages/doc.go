// Package stages holds the steps of one sync cycle: check devices, download,
// upload, register, back up. A stage takes one message and returns the next ones;
// it knows ports, not vendors: no SQL, no SDK, no bus, no logger. The rules of the
// protocol live here and can be read here.
package stages
