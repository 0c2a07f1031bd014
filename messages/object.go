package messages

// Object is one object in a snapshot store.
type Object struct {
	Key  string
	ETag string
	// Size in bytes.
	Size int64
	// ModifiedOn is Unix milliseconds by the store's clock; for people, never for
	// deciding which snapshot is newer.
	ModifiedOn int64
	// Requests is how many billed requests the call took: an upload in parts
	// takes several.
	Requests int64
}

// Condition guards a Put. At most one of the two is set; the zero Condition
// writes unconditionally.
type Condition struct {
	// IfMatch demands that the object still has this ETag.
	IfMatch string
	// IfAbsent demands that there is no object under the key.
	IfAbsent bool
}
