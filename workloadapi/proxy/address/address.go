// Package address says which addresses the proxy connects to.
package address

import (
	"fmt"
	"net/netip"
)

// An Error means that an upstream's name leads to where nobody meant it to.
type Error struct{ Addr netip.Addr }

func (e Error) Error() string {
	return fmt.Sprintf("the upstream's address is %s, which is not a public one; name it in allow_addresses of the credential's definition if it is meant", e.Addr)
}

// notPublic are addresses that are not the upstream's on the internet: of this host, of
// the local network, of clouds' metadata, and forms in which those can be written.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("3fff::/20"), netip.MustParsePrefix("5f00::/16"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("ff00::/8"),
}

// Check checks the address that is about to be connected to, after the name was
// resolved and for each attempt: nothing can change between the check and its use.
func Check(address string, allowed []netip.Prefix) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("the upstream's address %q cannot be read", address)
	}
	addr := ap.Addr().Unmap().WithZone("")
	for _, p := range allowed {
		if p.Contains(addr) {
			return nil
		}
	}
	for _, p := range notPublic {
		if p.Contains(addr) {
			return Error{addr}
		}
	}
	return nil
}
