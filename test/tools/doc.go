// Package tools gets and finds the real systems that the tests and the demo
// run against: an API server, Envoy, cosign and so on.
//
// [Table] lists them. [Get] builds or downloads one into the cache, Path finds
// it there, Need makes a missing one a failure in CI and otherwise a skip that
// names the command which gets it.
//
// A tool lives in a directory named after it and its version, made whole in a
// staging directory and then renamed: a directory that exists is complete, and
// a new version never meets an old one. Two processes may get the same tool at
// once: the second waits for the first. Nothing is ever removed.
//
// What is pinned: Go programs by a go.mod and go.sum of their own beside this
// file (their dependencies are none of Hallmark's), wheels by their hashes.
package tools
