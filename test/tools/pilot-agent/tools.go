//go:build tools

// Package pilotagent pins Istio's agent, the commonest caller of
// CreateCertificate, in a module of its own: its dependencies are none of
// Hallmark's.
package pilotagent

import _ "istio.io/istio/pilot/cmd/pilot-agent"
