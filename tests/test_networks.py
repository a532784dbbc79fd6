"""Which addresses are of the public internet, whatever Python's own ipaddress thinks of them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.webhooks.networks import is_public

# IANA's registries of special-purpose addresses, written down a second time.
REGISTRIES = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29 192.0.0.8/32
192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24
192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 255.255.255.255/32
::1/128 ::/128 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28
2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
"""


@pytest.mark.parametrize("network", REGISTRIES.split())
def test_no_address_of_a_special_network_is_public(network: str) -> None:
    found = ipaddress.ip_network(network)
    middle = found[found.num_addresses // 2]
    for address in (found[0], middle, found[-1]):
        assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "192.0.1.1", "192.88.98.255", "223.255.255.255", "2606:4700::1", "2a00:1450::1"],
)
def test_other_addresses_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses())
def test_what_python_calls_private_or_multicast_is_never_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if address.is_private or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_within_an_address_is_not_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for outer in (
        (0xFFFF << 32) + number,  # IPv4-mapped
        number,  # IPv4-compatible
        (0x2002 << 112) + (number << 80) + 1,  # 6to4
        (0x64FF9B << 96) + number,  # NAT64
        (0x20010000 << 96) + (number ^ 0xFFFFFFFF),  # Teredo
    ):
        assert not is_public(ipaddress.IPv6Address(outer))
