// Package age encrypts snapshots with age (age-encryption.org/v1): for the holders of
// identity files, or with a passphrase. What it writes, the age command reads too.
//
// It keeps what is in the bucket secret and whole. It does not say who wrote it: who
// knows a recipient and may write to the bucket can put a snapshot of their own there.
// So recipients are best kept among the devices, although they open nothing.
package age
