// Package tidemark keeps a local SQLite database in step with Google Cloud
// Firestore and keeps an encrypted snapshot of it in S3.
package tidemark
