// Package bench is the roof over the packages that run real systems for the
// tests and the demo: bench/cluster an API server with its etcd, bench/pods
// what kubelets and users do to it, bench/registry an OCI registry,
// bench/envoy Envoys, bench/echo a plain HTTP service.
//
// They share three rules. Everything listens on 127.0.0.1, on ports that the
// kernel chose. Each process has one owner, which kills it and waits for it
// when it is closed, when its context ends, or when this process dies. What a
// process says goes to a file in the directory of the run, and the end of that
// file into the error of whoever waited for it in vain.
package bench
