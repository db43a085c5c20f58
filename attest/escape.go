package attest

import "strconv"

// maxShown is how much of a text from outside is ever shown, in bytes.
const maxShown = 512

// Escape makes text from outside (node ids, NACK texts, claims) fit to be
// shown in a log, an answer or a terminal: cut at 512 bytes, with control and
// other unprintable characters escaped as in a Go string.
func Escape(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown] + "…"
	}
	q := strconv.QuoteToGraphic(s)
	return q[1 : len(q)-1]
}
