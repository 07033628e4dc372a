"""What a file tells of a host: accelerators, adapters, switches and what joins them, to be put into a profile.

Files that describe a host (NCCL's topology, `nvidia-smi topo -m`) do not say what its processors compute or what
software costs. So what they tell is a *fragment*: it replaces the devices, adapters, switches and links of the first
host of a profile that has the rest, and leaves the rest alone. What a fragment leaves open of a link (its rate in a
topology matrix, its latency always) is taken from the profile's own link of the same kind.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from emulation.io import FormatError
from emulation.units import RATE, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from emulation.wiring import LinkKind

NCCL = "nccl-topology"
NCCL_SOURCE = "bandwidths of NCCL's topology model (src/graph/topo.h and topo.cc)"
PCIE = "pcie-spec"
PCIE_SOURCE = "PCI Express base specification: transfers per second and encoding of each generation"
ASSUMED = "assumed-latency"
ASSUMED_SOURCE = "an order of magnitude of a link's latency, where neither file nor profile says it"
LATENCY = {"nvlink": "350 ns", "pcie": "400 ns", "cpu": "100 ns"}
UNNAMED_CPU_RATE = 10e9
"""Bytes per second between NUMA nodes of processors that a file does not name: NCCL's figure for Skylake."""


class Wire(NamedTuple):
    """One full-duplex link between two members of the host; what is None the file does not say."""

    kind: LinkKind
    left: str
    right: str
    lanes: int | None = None
    rate: float | None = None
    """Bytes per second, per lane and direction."""
    efficiency: float | None = None
    source: str = ""
    """Of the rate: a key of the fragment's sources."""
    grade: str = "datasheet"


@dataclass
class Fragment:
    """What was found."""

    origin: str
    """What it was read from, for the profile's sources."""
    gpus: int = 0
    nics: dict[str, list[float | None]] = field(default_factory=dict)
    """Group of adapters -> speed of each, bytes per second; `ethernet` is what does no RDMA beside `nic` that does."""
    rdma: bool = True
    """Whether group `nic` does RDMA."""
    switches: dict[str, int] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What had to be assumed, for a person."""

    def host(self) -> dict[str, Any]:
        """Groups and links in the form of a profile's host, as far as the file tells; for comparing two fragments."""
        return {
            "gpus": self.gpus,
            "nics": {name: len(speeds) for name, speeds in self.nics.items()},
            "rdma": self.rdma,
            "switches": self.switches,
            "links": [[list(wire[:1] + wire[3:]), pairs] for wire, pairs in self._grouped()],
        }

    def onto(self, document: Mapping[str, Any], *, name: str) -> dict[str, Any]:
        """A profile document like `document` whose first host is this one.

        Args:
            document: a whole profile, as YAML gives it; it stays as it is.
            name: of the new profile.

        Raises:
            FormatError: the profile has no accelerators, or no link from which a rate could be taken.
        """
        made = copy.deepcopy(dict(document))
        host = made["hosts"][0]
        if not host.get("devices"):
            raise FormatError(f"profile {made.get('name')!r} has no accelerators; give one with those of this host")
        known = {link["kind"]: link for link in reversed(host.get("links", []))}
        links = [self._link(wire, pairs, known, made["name"]) for wire, pairs in self._grouped()]
        kinds: dict[str, int] = {}
        for link in links:
            kinds[link["kind"]] = count = kinds.get(link["kind"], 0) + 1
            link["name"] = link["kind"] if count == 1 else f"{link['kind']}-{count}"
        host["devices"] = [{**host["devices"][0], "name": "gpu", "count": self.gpus}]
        host["nics"] = [
            {"name": group, "count": len(speeds), "rdma": self.rdma and group == "nic"}
            for group, speeds in self.nics.items()
        ]
        host["switches"] = [{"name": n, "count": count} for n, count in self.switches.items()]
        host["links"] = links
        # They name members that may not be there any more.
        made.pop("routes", None)
        self._outside(made, host)
        made["name"] = name
        made["description"] = f"{document.get('description') or document['name']} -- the host as in {self.origin}"
        made["sources"] = dict(document["sources"]) | {NCCL: NCCL_SOURCE, PCIE: PCIE_SOURCE, ASSUMED: ASSUMED_SOURCE}
        used = _sources(made)
        made["sources"] = {
            key: text for key, text in made["sources"].items() if key in used or key in document["sources"]
        }
        return made

    def _grouped(self) -> list[tuple[Wire, list[list[str]]]]:
        """Wires that are alike in all but their ends, with the ends of all of them."""
        alike: dict[tuple[Any, ...], tuple[Wire, list[list[str]]]] = {}
        for wire in self.wires:
            alike.setdefault((wire.kind, *wire[3:]), (wire, []))[1].append([wire.left, wire.right])
        return [(alike[key][0], sorted(alike[key][1], key=_natural)) for key in sorted(alike, key=str)]

    def _link(self, wire: Wire, pairs: list[list[str]], known: Mapping[str, Any], profile: str) -> dict[str, Any]:
        like = known.get(wire.kind)
        link: dict[str, Any] = {"name": "", "kind": wire.kind, "pairs": pairs}
        if wire.rate is not None:
            link["rate"] = {"value": f"{wire.rate!r} B/s", "grade": wire.grade, "source": wire.source}
            link["lanes"] = wire.lanes or 1
            if wire.efficiency is not None:
                link["efficiency"] = {"value": wire.efficiency, "grade": "prior", "source": NCCL}
        elif like:
            link |= {key: copy.deepcopy(like[key]) for key in ("rate", "efficiency") if like.get(key) is not None}
            link["lanes"] = wire.lanes or like.get("lanes", 1)
        elif wire.kind == "cpu":
            link["rate"] = {"value": f"{UNNAMED_CPU_RATE!r} B/s", "grade": "prior", "source": NCCL}
        else:
            raise FormatError(f"profile {profile!r} has no {wire.kind} link in its first host to take the rate from")
        assumed = {"value": LATENCY[wire.kind], "grade": "prior", "source": ASSUMED} if wire.kind in LATENCY else None
        link["latency"] = copy.deepcopy(like["latency"]) if like else assumed
        return link

    def _outside(self, made: dict[str, Any], host: dict[str, Any]) -> None:
        """Fit the fabric: its rate to the adapters', and away with it where there are none."""
        if not self.nics:
            host["count"] = 1
            made["hosts"] = made["hosts"][:1]
            made.pop("fabric", None)
            return
        if not self.rdma:
            host.get("software", {}).pop("one_sided", None)
        fabric = made.get("fabric", {})
        shape = fabric.get("topology")
        ends = [(link.get("ends", []), link) for link in fabric.get("links", [])]
        ends += [([shape.get("ends", "nic")], shape["link"])] if shape else []
        for groups, link in ends:
            for group, speeds in self.nics.items():
                slowest = min((speed for speed in speeds if speed), default=None)
                if group in groups and slowest and slowest != parse(link["rate"]["value"], RATE) * link.get("lanes", 1):
                    link["rate"] = {"value": f"{slowest!r} B/s", "grade": "datasheet", "source": link["rate"]["source"]}
                    link["lanes"] = 1


def chain_rate(speeds: Iterable[tuple[float, int]]) -> tuple[float, int]:
    """(transfers per second in GT/s, lanes) of the narrowest of some PCI Express links one after another."""
    return min(speeds, key=lambda link: (link[0] * link[1], link))


def pcie_wire(left: str, right: str, speed: float, width: int) -> Wire:
    """A PCI Express link of `speed` GT/s per lane and `width` lanes.

    The rate is the specification's after encoding (8b/10b to generation 2, 128b/130b to 5, flits of 242 in 256 from 6
    on); the efficiency makes of it the payload that NCCL counts on, 0.75 of the raw bits.
    """
    encoding = 0.8 if speed <= 5 else 128 / 130 if speed <= 32 else 242 / 256
    return Wire("pcie", left, right, width, float(round(speed * 1e9 / 8 * encoding)), round(0.75 / encoding, 6), PCIE)


def _natural(pair: Iterable[str]) -> list[tuple[int, str]]:
    """A key by which gpu2 comes before gpu10."""
    return [(len(name), name) for name in pair]


def _sources(value: Any) -> set[str]:
    """Every source that some figure names."""
    if isinstance(value, dict):
        found = {value["source"]} if isinstance(value.get("source"), str) else set()
        return found.union(*(_sources(item) for item in value.values()))
    return set().union(*map(_sources, value)) if isinstance(value, list) else set()
