//go:build tools

// Package etcd pins the etcd server that the test bench runs, in a module of
// its own: its dependencies are none of Hallmark's.
package etcd

import _ "go.etcd.io/etcd/server/v3"
