package signing

// String returns the name used in configuration and log.
func (m Mode) String() string {
	switch m {
	case Disabled:
		return "disabled"
	case Audit:
		return "audit"
	case Enforce:
		return "enforce"
	}
	return "none"
}
