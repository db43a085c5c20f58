// Package proxies is the authority's own Source of secrets: one proxy for each
// instance, with one key and one SVID that all of its streams share.
//
// An instance is the cluster and pod UID of an attested caller, and nothing that
// the caller says. Whatever happens to a proxy is the same event: the
// registration authority is asked again (a first request, a renewal that is due,
// a [attest.Change]), and its answer is acted on:
//
//   - granted: every stream that has joined until then may have what there is;
//   - unavailable: streams that wait end with it; the others keep what they
//     have, and the question is put again until the certificate ends;
//   - refused otherwise: all of the proxy's streams end with the reason at once,
//     and its key and SVID are dropped.
//
// Of each proxy at most one question is under way, and what happens meanwhile
// makes one more after it. A new stream gets nothing before an answer that came
// after it joined. The key is made here, for each certificate anew, and is
// nowhere but in memory and in what is sent to its proxy. It stays until the
// proxy is refused (its pod is gone) or a renewal falls due with no stream open.
//
// Locks: Proxies has one for the set, each proxy one of its own, taken in that
// order; neither is held while anything is waited for. Everything exported is
// safe for concurrent use.
package proxies
