"""From NCCL's topology file to a fragment of a profile.

What only passes on is left away: bridges with one thing below them, and the PCI side of NVSwitches. All NVSwitches of a
host are one switch, as in NCCL, since a processor spreads what it sends over all of them. Several NUMA nodes become
switches between their devices and the host's processor. Members are numbered by what NCCL calls them (`dev`), and
switches by the least of what is below them, so that two descriptions of one host give one fragment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emulation.io import FormatError
from emulation.io.host_fragment import NCCL, Fragment, Wire, chain_rate, pcie_wire
from emulation.io.nccl_xml.elements import Element, below, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 1
"""Of the file, as NCCL requires it (NCCL_TOPO_XML_VERSION)."""
NVSWITCH_CLASS, CPU_CLASS, GPU_CLASS = "0x068000", "0x068001", "0x03"
NVLINK_RATES = ((100, 40.1e9), (90, 20.6e9), (70, 20.0e9), (60, 18.0e9))
"""(compute capability from which on, bytes per second of one NVLink and direction): NCCL, src/graph/topo.h."""
DEFAULT_SPEED, DEFAULT_WIDTH = 8.0, 16
"""What NCCL takes where the file does not say: generation 3, sixteen lanes."""
DEFAULT_NET_MBITS = 10_000
"""What NCCL takes for an adapter that does not know its speed."""
LEAST_GUID = 2**16
"""Verbs adapters have 64-bit GUIDs; NCCL's socket transport numbers interfaces from 0."""


@dataclass
class Place:
    """A node of the PCI tree: a switch with what is below it, or a device."""

    name: str = ""
    """Of a device; switches are named when all are known."""
    speed: float = 0.0
    """GT/s of its link upwards; 0 for none."""
    width: int = 0
    children: list[Place] = field(default_factory=list)

    def least(self) -> tuple[int, int]:
        """What it is ordered by: the least device in it, accelerators first."""
        if not self.children:
            group, number = _split(self.name)
            return ("gpu", "nic", "ethernet").index(group), number
        return min(child.least() for child in self.children)


def recognises(text: str) -> bool:
    """Whether a text looks like such a file."""
    return bool(re.search(r"<system\b[^>]*\bversion=", text))


def read(path: Path) -> Fragment:
    """Read a topology file of one host.

    Raises:
        FormatError: not such a file, another version, several hosts, no accelerator, NVLinks on whose number their two
            ends disagree, and whatever is not well-formed. Names file and line.
    """
    system = parse(path)
    if system.name != "system":
        raise system.refuse("not a topology of NCCL, which begins with <system>")
    if (version := system.whole("version")) != VERSION:
        raise system.refuse(f"file version {version}; NCCL writes and reads version {VERSION}")
    _check_bus_ids(system)
    return _Reader(path, system).fragment()


class _Reader:
    def __init__(self, path: Path, system: Element) -> None:
        self.path = path
        self.cpus = system.all("cpu")
        if len({cpu.attributes.get("host_hash") for cpu in self.cpus}) > 1:
            raise system.refuse("describes several hosts; give the dump of one")
        self.found = Fragment(f"{path.name} (NCCL topology)")
        gpus = sorted(below(system, "gpu"), key=lambda gpu: gpu.whole("dev"))
        if not gpus:
            raise system.refuse("no <gpu>; a dump (NCCL_TOPO_DUMP_FILE) has them, a file of hints has not")
        self.gpu_names = {id(gpu): f"gpu{number}" for number, gpu in enumerate(gpus)}
        self.found.gpus = len(gpus)
        self.net_names = self._name_nets(system)

    def _name_nets(self, system: Element) -> dict[int, str]:
        """Ports by number; those without one are ignored by NCCL as well."""
        names: dict[int, str] = {}
        nets = sorted((n for n in below(system, "net") if "dev" in n.attributes), key=lambda n: n.whole("dev"))
        self.found.rdma = any(net.whole("guid", 0) >= LEAST_GUID for net in nets)
        for net in nets:
            group = "ethernet" if self.found.rdma and net.whole("guid", 0) < LEAST_GUID else "nic"
            speeds = self.found.nics.setdefault(group, [])
            names[id(net)] = f"{group}{len(speeds)}"
            mbits = net.whole("speed", 0)
            speeds.append((mbits if mbits > 0 else DEFAULT_NET_MBITS) * 1e6 / 8)
        return names

    def fragment(self) -> Fragment:
        trees = [(cpu, [p for child in cpu.children for p in self._places(child, [])]) for cpu in self.cpus]
        trees = [(cpu, places) for cpu, places in trees if places]
        trees.sort(key=lambda tree: min(place.least() for place in tree[1]))
        roots = ["cpu"] if len(trees) == 1 else [f"numa{number}" for number in range(len(trees))]
        if len(trees) > 1:
            self.found.switches["numa"] = len(trees)
            for root, (cpu, _) in zip(roots, trees, strict=True):
                self.found.wires.append(Wire("cpu", root, "cpu", 1, _cpu_rate(cpu), None, NCCL, "prior"))
        self.switches = 0
        self.wires: list[Wire] = []
        for root, (_, places) in zip(roots, trees, strict=True):
            self._join(root, places)
        self.found.wires += self.wires
        if self.switches:
            self.found.switches["pcie-switch"] = self.switches
        self._add_nvlinks([(root, cpu) for root, (cpu, _) in zip(roots, trees, strict=True)])
        return self.found

    def _places(self, element: Element, above: Sequence[tuple[float, int]]) -> Iterator[Place]:
        """What hangs below the parent of an element: usually one thing, over the links `above` and its own."""
        if element.name == "nic":
            yield from (Place(self.net_names[id(net)]) for net in element.all("net") if id(net) in self.net_names)
            return
        if element.name != "pci":
            return
        links = [*above, _link(element)]
        leaves = [Place(self.gpu_names[id(gpu)]) for gpu in element.all("gpu")]
        leaves += [place for nic in element.all("nic") for place in self._places(nic, [])]
        useful = [child for child in element.all("pci") if _leads_somewhere(child, self.net_names)]
        if len(useful) + len(leaves) == 1:
            if useful:
                yield from self._places(useful[0], links)
            else:
                leaves[0].speed, leaves[0].width = chain_rate(links)
                yield leaves[0]
            return
        speed, width = chain_rate(links)
        for leaf in leaves:
            # Ports of one adapter share its way to the host; each alone could fill it.
            leaf.speed, leaf.width = _link(element)
        children = leaves + [place for child in useful for place in self._places(child, [])]
        if children:
            yield Place("", speed, width, children)

    def _join(self, parent: str, places: Sequence[Place]) -> None:
        for place in sorted(places, key=Place.least):
            if place.children:
                place.name = f"pcie-switch{self.switches}"
                self.switches += 1
            # An adapter right below the processor has no link of its own in the file.
            speed, width = (place.speed, place.width) if place.width else (DEFAULT_SPEED, DEFAULT_WIDTH)
            self.wires.append(pcie_wire(place.name, parent, speed, width))
            self._join(place.name, place.children)

    def _add_nvlinks(self, roots: Sequence[tuple[str, Element]]) -> None:
        to_switch: dict[str, tuple[int, float]] = {}
        pairs: dict[tuple[str, str], dict[str, tuple[int, float, Element]]] = {}
        at_bus = {pci.text("busid"): gpu for _, cpu in roots for pci in below(cpu, "pci") for gpu in pci.all("gpu")}
        for root, cpu in roots:
            for gpu in below(cpu, "gpu"):
                name = self.gpu_names[id(gpu)]
                for link in gpu.all("nvlink"):
                    count, rate = link.whole("count"), nvlink_rate(gpu.whole("sm"))
                    if count < 1:
                        raise link.refuse(f"count={count} links")
                    match link.text("tclass"):
                        case kind if kind.startswith(NVSWITCH_CLASS):
                            to_switch[name] = to_switch.get(name, (0, rate))[0] + count, rate
                        case kind if kind.startswith(CPU_CLASS):
                            self.found.wires.append(Wire("nvlink", name, root, count, rate, None, NCCL, "prior"))
                        case kind if kind.startswith(GPU_CLASS):
                            other = at_bus.get(link.text("target"))
                            if other is None:
                                self.found.notes.append(
                                    f"NVLinks of {name} to {link.text('target')}, which is not here"
                                )
                                continue
                            ends = sorted((name, self.gpu_names[id(other)]), key=_split)
                            pairs.setdefault((ends[0], ends[1]), {})[name] = count, rate, link
                        case kind:
                            raise link.refuse(f"tclass={kind!r} is no accelerator, NVSwitch or processor")
                for link in gpu.all("c2c"):
                    rate = link.whole("bw") * 1e6
                    self.found.wires.append(Wire("nvlink", name, root, link.whole("count"), rate, None, NCCL, "prior"))
        for pair in sorted(pairs, key=lambda ends: [_split(end) for end in ends]):
            self._add_pair(pair, pairs[pair])
        for name in sorted(to_switch, key=_split):
            lanes, rate = to_switch[name]
            self.found.switches["nvswitch"] = 1
            self.found.wires.append(Wire("nvlink", name, "nvswitch0", lanes, rate, None, NCCL, "prior"))

    def _add_pair(self, ends: tuple[str, str], sides: dict[str, tuple[int, float, Element]]) -> None:
        counts = {end: sides[end][0] if end in sides else 0 for end in ends}
        if counts[ends[0]] != counts[ends[1]]:
            link = next(iter(sides.values()))[2]
            said = " and ".join(f"{count} from {end}" for end, count in counts.items())
            raise link.refuse(f"the two ends disagree on their NVLinks: {said}")
        count, rate, _ = sides[ends[0]]
        self.found.wires.append(Wire("nvlink", *ends, count, rate, None, NCCL, "prior"))


def nvlink_rate(capability: int) -> float:
    """Bytes per second of one NVLink and direction, by compute capability (`sm`), as NCCL counts."""
    if capability == 86:
        return 12.0e9
    return next((rate for least, rate in NVLINK_RATES if capability >= least), 20.0e9)


def _cpu_rate(cpu: Element) -> float:
    """Bytes per second between NUMA nodes, by the processor, as NCCL counts (src/graph/topo.h and topo.cc)."""
    family, model = cpu.whole("familyid", 0), cpu.whole("modelid", 0)
    match cpu.attributes.get("arch"), cpu.attributes.get("vendor"):
        case "ppc64", _:
            return 32e9
        case "arm64", _:
            return 6e9
        case "x86_64", "GenuineIntel" if family == 6:
            emerald = model >= 0xCF or model in {0xAD, 0xAE, 0xAF}
            return 40e9 if emerald else 22e9 if model >= 0x8F else 10e9 if model >= 0x55 else 6e9
        case "x86_64", "AuthenticAMD":
            # Families as CPUID gives them, and as older versions of NCCL wrote them.
            return 32e9 if family in {26, 0xBF} else 24e9 if family in {25, 0xAF} else 16e9
    return 6e9


def _link(pci: Element) -> tuple[float, int]:
    """(GT/s, lanes) of the link above a PCI device."""
    text = pci.attributes.get("link_speed", "")
    found = re.match(r"(\d+(?:\.\d+)?) GT/s", text)
    width = pci.whole("link_width", 0)
    if text and text != "Unknown" and not found:
        raise pci.refuse(f"link_speed={text!r}; expected one such as '16.0 GT/s PCIe'")
    speed = float(found[1]) if found else DEFAULT_SPEED
    if not 2.5 <= speed <= 64 or not 0 <= width <= 64:
        raise pci.refuse(f"no PCI Express link has {speed:g} GT/s and {width} lanes")
    return speed, width or DEFAULT_WIDTH


def _leads_somewhere(pci: Element, nets: dict[int, str]) -> bool:
    ports = pci.all("nic") and any(id(net) in nets for nic in pci.all("nic") for net in nic.all("net"))
    return bool(pci.all("gpu")) or bool(ports) or any(_leads_somewhere(child, nets) for child in pci.all("pci"))


def _split(name: str) -> tuple[str, int]:
    group = name.rstrip("0123456789")
    return group, int(name[len(group) :])


def _check_bus_ids(system: Element) -> None:
    """Refuse two devices at one place."""
    seen: dict[str, int] = {}
    for pci in below(system, "pci"):
        busid = pci.text("busid")
        if busid in seen:
            raise FormatError(f"{pci.path}:{pci.line}: busid {busid} stands on line {seen[busid]} already")
        seen[busid] = pci.line
