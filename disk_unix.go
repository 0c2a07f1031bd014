//go:build linux || darwin

package tidemark

import "syscall"

// freeSpace is how many bytes a user may still write to the disk of a folder; false
// where the system does not say.
func freeSpace(dir string) (int64, bool) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true //nolint:unconvert // other types on other systems
}
