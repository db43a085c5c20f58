// Package kube publishes our own bundle as objects of a cluster: a ConfigMap in
// every namespace, istio-ca-root-cert for Istio's proxies, and a
// ClusterTrustBundle.
//
// Every replica watches, so that each can report what the readers of the objects
// hold; the one that holds the Lease writes. The Lease saves work, and no
// more: each write names the version of the object that it was decided on, and a
// bundle of a higher sequence that one of us wrote is never replaced by an older
// one, so that two writers, or one that stalled, do no harm.
//
// # Whose an object is
//
// An object is ours when it bears the annotation hallmark.dev/trust-domain with
// our trust domain and the API server's record of managers says that we hold
// a part of it: writes are server-side applies of the field manager
// "hallmark". What happens to one that is not as it should be:
//
//   - It is gone: it is made anew.
//   - It is ours, and somebody changed it. A person with kubectl (a manager whose
//     name begins so) is taken back every time. A controller that is known to
//     write these objects is not: istiod (pilot-discovery), istio-csr
//     (cert-manager-istio-csr) and trust-manager would write again at once, so
//     we wait. Any other writer is taken back three times within ten minutes and
//     then waited for, longer each time.
//   - It is not ours, and another holds the content: we wait, whoever that is. A
//     controller that has stopped, as istiod's has once its own CA is off, leaves
//     its name behind; TakeOver names the managers whose objects become ours.
//     Deleting the object hands it over, too. istiod is known by its manager
//     alone: the label istio.io/config, which it puts on its objects, would stay
//     after it.
//   - Its content is right already, whoever wrote it: that is enough.
//
// Whatever keeps an object from holding the newest bundle is in the report, by
// the object's name. Namespaces that terminate count as done.
//
// # Bounds
//
// Namespaces are watched by their metadata, the objects by their name; of an
// object its checksum and managers are kept. Writes are limited in rate and in
// number; an API server that is away is tried again by one pause for all.
// What may be asked of it is in [Publisher.Access], complete.
//
// A Publisher is safe for concurrent use; [Publisher.Run] runs once.
package kube
