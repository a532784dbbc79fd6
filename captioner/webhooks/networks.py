"""Networks that webhooks never reach: those that are not part of the public internet.

The two registries of special-purpose addresses that IANA keeps (RFC 6890), whole, as they were in November 2025, and
multicast. They are written down here because what a Python release knows of them changes: some have called
192.0.0.192, under which a cloud hands out its machines' credentials, a public address.

An address that carries an IPv4 address inside (mapped, 6to4, Teredo, NAT64) leads to wherever that leads, and is in the
registry, so it is refused whatever it carries.
"""

from ipaddress import IPv4Address, IPv6Address, ip_network

_SPECIAL = tuple(
    ip_network(network)
    for network in (
        # https://www.iana.org/assignments/iana-ipv4-special-registry
        "0.0.0.0/8",  # this network
        "0.0.0.0/32",  # this host on this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared address space
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link local
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.0.0/29",  # IPv4 service continuity prefix
        "192.0.0.8/32",  # IPv4 dummy address
        "192.0.0.9/32",  # port control protocol anycast
        "192.0.0.10/32",  # traversal using relays around NAT anycast
        "192.0.0.170/32",  # NAT64/DNS64 discovery
        "192.0.0.171/32",
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112-v4
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relay anycast, deprecated
        "192.88.99.2/32",  # 6a44 relay anycast
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # direct delegation AS112 service
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "240.0.0.0/4",  # reserved
        "255.255.255.255/32",  # limited broadcast
        # https://www.iana.org/assignments/iana-ipv6-special-registry
        "::1/128",  # loopback
        "::/128",  # unspecified
        "::ffff:0:0/96",  # IPv4-mapped
        "64:ff9b::/96",  # IPv4-IPv6 translation
        "64:ff9b:1::/48",  # the same, local use
        "100::/64",  # discard only
        "100:0:0:1::/64",  # dummy prefix
        "2001::/23",  # IETF protocol assignments
        "2001::/32",  # Teredo
        "2001:1::1/128",  # port control protocol anycast
        "2001:1::2/128",  # traversal using relays around NAT anycast
        "2001:1::3/128",  # DNS-SD service registration protocol anycast
        "2001:2::/48",  # benchmarking
        "2001:3::/32",  # AMT
        "2001:4:112::/48",  # AS112-v6
        "2001:10::/28",  # ORCHID, deprecated
        "2001:20::/28",  # ORCHIDv2
        "2001:30::/28",  # drone remote ID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # direct delegation AS112 service
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link local
        # Not in these registries
        "224.0.0.0/4",  # multicast
        "ff00::/8",  # multicast
    )
)
_UNICAST = ip_network("2000::/3")  # all public IPv6 addresses


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the public internet."""
    if address.version == 6 and address not in _UNICAST:
        return False
    return not any(address.version == network.version and address in network for network in _SPECIAL)
