"""From a profile's host to NCCL's topology file, for runs with `NCCL_TOPO_FILE`.

The file is a tree, so each device needs one way to a processor over `pcie` (and, for NUMA nodes, `cpu`) links. Devices
that a profile joins to each other *and* to the processor, as `pcie-nic` of the shipped profiles does, are put below one
bridge: that is what such links stand for. Bus numbers are made up; NCCL matches accelerators by them, so they have to
be replaced by the machine's own where the file is used on real devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from emulation import layout
from emulation.io import FormatError
from emulation.io.host_fragment import pcie_wire
from emulation.io.nccl_xml.reading import NVSWITCH_CLASS, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from emulation.layout import Wire
    from emulation.profile import Host, Profile

SPEEDS = (2.5, 5.0, 8.0, 16.0, 32.0, 64.0)
"""GT/s of the generations of PCI Express."""
WIDTHS = (16, 8, 4, 2, 1, 32)
NVSWITCH_BUS = "0000:ff:00.0"
Joined = tuple[str, "Wire"]
PROCESSORS = (
    (6e9, "GenuineIntel", 6, 0x4F),
    (10e9, "GenuineIntel", 6, 0x55),
    (16e9, "AuthenticAMD", 23, 49),
    (22e9, "GenuineIntel", 6, 0x8F),
    (24e9, "AuthenticAMD", 25, 1),
    (32e9, "AuthenticAMD", 26, 2),
    (40e9, "GenuineIntel", 6, 0xCF),
)
"""(bytes per second between NUMA nodes, vendor, family, model): which processor NCCL knows with which rate."""


def write(profile: Profile, *, sm: int, host: str = "") -> str:
    """A host of a profile as NCCL's topology file.

    Args:
        profile: the cluster.
        sm: compute capability of its accelerators (80 for A100), which decides what NCCL takes an NVLink to carry.
        host: which group of hosts; the first by default.

    Raises:
        FormatError: the host has no accelerators, or devices that no tree of PCI Express links reaches.
        ValueError: the profile has no such hosts; the message has the nearest name.
    """
    group = profile.host(f"{host}0") if host else profile.hosts[0]
    if not group.devices:
        raise FormatError(f"host {group.name!r} of profile {profile.name!r} has no accelerators")
    return "\n".join(_Writer(profile, group, sm).lines()) + "\n"


class _Writer:
    def __init__(self, profile: Profile, host: Host, sm: int) -> None:
        self.profile, self.host, self.sm = profile, host, sm
        self.devices = [f"{g.name}{n}" for g in host.devices for n in range(g.count)]
        self.nics = [f"{g.name}{n}" for g in host.nics for n in range(g.count)]
        self.leaves = {*self.devices, *self.nics}
        self.wires = list(layout.host_wires(host))
        numa = {w.left if w.right == layout.CPU else w.right: w for w in self.wires if w.link.kind == "cpu"}
        self.roots: dict[str, Wire | None] = {name: numa[name] for name in sorted(numa, key=_natural)}
        if not self.roots or any(layout.CPU in wire[:2] and wire.link.kind == "pcie" for wire in self.wires):
            self.roots[layout.CPU] = None
        self.children: dict[str, list[Joined]] = {}
        self.beside: dict[str, list[str]] = {}
        self._grow()
        self.buses: dict[str, str] = {}

    def _grow(self) -> None:
        """The tree of PCI Express links below the processors, and which leaves are joined to each other as well."""
        near: dict[str, list[Joined]] = {}
        for wire in self.wires:
            left, right = wire.left, wire.right
            if wire.link.kind == "pcie" and left in self.leaves and right in self.leaves:
                self.beside.setdefault(left, []).append(right)
                self.beside.setdefault(right, []).append(left)
            elif wire.link.kind == "pcie":
                near.setdefault(left, []).append((right, wire))
                near.setdefault(right, []).append((left, wire))
        self.parent: dict[str, str] = dict.fromkeys(self.roots, "")
        reached = list(self.roots)
        for name in reached:
            for other, wire in near.get(name, []) if name not in self.leaves else ():
                if other == self.parent[name]:
                    continue
                if other in self.parent:
                    raise FormatError(
                        f"{other} of host {self.host.name!r} is reached over {name} and in another way too"
                    )
                self.parent[other] = name
                self.children.setdefault(name, []).append((other, wire))
                reached.append(other)
        for name in sorted(self.leaves - set(self.parent), key=_natural):
            raise FormatError(f"no PCI Express links lead from a processor of host {self.host.name!r} to {name}")

    def lines(self) -> Iterator[str]:
        yield f'<system version="{VERSION}">'
        below: dict[str, list[str]] = {}
        # All bus numbers are known before the first NVLink names one.
        for name in self.devices:
            self._bus(name)
        for root in self.roots:
            below[root] = list(self._below(root, "    "))
        for number, (root, wire) in enumerate(self.roots.items()):
            vendor, family, model = _processor(wire.link.rate.value * wire.lanes if wire else 0.0)
            what = {"numaid": number, "arch": "x86_64", "vendor": vendor, "familyid": family, "modelid": model}
            yield f"  <cpu{_attributes(what)}>"
            yield from below[root]
            yield "  </cpu>"
        yield "</system>"

    def _below(self, name: str, indent: str) -> Iterator[str]:
        done: set[str] = set()
        for child, wire in sorted(self.children.get(name, []), key=lambda joined: _natural(joined[0])):
            if child in done:
                continue
            together = self._together(child, name)
            done.update(together)
            if child not in self.leaves:
                yield from self._bridge(child, wire, indent, self._below(child, indent + "  "))
            elif len(together) == 1:
                yield from self._leaf(child, wire, indent)
            else:
                wires = dict(self.children[name])
                inner = (line for leaf in together for line in self._leaf(leaf, wires[leaf], indent + "  "))
                yield from self._bridge(f"above {child}", wire, indent, inner)

    def _together(self, leaf: str, parent: str) -> list[str]:
        """The leaves that are joined to one another below one parent, this one among them."""
        found = [leaf]
        for name in found:
            found += [n for n in self.beside.get(name, []) if self.parent[n] == parent and n not in found]
        return sorted(found, key=_natural)

    def _bridge(self, name: str, wire: Wire, indent: str, inner: Iterable[str]) -> Iterator[str]:
        yield f"{indent}<pci{self._pci(name, '0x060400', wire)}>"
        yield from inner
        yield f"{indent}</pci>"

    def _leaf(self, name: str, wire: Wire, indent: str) -> Iterator[str]:
        if name in self.devices:
            number = self.devices.index(name)
            yield f"{indent}<pci{self._pci(name, '0x030200', wire)}>"
            yield f"{indent}  <gpu{_attributes({'dev': number, 'sm': self.sm, 'rank': number, 'gdr': 1})}>"
            yield from (f"{indent}    {line}" for line in self._nvlinks(name))
            yield f"{indent}  </gpu>"
        else:
            yield f"{indent}<pci{self._pci(name, '0x020700', wire)}>"
            yield f"{indent}  <nic>"
            yield f"{indent}    <net{_attributes(self._net(name))}/>"
            yield f"{indent}  </nic>"
        yield f"{indent}</pci>"

    def _nvlinks(self, name: str) -> Iterator[str]:
        for left, right, link, lanes in self.wires:
            if link.kind != "nvlink" or name not in {left, right}:
                continue
            other = right if left == name else left
            if other in self.devices:
                what = {"target": self._bus(other), "count": lanes, "tclass": "0x030200"}
                yield f"<nvlink{_attributes(what)}/>"
            elif other in self.roots or other == layout.CPU:
                # Like NCCL's link of a processor to an accelerator on one module, with its rate in MB/s.
                yield f"<c2c{_attributes({'bw': round(link.rate.value / 1e6), 'count': link.lanes})}/>"
            else:
                what = {"target": NVSWITCH_BUS, "count": lanes, "tclass": NVSWITCH_CLASS}
                yield f"<nvlink{_attributes(what)}/>"

    def _pci(self, name: str, kind: str, wire: Wire) -> str:
        speed, width = pcie_generation(wire.link.rate.value, wire.lanes)
        what = {"busid": self._bus(name), "class": kind, "link_speed": f"{speed:.1f} GT/s PCIe", "link_width": width}
        return _attributes(what)

    def _net(self, name: str) -> dict[str, Any]:
        number = self.nics.index(name)
        group = next(g for g in self.host.nics if name[len(g.name) :].isdecimal() and name.startswith(g.name))
        speed = round(self._speed(group.name) * 8 / 1e6)
        guid = hex(2**32 + number) if group.rdma else hex(number)
        return {"name": name, "dev": number, "speed": speed, "port": 1, "guid": guid, "gdr": int(group.rdma)}

    def _speed(self, group: str) -> float:
        """Bytes per second of the slowest fabric link at a group of adapters; 0 where there is none."""
        fabric = self.profile.fabric
        links = [link.rate.value * link.lanes for link in fabric.links if group in link.ends]
        if fabric.topology and fabric.topology.ends == group:
            links.append(fabric.topology.link.rate.value * fabric.topology.link.lanes)
        return min(links, default=0.0)

    def _bus(self, name: str) -> str:
        if name not in self.buses:
            domain, bus = divmod(len(self.buses) + 1, 0xF0)
            self.buses[name] = f"{domain:04x}:{bus:02x}:00.0"
        return self.buses[name]


def pcie_generation(rate: float, lanes: int) -> tuple[float, int]:
    """(GT/s, lanes) of the PCI Express link nearest to a rate in bytes per second and per lane of a profile.

    A profile may give the rate of the whole link as one lane; of links equally near the widest but x32 is taken.
    """
    exact = {speed: pcie_wire("", "", speed, 1).rate or 0.0 for speed in SPEEDS}
    for speed, lane in exact.items():
        if abs(lane - rate) < 0.02 * lane:
            return speed, lanes
    whole = rate * lanes
    return min(
        ((speed, width) for width in WIDTHS for speed in SPEEDS),
        key=lambda link: (round(abs(exact[link[0]] * link[1] / whole - 1), 2), WIDTHS.index(link[1])),
    )


def _processor(rate: float) -> tuple[str, int, int]:
    nearest = min(PROCESSORS, key=lambda known: abs(known[0] - rate))
    return nearest[1:] if rate else ("AuthenticAMD", 23, 49)


def _natural(name: str) -> tuple[str, int]:
    group = name.rstrip("0123456789")
    return group, int(name[len(group) :] or 0)


def _attributes(values: dict[str, Any]) -> str:
    return "".join(f" {name}={quoteattr(str(value))}" for name, value in values.items())
