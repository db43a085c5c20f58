// Package signing decides whether the images of a pod may run, and implements
// [attest.ImageGate].
//
// Evidence and decisions are two things. Evidence (package evidence) is what a
// registry gave, proves itself, and lies on disk. A decision is what [Decide],
// a pure function, makes of it under the policies in force; it is kept in
// memory only, and made anew without a network when a policy changes. So a
// registry that is away, a restart or an edit of a policy refuses no running
// digest whose evidence is at hand.
//
// Invariants:
//
//   - Only Decide's own result is believed: no annotation, label or status.
//   - What runs is what is judged: the digest that the status names, looked for
//     at the repository that the spec names.
//   - A fault of a registry is never a verdict: it is Unavailable, under its own
//     reason, and is kept for a moment only.
//   - Whoever writes pods chooses how many images they have, where these lie and
//     how long their evidence takes to verify: fetches and decisions are shared
//     out among namespaces.
//   - No answer waits for a registry beyond the request's bound; the fetch goes
//     on, and the retry finds it ready.
//
// [Gate] may be used by many goroutines. Its workers are those of [Gate.Run];
// before it runs nothing is fetched, and what needs a fetch is refused as
// pending.
package signing
