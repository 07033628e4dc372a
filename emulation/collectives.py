"""The part of a profile that says what collectives take: the options of a library, or tables that were measured.

`cost.collectives` turns options into times, `cost.tables` tables.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from emulation.figures import Figure, Grade
from emulation.refusal import refuse
from emulation.residuals import Residuals, check_rising
from emulation.units import Bytes, Duration, Fraction, Strict
from emulation.wiring import LinkKind

Operation = Literal["all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce", "all-to-all", "send"]
"""What a measured table can be of."""


class CollectiveOption(Strict):
    """One way a library can carry out a collective; the cheapest applicable one is used.

    All its figures have one grade and source.
    """

    name: str
    algorithm: Literal["ring", "tree", "binary-tree", "halving-doubling", "two-level", "nvls"]
    base: Duration
    """Paid once per collective."""
    step: dict[LinkKind, Duration] = Field(min_length=1)
    """Latency of one step, by the kind of the slowest link it crosses; a kind that is absent cannot be used."""
    bandwidth: Fraction = Field(gt=0, le=1)
    """Part of the links' capacity this protocol reaches."""
    grade: Grade
    source: str


class TablePoint(Strict):
    """One row of a `CollectiveTable`."""

    bytes: Bytes = Field(gt=0)
    """Buffer of one rank."""
    time: Duration = Field(gt=0)
    """From the start on the last rank to the end on the last rank, nothing else moving."""


class CollectiveTable(Figure):
    """What one collective takes on one size of group, by buffer size; preferred over the library's options.

    Read by `cost.tables`: between the points linear in bytes (a latency and a bandwidth of their own for every
    stretch), and for group sizes between or beside those of several tables from the tables together.
    """

    op: Operation
    ranks: int = Field(ge=2)
    hosts: int = Field(default=1, ge=1)
    """Hosts the ranks are spread over, equally many on each."""
    link: LinkKind
    """Kind of the farthest link within the group."""
    points: list[TablePoint] = Field(min_length=1)
    processor: Fraction = Field(default=0.0, ge=0, le=1)
    """Part of a core that each rank keeps busy meanwhile, where ranks are processes on a host's cores."""
    residuals: list[Residuals] = Field(default_factory=list)
    """What readings of it were off by, by bytes; absent: the band of the grade."""

    @model_validator(mode="after")
    def _rising(self) -> CollectiveTable:
        for index, (left, right) in enumerate(pairwise(self.points), start=1):
            if left.bytes >= right.bytes:
                refuse(("points", index, "bytes"), "the points of a table must have rising, distinct `bytes`")
            if left.time > right.time:
                refuse(("points", index, "time"), "more bytes cannot take less time; fit the table to the sweep")
        if self.ranks % self.hosts:
            refuse(("hosts",), f"{self.ranks} ranks cannot be spread equally over {self.hosts} hosts")
        check_rising(self.residuals)
        return self


class CollectivePrior(Strict):
    """Options by the constants of a library's own tuner, in place of a list (`emulation.cost.nccl_tuner`)."""

    prior: Literal["nccl"]
    generation: Literal["volta", "ampere", "hopper", "blackwell"]
    """Of the GPUs; from hopper on, NVLink switches add (NVLS)."""
    source: str = "nccl"
