package policy

// Problem is one thing that is wrong, or odd, about a file of policies.
type Problem struct {
	File   string // its name in the folder; the folder's own for it as a whole
	Policy string // metadata.name; "" where it cannot be read
	Path   string // such as spec.authorities[0].key.data; "" for the document
	Text   string // what is wrong
	Mend   string // what to do about it
	// Warning: the policy works, and may not do what its author thinks. All other
	// problems make the policy unusable.
	Warning bool
}

// String returns the problem in one line.
func (p Problem) String() string {
	s := p.File
	if p.Policy != "" {
		s += ": " + p.Policy
	}
	if p.Path != "" {
		s += ": " + p.Path
	}
	s += ": " + p.Text
	if p.Mend != "" {
		s += ": " + p.Mend
	}
	return s
}
