// Package state knows the state directory: what lies where in it, and how it is
// made.
//
//	hallmark.yaml     the configuration that `hallmark init` wrote
//	keys/             root-<id>.pem (sealed), passphrase, ledger.key, ledger.pub
//	journal/          the authority's signed records (ca/journal)
//	ledger/           the issuance ledger (ca/ledger)
//	evidence/         signatures of images (signing)
//	bundle.pem        the trusted roots, for clients
//	journal.seen      the newest journal record seen, apart from the journal
//
// Invariants: nothing that exists is ever overwritten by [Found]; files with
// secrets are made with mode 0600 in a directory of mode 0700; the
// configuration is written last, so that a directory with one is whole.
//
// The package does not run anything and is used by one process at a time: the
// journal's lock sees to it.
package state
