// Package e2e holds the promises of the product against real systems: an API
// server, Envoys, a registry, Istio's agent. It has no code of its own but
// tests, one file for each promise.
package e2e
