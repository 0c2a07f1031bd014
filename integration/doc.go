// Package integration tests tidemark as a black box, through the public API: fleets
// of devices on the in-memory server, and the same on the real servers.
package integration
