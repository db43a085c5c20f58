// Command hollow-kubelet is kubemark's hollow node: the real kubelet code over
// a container runtime that only pretends. Unlike kubemark's own command it
// takes feature gates, from FEATURE_GATES ("A=true,B=false").
//
// It binds all addresses: run it in a network namespace of its own.
package main

import (
	"fmt"
	"os"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/restclient" // metrics of its API client
	_ "k8s.io/component-base/metrics/prometheus/version"    // metric of its build
	"k8s.io/kubernetes/cmd/kubemark/app"
	_ "k8s.io/kubernetes/pkg/features" // registers the gates that Set knows
)

func main() {
	if err := utilfeature.DefaultMutableFeatureGate.Set(os.Getenv("FEATURE_GATES")); err != nil {
		fmt.Fprintln(os.Stderr, "reading FEATURE_GATES:", err)
		os.Exit(2)
	}
	os.Exit(cli.Run(app.NewHollowNodeCommand()))
}
