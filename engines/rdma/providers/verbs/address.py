"""What one end of a connection publishes so that the other can join."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from engines.rdma.device import InvalidDescriptor, read_published

PROVIDER = "verbs"
LARGEST = {
    "epoch": 2**63 - 1,
    "queue_pair": 2**24 - 1,
    "sequence": 2**24 - 1,
    "lid": 2**16 - 1,
    "mtu": 5,
    "reads": 2**8 - 1,
    "link_layer": 2**8 - 1,
}
"""Of the numbers of an address, as the InfiniBand headers have room for them."""
LEAST = {"epoch": 1, "mtu": 1}
GID_DIGITS = 32


@dataclass(frozen=True)
class Address:
    """A queue pair and the port that it is reached through."""

    provider: str
    device: str
    """Uid of the device, which its descriptors carry."""
    epoch: int
    """The device's at the time: descriptors from before it are stale."""
    queue_pair: int
    sequence: int
    """Number of the first packet that this end will send."""
    gid: str
    """Hexadecimal."""
    lid: int
    mtu: int
    """Active MTU of the port, `IBV_MTU_*`."""
    reads: int
    """RDMA reads that this end can have under way, in either direction."""
    link_layer: int

    def to_json(self) -> str:
        """As published on the rendezvous."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Address:
        """Read an address that another process published.

        Raises:
            InvalidDescriptor: not JSON, not exactly the fields, a wrong type, a number out of range, another provider.
        """
        kinds = {field.name: str if field.type == "str" else int for field in fields(cls)}
        value = read_published(text, kinds, "the address of a verbs channel")
        if value["provider"] != PROVIDER:
            raise InvalidDescriptor(f"a verbs channel cannot join one of provider {value['provider']!r}")
        if len(value["gid"]) != GID_DIGITS or set(value["gid"]) - set("0123456789abcdef"):
            raise InvalidDescriptor(f"'gid' of a channel address must be {GID_DIGITS} hexadecimal digits")
        for name, largest in LARGEST.items():
            least = LEAST.get(name, 0)
            if not least <= value[name] <= largest:
                raise InvalidDescriptor(f"{name!r} of a channel address must be from {least} to {largest}")
        return cls(**value)
