// Package ledger records every issuance before it happens, and every refusal of
// an authenticated caller.
//
// Promise: [Ledger.Append] returns nil only when the intent is durable, and
// only then may a key be used. An outcome is not waited for: it rides with the
// next batch. So a cut leaves at most an intent without an outcome, which
// everyone reads as "may have been issued"; it leaves no outcome without its
// intent, no gap and no reordering.
//
// Files, below one folder:
//
//	00000007.seg   frames; zeroes follow what was written
//	00000007.idx   24 bytes a record, sorted, once the segment is sealed; a cache
//	refusals-0003  frames of refusals, with a budget of their own
//	checkpoints    signed statements of how many records there are, and their hash
//	next           the segment after the current one, zeroed beforehand
//
// A batch ends with a commit frame: the number of its last record and the chain
// hash over all frames before it. What follows the last commit frame that
// verifies was never acknowledged.
//
// A write or sync that failed is never tried again on the same file: the kernel
// may have dropped the pages and would report the second try a success. The
// ledger goes on in a new segment, from what is known to be durable.
//
// One goroutine, that of [Ledger.Run], writes; callers encode outside any lock
// and hold it only to copy. Refusals of callers who did not authenticate are
// never given to this package: nobody without proof can fill a disk.
package ledger
