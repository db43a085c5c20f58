// Package publish puts our own bundle where others read it: a file, and the
// SPIFFE bundle endpoint over HTTPS. Package publish/kube below it does the same
// for objects of a cluster.
//
// Every publisher reports its readers to the gates of a rotation, as [Reader]:
// which bundle is there, and from when on all who read there may be taken to
// hold it. Invariants: a report never says more than is so, so that a content
// that was changed by another hand, could not be written, or was found at start
// counts from the moment at which it was seen to be right, plus the time that a
// reader may take to come back; readers only ever see a whole bundle, the old
// one or the new one; the newest snapshot is what is published, and no step in
// between is waited for.
//
// A fault ends no publisher: it is tried again, with growing pauses, until it
// goes, and the report names it. The package knows no roots and no phases, only
// the snapshot in force; foreign bundles have no way into it. A [File], an
// [Endpoint] and a [Server] are safe for concurrent use; Run runs once.
package publish
