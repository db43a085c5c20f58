package serve

import (
	"context"
	"net"
	"time"

	"github.com/hallmark-ca/hallmark/cmd/internal/config"
)

// The bounds on connections to the port of metrics.
const (
	MetricsConnections  = metricsConnections
	MetricsOfOneAddress = metricsOfOneAddress
)

// ServeMetrics serves metrics and health on l until ctx ends.
func ServeMetrics(ctx context.Context, l net.Listener) error {
	return buildMetrics(testBase(time.Now), &config.Config{}, nil).serve(ctx, l)
}
