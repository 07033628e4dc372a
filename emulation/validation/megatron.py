"""Megatron's iteration times on A100: on one node, and on clusters of 64 to 512.

The rows were published with vTrain (Bang et al., MICRO 2024). Three questions are asked of them, by what is held out:

``clusters, half of each family``   families are models; fitted on half of a family's rows and all of one node
``clusters, to 512 GPUs``           fitted on clusters up to 256 GPUs and all of one node
``one node, half of each family``   families are (GPUs, hidden size); fitted on half of a family's rows

A prediction is the emulator's step time on a profile with the fitted figures, times a discrepancy learned from the
residuals of the rows that were fitted (`calibrate.discrepancy`):

* on clusters, pipelines that share a host: a term in log2(replicas of a stage per node), for all families and for each.
  Rows of 18 and 39 billion parameters in which a host has parts of several replicas take 10-40 % longer than
  anything that is modelled, others with the same messages and the same layout do not; the data do not say why;
* on one node, the shape (hidden size, tensor-parallel ranks, micro-batch): which kernels a library picks for a shape
  makes it some per cent faster or slower than its neighbours.

Bands are quantiles of cross-validated residuals. For a family (on one node: a shape) that was not among the fitted rows
they are those of families that were left out; where there are so few that leaving one out takes away far more than a
new one lacks, together with the others.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from emulation.calibrate.discrepancy import Discrepancy, fit_discrepancy
from emulation.validation import Prediction, Row, Split, allreduce, halves
from emulation.validation.megatron_cluster import NODE, Figures, cluster
from emulation.validation.megatron_fit import Case, ClosedForm, Messages, fit_figures
from emulation.workloads.training import Plan, step_seconds
from emulation.workloads.transformer import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from pathlib import Path

    from emulation.collectives import CollectiveTable

FOLDER = "megatron-a100"
COLUMNS = (
    "# GPUs",
    "global batch",
    "micro batch",
    "hidden size",
    "attention heads",
    "# layers",
    "sequence length",
    "tensor parallelism",
    "data parallelism",
    "pipeline parallelism",
    "iteration time (ms)",
)
NAMES = ("gpus", "batch", "micro_batch", "hidden", "heads", "layers", "sequence", "tensor", "data", "pipeline")
SHARED, SHARED_FAMILY, SHAPE = 0.05, 0.20, 0.10
"""Scales of the discrepancy's effects, in logarithms."""
NOISE_CLUSTER, NOISE_NODE = 0.08, 0.03
"""Scales of what is left."""
FOLDS = 5
FEW = 8
"""Residuals below which a group has no quantiles of its own."""
CLAIMED = 0.8
"""Part of the truths that a band is to cover."""
WIDE = 0.5
"""Half-width of a band, in logarithms, where nothing is known of residuals."""
SMALL = 256
"""GPUs of the clusters that larger ones are predicted from."""


def rows(folder: Path) -> list[Row]:
    """Iteration times of clusters and of one node, and the all-reduce tables, which are fitted and never scored here.

    Raises:
        ValueError: a file has another layout; the message names it and the line.
    """
    place = folder / FOLDER
    times = [*_read(place / "multi_node.csv", ("Parameters (billion)",)), *_read(place / "single_node.csv", ())]
    return [*times, *allreduce.rows(folder)] if times else []


def splits(rows: Sequence[Row], seed: int) -> list[Split]:
    """The three splits of the module's description; tables of collectives are among the fitted rows of each."""
    steps, tables = _steps(rows), _tables(rows)
    clusters, node = [row for row in steps if _several(row)], [row for row in steps if not _several(row)]
    fitted, scored = halves(clusters, seed)
    small = [row for row in clusters if float(row.features["gpus"]) <= SMALL]
    large = [row for row in clusters if float(row.features["gpus"]) > SMALL]
    fitted_node, scored_node = halves(node, seed)
    found = [
        Split("clusters: a random half of each model", [*fitted, *node, *tables], scored),
        Split(f"clusters: above {SMALL} GPUs from up to {SMALL}", [*small, *node, *tables], large, drawn=False),
        Split("one node: a random half of each family", [*fitted_node, *tables], scored_node),
    ]
    return [split for split in found if split.scored and _steps(split.fit)]


def fit(rows: Sequence[Row], seed: int, *, simulate: bool = True) -> Callable[[Row], Prediction | None]:
    """Figures, discrepancy and residuals of these rows; a prediction simulates the row's step with them.

    Clusters are predicted from figures fitted to clusters and nodes together, nodes from those fitted to nodes alone.
    With `simulate` false the closed form that was fitted stands in for the emulator: hundreds of times faster, and the
    same within some tenths of a per cent (held to it by a test).
    """
    messages = Messages(fitted_tables(rows))
    steps = _steps(rows)

    @cache
    def model(several: bool) -> Model | None:
        own = [row for row in steps if _several(row) == several]
        return Model.fitted(steps if several else own, several, messages, seed, simulate) if own else None

    def predict(row: Row) -> Prediction | None:
        known = model(_several(row)) if "gpus" in row.features else None
        return known.predict(row) if known else None

    return predict


@dataclass(frozen=True)
class Estimate:
    """What is fitted to some rows."""

    figures: Figures
    discrepancy: Discrepancy

    @classmethod
    def fitted(
        cls, steps: Sequence[Row], form: ClosedForm, own: Callable[[Row], bool], start: Figures | None = None
    ) -> Estimate:
        """Figures from all `steps`, whose closed form is given, and the discrepancy of those of the `own` kind."""
        figures = fit_figures(form, start)
        pairs = [(row, time) for row, time in zip(steps, form.times(figures), strict=True) if own(row)]
        residuals = [math.log(row.seconds / time) for row, time in pairs]
        noise = NOISE_CLUSTER if _several(pairs[0][0]) else NOISE_NODE
        return cls(figures, fit_discrepancy([columns(row) for row, _ in pairs], residuals, noise))

    def corrected(self, row: Row, seconds: float) -> float:
        """A simulated time with the discrepancy."""
        return float(seconds * math.exp(self.discrepancy.of(columns(row))))


@dataclass(frozen=True)
class Model:
    """A predictor for clusters, or for one node."""

    estimate: Estimate
    messages: Messages
    known: frozenset[Hashable]
    """What rows were fitted of, as `_likeness` says."""
    within: Mapping[bool, Sequence[float]]
    """Residuals of rows left out, where others like them were fitted; by whether pipelines share a host."""
    across: Mapping[bool, Sequence[float]]
    """The same where all like them were left out."""
    simulate: bool

    @classmethod
    def fitted(cls, steps: Sequence[Row], several: bool, messages: Messages, seed: int, simulate: bool) -> Model:
        """Estimates of all rows, and of all but some to see what those are off by."""

        def own(row: Row) -> bool:
            return _several(row) == several

        form = ClosedForm.of([case(row) for row in steps], messages)
        mine = [row for row in steps if own(row)]
        known = list(dict.fromkeys(_likeness(row) for row in mine))
        estimate = Estimate.fitted(steps, form, own)

        def residuals(folds: Sequence[Sequence[Row]]) -> dict[bool, list[float]]:
            return _grouped([pair for out in folds for pair in _left_out(steps, form, own, out, estimate.figures)])

        within, parts = residuals(_folds(mine, seed)), [known[number::FOLDS] for number in range(FOLDS)]
        across = residuals([[row for row in mine if _likeness(row) in part] for part in parts if part])
        if len(known) <= FOLDS:
            across = {group: sorted([*within[group], *across[group]]) for group in across}
        return cls(estimate, messages, frozenset(known), within, across, simulate)

    def predict(self, row: Row) -> Prediction:
        """The simulated step with the discrepancy, and quantiles of residuals around it."""
        figures = self.estimate.figures
        if self.simulate:
            plain = simulated(row, figures, self.messages.tables)
        else:
            plain = float(ClosedForm.of([case(row)], self.messages).times(figures)[0])
        seconds = self.estimate.corrected(row, plain)
        low, high = _quantiles(self.within if _likeness(row) in self.known else self.across, _shared(row) > 0)
        return Prediction(seconds, seconds * math.exp(low), seconds * math.exp(high))


def simulated(row: Row, figures: Figures, tables: Sequence[CollectiveTable]) -> float:
    """Seconds of the row's step in the emulator."""
    found = case(row)
    profile = cluster(figures, found.plan.ranks, tables)
    return step_seconds(found.model, found.plan, profile)


def case(row: Row) -> Case:
    """A row as a model and a plan."""
    value = {name: int(row.features[name]) for name in NAMES}
    model = Decoder(value["hidden"], value["layers"], value["heads"], value["sequence"])
    plan = Plan(value["tensor"], value["pipeline"], value["data"], value["batch"], value["micro_batch"])
    return Case(model, plan, row.seconds)


def columns(row: Row) -> dict[Hashable, tuple[float, float]]:
    """Columns of the discrepancy that a row has: value, and scale of the prior."""
    if not _several(row):
        return {_likeness(row): (1.0, SHAPE)}
    shared = _shared(row)
    return {"shared": (shared, SHARED), ("shared", row.family): (shared, SHARED_FAMILY)} if shared else {}


def _likeness(row: Row) -> Hashable:
    """What rows that are off together have in common: on clusters the family, on one node the operators' shape."""
    shape = tuple(int(row.features[name]) for name in ("hidden", "tensor", "micro_batch"))
    return row.family if _several(row) else ("shape", *shape)


def _shared(row: Row) -> float:
    """Half of log2 of the replicas whose pipelines share a host, where there are pipelines: 1 for four replicas."""
    tensor, pipeline = int(row.features["tensor"]), int(row.features["pipeline"])
    if not _several(row) or pipeline == 1 or tensor >= NODE:
        return 0.0
    return math.log2(NODE / tensor) / 2


def _several(row: Row) -> bool:
    return float(row.features["gpus"]) > NODE


def _steps(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "gpus" in row.features]


def _tables(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "gpus" not in row.features]


def fitted_tables(rows: Sequence[Row]) -> list[CollectiveTable]:
    """Knots of the measured all-reduce tables among some rows."""
    sweeps: dict[int, list[tuple[float, float]]] = {}
    for row in _tables(rows):
        sweeps.setdefault(int(row.features["ranks"]), []).append((float(row.features["bytes"]), row.seconds))
    return [_fitted_table(ranks, tuple(sweep)) for ranks, sweep in sorted(sweeps.items())]


@cache
def _fitted_table(ranks: int, sweep: tuple[tuple[float, float], ...]) -> CollectiveTable:
    """Every split has the same tables: they are fitted once."""
    from emulation.calibrate.knots import fit_table

    return fit_table("all-reduce", ranks, "nvlink", sweep, grade="measured", source="tables")


def _folds(rows: Sequence[Row], seed: int) -> list[list[Row]]:
    """Parts of about equal size, each with its share of every family."""
    left, found = list(rows), []
    for number in range(FOLDS, 1, -1):
        part, left = halves(left, seed + number, 1 / number)
        found.append(part)
    return [part for part in [*found, left] if part]


def _left_out(
    steps: Sequence[Row], form: ClosedForm, own: Callable[[Row], bool], out: Sequence[Row], start: Figures
) -> list[tuple[bool, float]]:
    """(Whether pipelines share a host, log(measured / predicted)) of rows that are left out of the fit."""
    gone = {row.key for row in out}
    stay = [number for number, row in enumerate(steps) if row.key not in gone]
    left = [number for number, row in enumerate(steps) if row.key in gone]
    rest = [steps[number] for number in stay]
    if not any(own(row) for row in rest):
        return []
    estimate = Estimate.fitted(rest, form.taken(stay), own, start)
    pairs = zip([steps[number] for number in left], form.taken(left).times(estimate.figures), strict=True)
    return [(_shared(row) > 0, math.log(row.seconds / estimate.corrected(row, time))) for row, time in pairs]


def _grouped(pairs: Sequence[tuple[bool, float]]) -> dict[bool, list[float]]:
    return {group: sorted(residual for other, residual in pairs if other == group) for group in (False, True)}


def _quantiles(residuals: Mapping[bool, Sequence[float]], group: bool) -> tuple[float, float]:
    """The middle `CLAIMED` of a group's residuals; of all, where the group has few."""
    own = residuals[group] if len(residuals[group]) >= FEW else sorted([*residuals[False], *residuals[True]])
    if not own:
        return -WIDE, WIDE
    tail = (1 - CLAIMED) / 2
    return min(0.0, _quantile(own, tail)), max(0.0, _quantile(own, 1 - tail))


def _quantile(rising: Sequence[float], part: float) -> float:
    """At `part` of n + 1: a new value is as likely in each of the n + 1 gaps (Vovk et al., 2005)."""
    place = min(max(part * (len(rising) + 1) - 1, 0.0), len(rising) - 1.0)
    low = math.floor(place)
    high = min(low + 1, len(rising) - 1)
    return rising[low] + (rising[high] - rising[low]) * (place - low)


def _read(path: Path, before: tuple[str, ...]) -> list[Row]:
    """Rows of one file, whose first columns are `before`."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        header = tuple(next(lines, []))
        if header != (*before, *COLUMNS):
            raise ValueError(f"{path}:1: expected the columns {','.join((*before, *COLUMNS))}, not {','.join(header)}")
        return [_row(path, lines.line_num, line, bool(before)) for line in lines if line]


def _row(path: Path, number: int, line: Sequence[str], named: bool) -> Row:
    try:
        values = [float(text) for text in line[1 if named else 0 :]]
        sizes, milliseconds = [int(value) for value in values[:-1]], values[-1]
        features = dict(zip(NAMES, sizes, strict=True))
    except ValueError:
        raise ValueError(f"{path}:{number}: expected {len(COLUMNS)} numbers, not {','.join(line)}") from None
    gpus, hidden = features["gpus"], features["hidden"]
    family = f"{line[0]}B on {gpus} GPUs" if named else f"hidden size {hidden} on {gpus} GPUs"
    return Row(family, features, milliseconds / 1e3, choice=family if named else "")
