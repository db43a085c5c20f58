//go:build tools

// Package kubernetes pins the Kubernetes programs that the test bench runs, in
// a module of its own: their dependencies are none of Hallmark's.
package kubernetes

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubemark"
)
