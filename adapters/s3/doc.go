// Package s3 keeps tidemark's snapshots in a bucket of Amazon S3 or of a server
// that speaks its protocol. The server must honour If-Match and If-None-Match on
// PutObject and CompleteMultipartUpload: without them two devices can overwrite
// each other's manifest.
//
// A process that is killed in the middle of a large upload leaves its parts in
// the bucket, where they cost storage and are not listed. Give the bucket a
// lifecycle rule that aborts incomplete multipart uploads after a day.
package s3
