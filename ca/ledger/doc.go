// Package ledger records every issuance, before it happens, and every refusal
// of an authenticated caller.
package ledger
