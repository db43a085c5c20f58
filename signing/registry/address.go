package registry

import "net/netip"

// ranges are addresses that no public registry has (IANA special-purpose
// address registries). Those marked private may be allowed for a host by name;
// the others never lead to a registry.
var ranges = []struct {
	prefix  netip.Prefix
	what    string
	private bool
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified", false},
	{netip.MustParsePrefix("10.0.0.0/8"), "private", true},
	{netip.MustParsePrefix("100.64.0.0/10"), "carrier-grade NAT", true},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback", true},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local", true},
	{netip.MustParsePrefix("172.16.0.0/12"), "private", true},
	{netip.MustParsePrefix("192.0.0.0/24"), "special-purpose", false},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation", false},
	{netip.MustParsePrefix("192.168.0.0/16"), "private", true},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking", true},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation", false},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation", false},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast", false},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved", false},

	{netip.MustParsePrefix("::1/128"), "loopback", true},
	{netip.MustParsePrefix("::/96"), "unspecified or IPv4-compatible", false},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local NAT64", true},
	{netip.MustParsePrefix("100::/64"), "discard", false},
	{netip.MustParsePrefix("2001::/32"), "Teredo", false},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation", false},
	{netip.MustParsePrefix("2002::/16"), "6to4", false},
	{netip.MustParsePrefix("fc00::/7"), "private", true},
	{netip.MustParsePrefix("fe80::/10"), "link-local", true},
	{netip.MustParsePrefix("fec0::/10"), "site-local", true},
	{netip.MustParsePrefix("ff00::/8"), "multicast", false},
}

// nat64 carries an IPv4 address in its last 32 bits (RFC 6052): it is as
// special as that one.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// special says what kind of address a is that may not be connected to, "" if it
// may. private tells whether the host was allowed to lie in private ranges.
func special(a netip.Addr, private bool) string {
	a = a.WithZone("").Unmap()
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	for _, r := range ranges {
		if r.prefix.Contains(a) {
			if r.private && private {
				return ""
			}
			return r.what
		}
	}
	return ""
}
