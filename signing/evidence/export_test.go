package evidence

// Decode and Prune are for tests: reading the form on disk, and one round of
// Run.
var Decode = decode

func (s *Store) Prune() { s.prune() }
