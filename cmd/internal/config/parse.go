package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// duration parses a positive duration of at most limit.
func (c *checker) duration(path, value string, limit time.Duration) time.Duration {
	d, err := time.ParseDuration(value)
	switch {
	case err != nil:
		c.add(path, fmt.Sprintf("%q is no duration", value), "write a number and a unit, such as 10m or 6h (s, m and h; there is no d)")
	case d <= 0:
		c.add(path, fmt.Sprintf("%s is not positive", value), "write a duration above 0")
	case d > limit:
		c.add(path, fmt.Sprintf("%s is above the ceiling", value), "write at most "+Short(limit))
	default:
		return d
	}
	return 0
}

// Short writes a duration without its empty parts: 6h, not 6h0m0s.
func Short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// units are the suffixes of a size, the long ones first.
var units = []struct {
	suffix string
	bytes  int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// size parses a size in bytes, such as 8GiB.
func (c *checker) size(path, value string, floor int64, floorText string) int64 {
	const mend = "write a whole number and a unit, such as 8GiB (KiB, MiB, GiB, TiB)"
	for _, u := range units {
		digits, ok := strings.CutSuffix(value, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			break
		}
		if n*u.bytes < floor {
			c.add(path, fmt.Sprintf("%s is below the floor", value), "write at least "+floorText)
			return 0
		}
		return n * u.bytes
	}
	c.add(path, fmt.Sprintf("%q is no size", value), mend)
	return 0
}

// listen checks an address to listen on, HOST:PORT with a literal or no host.
func (c *checker) listen(path, value string) string {
	const mend = "write ADDRESS:PORT, such as :15012 or 127.0.0.1:15012"
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		c.add(path, fmt.Sprintf("%q is no address to listen on", value), mend)
		return ""
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		c.add(path, fmt.Sprintf("host %q is no IP address", host), mend)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		c.add(path, fmt.Sprintf("port %q is no number from 0 to 65535", port), mend)
	}
	return value
}

// choose picks the mode that value names.
func choose[T any](c *checker, path, value string, names []string, modes []T) T {
	for i, name := range names {
		if value == name {
			return modes[i]
		}
	}
	var none T
	c.add(path, fmt.Sprintf("%q is not known", value), "write one of: "+strings.Join(names, ", "))
	return none
}

// join extends a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func at(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
