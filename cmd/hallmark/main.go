// Command hallmark is a certificate authority and workload identity service for
// Kubernetes meshes.
package main

import (
	"os"

	"github.com/hallmark-ca/hallmark/cmd/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr)) }
