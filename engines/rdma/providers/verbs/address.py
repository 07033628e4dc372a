"""What one end of a connection publishes so that the other can join."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from engines.rdma.device import InvalidDescriptor

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
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidDescriptor(f"a channel address must be JSON: {error}") from None
        if isinstance(value, dict) and value.get("provider", PROVIDER) != PROVIDER:
            raise InvalidDescriptor(f"a verbs channel cannot join one of provider {value['provider']!r}")
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict) or set(value) != set(names):
            raise InvalidDescriptor(f"the address of a verbs channel must have exactly the fields {', '.join(names)}")
        for name in names:
            _check(name, value[name])
        return cls(**value)


def _check(name: str, value: object) -> None:
    if name not in LARGEST:
        if not isinstance(value, str):
            raise InvalidDescriptor(f"{name!r} of a channel address must be str, got {type(value).__name__}")
        if name == "gid" and (len(value) != GID_DIGITS or set(value) - set("0123456789abcdef")):
            raise InvalidDescriptor(f"'gid' of a channel address must be {GID_DIGITS} hexadecimal digits")
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidDescriptor(f"{name!r} of a channel address must be int, got {type(value).__name__}")
    least, largest = LEAST.get(name, 0), LARGEST[name]
    if not least <= value <= largest:
        raise InvalidDescriptor(f"{name!r} of a channel address must be from {least} to {largest}, got {value}")
