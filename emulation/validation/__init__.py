"""Measurements made by others, and how well the emulator predicts the rows it was not fitted to.

Each data set is one module (`allreduce`) with the four functions of `DataSet`: it reads rows from a folder, says how
they are split, and fits a predictor. `check` does the rest the same way for all of them: no parameter is tuned on the
rows it is scored on, because `fit` sees nothing else than the rows that its split gives it.

The data are not part of this repository; a data set whose folder is absent is reported as such.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

DATA_SETS = ("allreduce", "aceso", "megatron")
"""Modules of this package, in the order they are reported."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    family: str
    """What is split and scored together: `all-reduce, 8 GPUs`, `18.4B on 256 GPUs`."""
    features: Mapping[str, float | str]
    """All that a prediction may use."""
    seconds: float
    """Measured."""
    choice: str = ""
    """Rows of one non-empty choice are plans for the same job: the regret of picking one by prediction is scored."""

    @property
    def key(self) -> tuple[str, tuple[tuple[str, float | str], ...]]:
        """What was measured; equal for two measurements of the same thing."""
        return self.family, tuple(sorted(self.features.items()))


@dataclass(frozen=True)
class Prediction:
    """Seconds, and the band in which four truths out of five are claimed to lie."""

    seconds: float
    low: float
    high: float

    @classmethod
    def within(cls, seconds: float, spread: tuple[float, float]) -> Prediction:
        """With a band of these half-widths in log space (towards faster, towards slower)."""
        return cls(seconds, seconds * math.exp(-spread[0]), seconds * math.exp(spread[1]))


@dataclass(frozen=True)
class Split:
    """Which rows fit and which are scored."""

    name: str
    """Stable: scores of one name are compared over time (`half of each family`)."""
    fit: Sequence[Row]
    scored: Sequence[Row]
    labels: Callable[[Row], Sequence[str]] = field(default=lambda row: (row.family,))
    """The lines of the score table a row belongs to, beside that over all rows."""
    drawn: bool = True
    """Whether another seed would give another split."""


class DataSet(Protocol):
    """What a module of this package offers."""

    def rows(self, folder: Path) -> list[Row]:
        """All measurements under a data folder, in a fixed order; empty where the files are absent.

        Raises:
            ValueError: a file has another layout; the message names it and the line.
        """

    def splits(self, rows: Sequence[Row], seed: int) -> list[Split]:
        """The ways in which these rows are held out, random parts drawn with `seed`."""

    def fit(self, rows: Sequence[Row], seed: int) -> Callable[[Row], Prediction | None]:
        """A predictor from these rows alone: its parameters, its band, and every choice between models.

        It gives None for a row of which the model says nothing; such rows are counted and not scored.
        """


def load(name: str) -> DataSet:
    """The module of a data set."""
    return cast("DataSet", importlib.import_module(f"emulation.validation.{name}"))


def halves(rows: Sequence[Row], seed: int, part: float = 0.5) -> tuple[list[Row], list[Row]]:
    """Each family split at random; the first list gets `part` of it, at least one row, and both keep their order.

    The draw of a family depends on the seed and its name alone, so that other families do not change it.
    """
    from numpy.random import Generator, Philox

    first: list[Row] = []
    second: list[Row] = []
    for family in dict.fromkeys(row.family for row in rows):
        members = [row for row in rows if row.family == family]
        key = int.from_bytes(hashlib.sha256(f"{seed}/{family}".encode()).digest()[:16], "big")
        order = Generator(Philox(key=key)).permutation(len(members))
        chosen = set(order[: max(1, round(part * len(members)))].tolist())
        for index, row in enumerate(members):
            (first if index in chosen else second).append(row)
    return first, second
