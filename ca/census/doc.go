// Package census knows who holds which bundle and which certificates, so that a
// rotation waits for proof instead of hoping.
//
// A consumer is one proxy instance (cluster and pod UID) at one door for one
// identity. It is live while a leaf given to it has not ended, connected or not;
// without a leaf, while its stream is open; never once its pod's UID is gone.
//
// Invariants:
//
//   - In doubt a gate waits. Whoever is not known to hold a bundle is behind;
//     what cannot be known (a consumer for whom there was no room, a ledger that
//     is not read to its end) counts as behind too.
//   - Leaves are counted by their root whatever becomes of the consumer: of
//     those that are gone, too, and of those for whom there was no room.
//   - Neither clock is trusted alone: a leaf has ended, and a time has passed,
//     only when the wall clock and the process's own both say so. So no gate
//     opens because a clock was set.
//   - Memory is bounded by [Config].MaxConsumers at less than 1 KiB each.
//
// It does no I/O, decides no step (ca/rotate) and knows no front end: how a
// door's consumers confirm is told by configuration. It starts no goroutine; a
// Census is safe for concurrent use, and what is told to it takes one lock of
// 64, held for a microsecond.
package census
