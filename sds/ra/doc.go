// Package ra is the registration authority (RFC 3647): the one way from a front
// end to a certificate. It asks the registrar who is calling and what may run
// there, asks the authority for the certificate, and says no in one voice.
//
// Invariants:
//
//   - It alone calls [ca.Authority.Issue], and alone turns a refusal's Kind into
//     a gRPC code ([Status]).
//   - Before a caller has proved who it is, nothing leaves but a fixed text and
//     an id. After that it may read of its own objects; a refusal's Detail never
//     leaves.
//   - Every refusal is counted by reason and door. Those of authenticated
//     callers go to the ledger, all go to the log, which is sampled: nobody
//     without proof fills a disk.
//   - Every answer comes within [Config.Timeout], and whoever has gone gets no
//     signature. Work beyond what is done in time is refused at once.
//
// [Server] is the mesh port: TLS, gRPC, and bounds on everything that comes from
// outside. The package knows no protocol of proxies and holds no policy. All its
// types are safe for concurrent use.
package ra
