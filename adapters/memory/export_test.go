package memory

// Kept counts the versions and log entries that a server holds.
func Kept(s *Server) int {
	n := 0
	for _, t := range s.tables {
		for _, d := range t.docs {
			n += len(d.versions)
		}
		for _, l := range t.logs {
			n += len(l.entries)
		}
	}
	return n
}
