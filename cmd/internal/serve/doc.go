// Package serve puts the server together and runs it.
//
// The graph is built in six files (authority, proof, images, doors, publish,
// admin), each a function from what was built before to its own parts; nothing
// starts while it is built. [Run] then starts every part under one context and
// stops them in three steps: doors first (streams are told Unavailable, calls
// under way end), then everything that works for them, the ledger last, so that
// what was signed is on record. [Check] builds the same graph without taking
// the locks of the state directory, and probes what it rests on.
//
// Invariants: a part that fails stops the whole server, which then stops in the
// same order (publishers of the bundle try again instead, and a rotation waits
// for them); nothing is served before it can be answered for; no secret is
// logged (a guard in the log handler stands behind the types that hide their
// own).
//
// It holds no rules of the product. One server runs in a process.
package serve
