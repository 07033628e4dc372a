"""The spec: one YAML file, one experiment.

These models are what `load` validates a document against and what `harness schema` publishes to editors. The
`engine` section is validated apart, by the named engine's own `Spec`, so that no other engine is imported.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from emulation.faults import Fault
from emulation.units import Bytes, Duration, Fraction, Strict

SCHEMA_VERSION = 1

Name = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
Scalar = str | int | float | bool | None


class Target(Strict):
    """Where an experiment runs."""

    backend: Literal["auto", "local", "emulated", "ray", "softroce"] = "auto"
    """`auto` is real where the needs are met, else emulated; the record says which and why."""
    hardware: str = "laptop"
    """A profile under specs/hardware; `NAME@128` is the same with 128 hosts. For a real backend it names what the
    machine is taken to be."""


class Needs(Strict):
    """What the experiment cannot do without; a backend that lacks it gives `unsupported`, never a fallback."""

    hosts: int = Field(default=1, ge=1)
    """Machines."""
    gpus: int = Field(default=0, ge=0)
    """Per host."""
    gpu_memory: Bytes = 0
    """Of each GPU."""
    memory: Bytes = 0
    """Per host."""
    rdma: bool = False
    """An RDMA device (InfiniBand, RoCE) in every host."""


class RepeatSpec(Strict):
    """How often each measured thing is done, and the seed of every random draw."""

    warmup: int = Field(default=1, ge=0, le=10_000)
    """Repetitions that are not counted."""
    runs: int = Field(default=5, ge=1, le=1_000_000)
    """Repetitions that are: the samples of a measurement."""
    seed: int = Field(default=0, ge=0, lt=2**63)


class Sweep(Strict):
    """Which cells the experiment has: a product, paired lists, or an explicit list; one of the three."""

    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Path in the spec to its values: every combination is a cell."""
    zip: dict[str, list[Any]] = Field(default_factory=dict)
    """Path to values of equal count: the n-th of each make a cell."""
    cells: list[dict[str, Any]] = Field(default_factory=list, alias="list")
    """Each item is a cell: path to value."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Cells that match every path and value of an item are left out."""


class Limits(Strict):
    """What a trial may use before it is stopped."""

    timeout: Duration = Field(default=600.0, gt=0)
    """Time a trial may take."""
    memory: Bytes = 0
    """Resident bytes of the trial's processes together; 0 is no limit."""
    retries: int = Field(default=0, ge=0, le=100)
    """Further attempts after one that crashed, timed out, ran out of memory or lost its node."""


class Table(Strict):
    """How results are laid out: one cell per (row, column), found by label or by swept path."""

    title: str = ""
    """Heading; made from the metrics where it is empty."""
    rows: str
    """A label of the metric (`transport`) or a path in the spec (`engine.model`)."""
    columns: str = ""
    """The same for columns; empty for a single one."""
    value: list[str] | str
    """One metric, or several shown under one another."""
    baseline: dict[str, Scalar] = Field(default_factory=dict)
    """Label or path to value: the cell that ratios are taken against; above 1 means better than the baseline."""
    where: dict[str, Scalar] = Field(default_factory=dict)
    """Only measurements with these labels or paths."""
    reference: str = ""
    """Published cells to set beside ours: `paper/table`, `paper/table/row` or `paper/table/row/column`."""


class Expectation(Strict):
    """What must hold for the run to exit with 0."""

    metric: str
    """A metric that the engine declares."""
    where: dict[str, Scalar] = Field(default_factory=dict)
    """Label or path to value; it must select at least one measurement."""
    on: Literal["local", "emulated", "ray", "softroce", ""] = ""
    """Only results of this backend."""
    baseline: dict[str, Scalar] = Field(default_factory=dict)
    """Judge the ratio to this cell instead of the value itself; above 1 means better than the baseline."""
    at_least: float | str | None = None
    """Lower bound, with its unit (`10 GB/s`); a bare number for ratios and counts."""
    at_most: float | str | None = None
    """Upper bound."""
    equals: float | str | None = None
    """The value, up to `tolerance`."""
    reference: str = ""
    """A published cell: `paper/table/row/column`."""
    tolerance: Fraction = 0.0
    """Share of the bound or the published figure by which a value may miss it."""
    required: bool = True
    """False: the verdict is shown, and does not change the exit code."""


class Experiment(Strict):
    """A whole spec file, after `extends` and overrides."""

    schema_: Literal[1] = Field(alias="schema")
    """Version of this format."""
    name: str = Name
    """Letters, digits, `.`, `_` and `-`, at most 80, beginning with a letter or digit; it names the run directory."""
    description: str = ""
    """The question this experiment answers."""
    paper: str = ""
    """Key of a file under results/published."""
    engine: dict[str, Any]
    """Which engine (`name`), and the engine's own fields."""
    on: list[Target] | Target = Field(default_factory=Target)
    """One target, or several: the same experiment on each."""
    needs: Needs = Field(default_factory=Needs)
    repeat: RepeatSpec = Field(default_factory=RepeatSpec)
    sweep: Sweep = Field(default_factory=Sweep)
    faults: list[Fault] = Field(default_factory=list, max_length=1000)
    """What goes wrong meanwhile; emulated, and refused as `unsupported` where it cannot be done."""
    limits: Limits = Field(default_factory=Limits)
    tables: list[Table] = Field(default_factory=list)
    expect: list[Expectation] = Field(default_factory=list)
    extends: str = ""
    """A spec in the same project to start from: maps are merged, lists and scalars replaced, null takes away."""
    also: list[str] = Field(default_factory=list, max_length=100)
    """Further specs of the project that `run` and `validate` take after this one, relative to this file; a spec that
    extends this one does not take them over."""
