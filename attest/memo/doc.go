// Package memo remembers answers that are dear to get: a review of a token, a
// pod that was looked up, what a registry said of an image.
//
// Invariants:
//
//   - Calls are joined: while one runs for a key, whoever else asks for that key
//     waits for it. Each waiter leaves at its own deadline; the work has a
//     deadline of its own and goes on without its waiters.
//   - Invalidation is exact. Once [Cache.Forget] or [Cache.ForgetTag] has
//     returned, nobody who asks is given an answer that was begun before: it is
//     neither kept nor handed to those who joined afterwards.
//   - Everything is bounded: answers kept, calls under way ([ErrBusy] beyond).
//     Negative answers have a space of their own, so that refusals, which a
//     stranger can cause at will, never push out what was granted.
//
// It knows nothing of what it keeps, does no I/O, and starts no goroutine but
// one for each call under way, which ends with the call. A Cache is safe for
// concurrent use.
package memo
