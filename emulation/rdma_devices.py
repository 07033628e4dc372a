"""The RDMA devices of this machine, as the kernel lists them in sysfs; no library and no right is needed to look.

What only the verbs library can tell (limits of the adapter, active MTU of the port) is not here.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SYSFS = Path("/sys/class/infiniband")
ROCE_V2 = "RoCE v2"
ACTIVE = "ACTIVE"
ETHERNET = "Ethernet"
SIOCGIFADDR = 0x8915
UNUSED = ":".join(["0000"] * 8)
"""An entry of a GID table that no address has."""
NAME_BYTES = 16
"""Room for an interface's name in the kernel's `struct ifreq`."""
MTUS = (256, 512, 1024, 2048, 4096)
"""Path MTUs of InfiniBand and RoCE, bytes."""
ROCE_HEADERS = 96
"""Most bytes of headers in one RoCE packet: GRH or IP 40, UDP 8, BTH 12, extended headers 32, ICRC 4."""


@dataclass(frozen=True)
class Gid:
    """One address of a port."""

    index: int
    """Place in the port's table; what `sgid_index` of a queue pair means."""
    address: IPv6Address
    kind: str
    """`IB/RoCE v1` or `RoCE v2`."""
    interface: str
    """Network interface behind it; empty on InfiniBand."""

    @property
    def ipv4(self) -> IPv4Address | None:
        """The IPv4 address that this GID stands for."""
        return self.address.ipv4_mapped


@dataclass(frozen=True)
class Port:
    """One port of a device."""

    number: int
    state: str
    """`ACTIVE`, `DOWN`, `INIT`, ..."""
    link_layer: str
    """`Ethernet` or `InfiniBand`."""
    rate: str
    lid: int

    @property
    def active(self) -> bool:
        """Whether packets can flow."""
        return self.state == ACTIVE


@dataclass(frozen=True)
class RdmaDevice:
    """One RDMA device."""

    name: str
    driver: str
    """Kernel module of the adapter; `rdma_rxe` for Soft-RoCE, empty where sysfs does not say."""
    interface: str
    """Network interface under a device made in software; empty for an adapter."""
    firmware: str
    ports: tuple[Port, ...]

    @property
    def software(self) -> bool:
        """Whether the kernel does the adapter's work."""
        return bool(self.interface)


def devices(root: Path = SYSFS) -> tuple[RdmaDevice, ...]:
    """Every RDMA device, by name."""
    return tuple(_device(path) for path in sorted(root.glob("*")))


def _device(path: Path) -> RdmaDevice:
    numbers = sorted(int(port.name) for port in (path / "ports").glob("*"))
    # Soft-RoCE has no parent in hardware, but names the interface it was made of.
    interface = _read(path / "parent")
    driver = "rdma_rxe" if interface else _link(path / "device" / "driver")
    ports = tuple(_port(number, path / "ports" / str(number)) for number in numbers)
    return RdmaDevice(path.name, driver, interface, _read(path / "fw_ver"), ports)


def _port(number: int, path: Path) -> Port:
    # "4: ACTIVE", "10 Gb/sec (1X FDR10)", "0x0"
    return Port(
        number,
        _read(path / "state").partition(":")[2].strip(),
        _read(path / "link_layer"),
        _read(path / "rate"),
        int(_read(path / "lid") or "0", 16),
    )


def gids(device: str, port: int, root: Path = SYSFS) -> tuple[Gid, ...]:
    """The entries of the port's GID table that are in use; Soft-RoCE has a thousand places for a handful."""
    path = root / device / "ports" / str(port)
    found = []
    for index in sorted(int(entry.name) for entry in (path / "gids").glob("*")):
        text = _read(f"{path}/gids/{index}")
        if text and text != UNUSED:
            kind, interface = _read(f"{path}/gid_attrs/types/{index}"), _read(f"{path}/gid_attrs/ndevs/{index}")
            found.append(Gid(index, IPv6Address(text), kind, interface))
    return tuple(found)


def wire_counters(device: str, port: int, root: Path = SYSFS) -> dict[str, int]:
    """The port's own counters by their own names; those that `rdma statistic show link` prints."""
    found = {}
    for path in sorted((root / device / "ports" / str(port) / "hw_counters").glob("*")):
        # `lifespan` is how long the kernel may serve old figures, in milliseconds.
        if path.name != "lifespan" and (text := _read(path)):
            found[path.name] = int(text)
    return found


def roce_mtu(interface_mtu: int) -> int | None:
    """The RoCE path MTU that fits into frames of an interface, bytes; None if none does."""
    return max((mtu for mtu in MTUS if mtu + ROCE_HEADERS <= interface_mtu), default=None)


def interface_address(interface: str) -> IPv4Address | None:
    """The first IPv4 address of a network interface, if it has one."""
    request = struct.pack("256s", interface.encode()[: NAME_BYTES - 1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, SIOCGIFADDR, request)
        except OSError:
            return None
    return IPv4Address(answer[20:24])


def choose_gid(
    link_layer: str,
    candidates: Sequence[Gid],
    address_of: Callable[[str], IPv4Address | None] = interface_address,
) -> Gid | None:
    """The GID of a port to connect with, or None where it has no routable kind.

    On Ethernet only RoCE v2 travels in ordinary IP packets. Among those the GID that stands for the interface's own
    first IPv4 address comes first, then other IPv4 addresses, then global IPv6 ones; the link-local GID, which every
    port has, reaches no further than the next router and comes last. On InfiniBand it is the first entry.
    """
    if link_layer != ETHERNET:
        return candidates[0] if candidates else None

    def rank(gid: Gid) -> tuple[int, int]:
        if gid.ipv4 is None:
            return (3 if gid.address.is_link_local else 2), gid.index
        return (0 if gid.ipv4 == address_of(gid.interface) else 1), gid.index

    return min((gid for gid in candidates if gid.kind == ROCE_V2), key=rank, default=None)


def _read(path: Path | str) -> str:
    """A file's only line; empty where there is none, or where the kernel refuses (an unused GID entry does)."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(file, 4096).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(file)


def _link(path: Path) -> str:
    return path.resolve().name if path.is_symlink() else ""
