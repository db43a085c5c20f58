package config

// Every default of the product stands in this file, and nowhere else.

// DefaultFile is the configuration that is read where --config names none.
const DefaultFile = "/var/lib/hallmark/hallmark.yaml"

// DefaultState is the state directory where none is named.
const DefaultState = "/var/lib/hallmark"

// Defaults returns the configuration that an empty file means.
func Defaults() File {
	return File{
		TrustDomain: "cluster.local",
		ClusterID:   "Kubernetes",
		State:       DefaultState,
		Mesh: meshFile{
			Listen: ":15012",
			Names:  []string{"hallmark.hallmark-system.svc", "hallmark.hallmark-system.svc.cluster.local"},
			IPs:    []string{},
		},
		Metrics: metricsFile{Listen: ":15014"},
		Attest: attestFile{
			Audiences:     []string{"istio-ca"},
			MaxStaleness:  "6h",
			ReviewCache:   "10m",
			SourceAddress: "disabled",
		},
		Authority: authorityFile{
			PassphraseFile:  "keys/passphrase",
			KeyAlgorithm:    "P-256",
			RootLifetime:    "43800h", // 5 years
			IssuingLifetime: "72h",
			Leaf:            leafFile{Default: "6h", Max: "24h", Min: "1m", BackDate: "2m"},
		},
		Rotation: rotationFile{
			Automatic: "propose", Windows: []string{},
			KeyHold:         "720h", // 30 days
			RehearsalWindow: "2m",
		},
		Images: imagesFile{
			Issuance:       "audit",
			Namespaces:     map[string]string{},
			Tags:           "resolve",
			Ephemeral:      "count-while-running",
			Infrastructure: infrastructureFile{Mode: "audit", Accounts: []string{"hallmark-system/hallmark", "istio-system/istiod", "istio-system/ztunnel"}},
			Registries:     registriesFile{Insecure: []string{}, AllowPrivate: []string{}, CAFiles: []string{}},
		},
		Ledger: ledgerFile{MaxBytes: "8GiB", Retention: "336h"}, // 14 days
		Bundle: bundleFile{
			File: "bundle.pem", ReadWithin: "5m",
			Endpoint: endpointFile{RefreshHint: "5m"},
			Objects:  objectsFile{Key: "root-cert.pem", TakeOver: []string{}, KubeletDelay: "2m", LeaseNamespace: "hallmark-system"},
		},
		Log: logFile{Level: "info"},
	}
}
