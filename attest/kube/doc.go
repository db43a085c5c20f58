// Package kube is one Kubernetes cluster as [attest.Cluster]: it checks tokens,
// has the API server review them, and holds a view of the pods, nodes and
// service accounts that stand behind them.
//
// Invariants:
//
//   - A token that the cluster's published keys did not sign, that has ended or
//     is meant for others never reaches the API server, and leaves nothing in
//     memory. A published key alone is no grant: the review decides, and what it
//     says must agree with what the token itself says.
//   - One pod causes few reviews, however many tokens it has: what the API server
//     allows this account is shared by all pods.
//   - What is remembered of a review is the review alone. The live facts are
//     read from the view at every call; a pod or account that is deleted or made
//     anew takes the reviews of its tokens with it.
//   - "There is no such pod" is said only on the word of the API server: an
//     answered GET, or the watch's own notice of the deletion. Being too busy, or
//     too late, to know is a refusal of kind Unavailable.
//   - The age of the view is counted from what the watches themselves last
//     delivered (see view.go), never from the fact that a connection is open.
//   - An API server that is away ends nothing here: the watches come back by
//     themselves, stored keys stay, and [Cluster.Ready] stays true.
//
// What it may ask of the API server is in [Cluster.Probe], complete: create
// tokenreviews, get /openid/v1/jwks, get, list and watch pods, nodes and service
// accounts (and of Probe's own, create selfsubjectaccessreviews, which every
// account may). It writes nothing and knows no policy. A Cluster is safe for
// concurrent use; [Cluster.Run] runs once.
package kube
