// Package sds is Envoy's Secret Discovery Service v3, state of the world: it
// keeps each stream's side of the protocol and asks a [Source] for what the
// names stand for. It holds no policy, makes no key and knows no token.
//
// Invariants:
//
//   - At most one response of a stream waits for its answer. Names that change
//     meanwhile go together, in their newest state, with the next one. So memory
//     is bounded, and a client that does not read holds up only itself.
//   - A response goes out only for a first request, for names that were added,
//     and for secrets whose bytes changed; never again for bytes that the
//     client refused on this stream.
//   - A secret is checked when it is made ([NewSVID], [NewBundle]): Envoy takes
//     an expired certificate and an empty validation context without a word, and
//     a refused secret can leave a listener stuck. It is immutable, encoded
//     once, and shared by all streams that send it.
//   - No secret is ever shown by %v or in a log.
//   - What a client says of itself (its Node) is shown, escaped, and selects
//     nothing but the form of the validation context.
//
// One goroutine owns each stream and everything that happens to it, another only
// receives; so a stream needs no lock. Server is safe for concurrent use, SVID
// and Bundle are immutable.
package sds
