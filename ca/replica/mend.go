package replica

import (
	"errors"
	"strings"

	"github.com/hallmark-ca/hallmark/ca/journal"
)

// keyError is a root's key that did not open.
type keyError struct {
	uri string
	err error
}

func (e *keyError) Error() string { return e.err.Error() }

func (e *keyError) Unwrap() error { return e.err }

// Mend says what mends an error of [Replica.Ready], or of reading the journal.
func Mend(err error) string {
	var key *keyError
	switch {
	case errors.As(err, &key):
		return MendKey(key.uri)
	case errors.Is(err, journal.ErrNoJournal):
		return "run hallmark init; if an authority was founded here, restore the newest copy of the state directory"
	case errors.Is(err, journal.ErrRolledBack):
		return "restore the newest copy of the state directory: this one lacks records that were there before"
	}
	return "run hallmark serve --check on the same state: it names what is wrong, and what mends it"
}

// MendKey says what mends a root's key that does not open.
func MendKey(uri string) string {
	if strings.HasPrefix(uri, "softkms:") {
		return "put key and passphrase back where the URI and authority.passphraseFile say, readable by their owner alone"
	}
	return "see that the device is there, and module and PIN file where the URI says; authority.keyURI names new places of them"
}
