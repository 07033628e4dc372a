"""What the parts of operators depend on beside their inputs: when they run, and in which precision."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Context:
    """Moment and precision of a computation."""

    seed: int = 0
    step: int = 0
    micro_batch: int = 0
    floats: str = ""
    """The dtype that stands for every floating dtype of the graph (`fp64` to check a plan); empty: as traced."""


_CURRENT: ContextVar[Context] = ContextVar("context", default=Context())  # noqa: B039 - frozen


def current() -> Context:
    """The context operators compute in now."""
    return _CURRENT.get()


@contextmanager
def context(*, seed: int = 0, step: int = 0, micro_batch: int = 0, floats: str = "") -> Iterator[Context]:
    """Compute operators as of this step and micro-batch.

    Dropout draws from (seed, operator, step, micro-batch, index in the whole tensor), so a recomputed operator must be
    recomputed in the same context.
    """
    token = _CURRENT.set(Context(seed, step, micro_batch, floats))
    try:
        yield _CURRENT.get()
    finally:
        _CURRENT.reset(token)
