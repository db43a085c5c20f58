package config

// File is the configuration as it is written.
//
// The comment of each field is its documentation: the reference in docs/ and
// the file that `hallmark init` writes are generated from it.
type File struct {
	// The SPIFFE trust domain: the first part of every identity,
	// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT. It is fixed once the root was
	// made.
	TrustDomain string `json:"trustDomain"`
	// The cluster's id, as proxies send it in the clusterid header.
	ClusterID string `json:"clusterID"`
	// The folder that holds keys, journal, ledger and evidence: an absolute path,
	// mode 0700.
	State string `json:"state"`
	// The name of this replica in journal and ledger; empty takes the host's name.
	ReplicaID string `json:"replicaID"`

	// The port that proxies connect to.
	Mesh meshFile `json:"mesh"`
	// Metrics and health, plain HTTP, without secrets.
	Metrics metricsFile `json:"metrics"`
	// Who is calling: tokens, the Kubernetes API, the view of the cluster.
	Attest attestFile `json:"attest"`
	// The root, the issuing CA and the certificates of workloads.
	Authority authorityFile `json:"authority"`
	// How a root is replaced by the next.
	Rotation rotationFile `json:"rotation"`
	// Whether the images of a pod must be signed before it gets an identity.
	Images imagesFile `json:"images"`
	// The record of every issuance and every refusal of a proven caller.
	Ledger ledgerFile `json:"ledger"`
	// Where the trust bundle is written for clients of this server.
	Bundle bundleFile `json:"bundle"`
	// What is logged.
	Log logFile `json:"log"`
}
