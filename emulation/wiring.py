"""The part of a profile that says what joins things: links within a host, and a fabric by its shape.

`topology` lays links of a host out as ports, `topologies` those of a fabric.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from emulation.figures import DurationFigure, FractionFigure, Grade, RateFigure, corrected, weakest
from emulation.units import Strict

LinkKind = Literal["nvlink", "pcie", "cpu", "network"]
"""What a link is made of; collectives pay a latency per step that depends on it."""


class Wiring(Strict):
    """What a full-duplex link can do; each direction has the whole rate."""

    rate: RateFigure
    """Per lane and direction."""
    lanes: int = Field(default=1, ge=1, le=64)
    efficiency: FractionFigure | None = None
    latency: DurationFigure

    @property
    def capacity(self) -> float:
        """Bytes per second that payload gets in one direction."""
        return self.over(self.lanes)

    def over(self, lanes: int) -> float:
        """The same over this many lanes."""
        return self.rate.value * lanes * (self.efficiency.value if self.efficiency else 1.0)

    @property
    def grade(self) -> Grade:
        """Weakest of the corrected rate and the latency."""
        rate = corrected(self.rate.grade, self.efficiency.grade) if self.efficiency else self.rate.grade
        return weakest((rate, self.latency.grade))


class Link(Wiring):
    """Full-duplex links of one kind between two groups.

    Give `ends` (two group names, joined as `pairing` says) or `pairs` (members by name, `[gpu0, gpu3]`).
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")
    kind: LinkKind
    ends: list[str] = Field(default_factory=list, max_length=2)
    pairing: Literal["all", "index", "block", "mesh", "ring", "cube-mesh"] = "all"
    """Of two groups, `all`: every member of one with every member of the other; `index`: the n-th with the n-th;
    `block`: consecutive members of the larger share one of the smaller. Of one group (`ends` names it twice), `mesh`:
    every two members; `ring`: each with the next; `cube-mesh`: eight as a hybrid cube mesh, some with twice the
    lanes."""
    pairs: list[list[str]] = Field(default_factory=list)


class FabricWiring(Wiring):
    """Links of a fabric's topology."""

    kind: LinkKind = "network"


class FabricTopology(Strict):
    """A fabric by its shape: switches and links follow from the number of hosts (`emulation.topologies`).

    Switches are `fabric/switch0`, `fabric/leaf3`, `fabric/spine0`, `fabric/core7` or `fabric/router5`.
    """

    kind: Literal["flat", "leaf-spine", "fat-tree", "torus"]
    ends: str = "nic"
    """The group of the hosts' ports that hang on it."""
    link: FabricWiring
    """From a port to its switch, and between switches if there is no `trunk`."""
    trunk: FabricWiring | None = None
    """Between switches."""
    leaf_ports: int | None = Field(default=None, ge=1, le=4096)
    """Ports of a leaf that lead to hosts."""
    oversubscription: float = Field(default=1, ge=1)
    """Host ports of a leaf per uplink of it."""
    spines: int | None = Field(default=None, ge=1, le=4096)
    """Spines (of a pod); absent: as many as a leaf has uplinks. With fewer, each uplink is several lanes wide."""
    rails: bool = False
    """The n-th ports of all hosts of a unit (as many hosts as a leaf has ports) share a leaf."""
    levels: Literal[2, 3] = 2
    """Of a fat tree: leaves and spines, or pods of them under cores."""
    pod_leaves: int | None = Field(default=None, ge=1, le=4096)
    """Leaves of a pod."""
    routing: Literal["hashed", "by-destination"] = "hashed"
    """Which of equal ways is taken: by a hash of seed, ends and label (ECMP), or by the number of the target's port."""
    shape: list[Annotated[int, Field(ge=2, le=65536)]] | None = Field(default=None, min_length=1, max_length=3)
    """Of a torus: routers in each dimension."""
