"""Hosts with networks of their own: namespaces of this machine's kernel."""

import os
import shutil
import subprocess
from contextlib import ExitStack

import pytest


def need_namespaces() -> None:
    """Skip a test where they cannot be made."""
    if os.getuid() or not shutil.which("ip"):
        pytest.skip("only root can make network namespaces, with ip; apt-get install iproute2")


class Host:
    """A host with a network of its own, whose only neighbour is this machine, and with workers."""

    def __init__(self, number: int, resources: ExitStack) -> None:
        self.name = f"clipcap{os.getpid()}-{number}"
        self.link, peer = f"cc{os.getpid()}h{number}", f"cc{os.getpid()}p{number}"
        network = f"10.{20 + os.getpid() % 200}.{number}"  # not that of another run, or of one that was killed
        self.gateway, self.address = f"{network}.1", f"{network}.2"
        ip("netns", "add", self.name)
        resources.callback(ip, "netns", "del", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", peer, "netns", self.name)
        resources.callback(subprocess.run, ["ip", "link", "del", self.link], check=False)
        ip("address", "add", f"{self.gateway}/24", "dev", self.link)
        ip("link", "set", self.link, "up")
        self.within("ip", "address", "add", f"{self.address}/24", "dev", peer)
        self.within("ip", "link", "set", peer, "up")
        self.within("ip", "link", "set", "lo", "up")

    def within(self, *command: str) -> None:
        """Run a command on the host."""
        ip("netns", "exec", self.name, *command)

    def cut_off(self) -> None:
        ip("link", "set", self.link, "down")

    def reconnect(self) -> None:
        ip("link", "set", self.link, "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
