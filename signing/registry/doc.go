// Package registry collects from OCI registries what shows that an image was
// signed: the image's manifests and what cosign attached to them.
//
// A registry is not trusted, and neither is who may push to it. Invariants: all
// content is hashed against the digest it was asked for; sizes, counts, pages,
// redirects and times are bounded before anything is read; no connection goes
// to a loopback, link-local, private or otherwise special address unless the
// configuration names that very host; nothing is spoken in plain HTTP but to
// hosts it names; credentials go to the registry they belong to and to the
// token service that this registry names, never along a redirect to another
// host. Proxies of the environment are not used: behind a proxy the address
// could not be checked. One broken attachment neither hides a good one nor
// fails the collection; it becomes a line in Evidence.Skipped.
//
// The package verifies no signature and decides nothing. It keeps tokens for
// minutes, in memory, and no content. A Client may be used from many goroutines;
// it does not join equal calls.
package registry
