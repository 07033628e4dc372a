"""What a case is, and how one is run."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.rdma.conformance.expectations import Failure, Skipped
from engines.rdma.conformance.pair import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engines.rdma.conformance.pair import Setting


@dataclass(frozen=True)
class Case:
    """A promise of the interface, and a function that holds a pair to it."""

    name: str
    function: Callable[[Pair], None]
    options: Mapping[str, Any]
    """`ChannelOptions` of both ends."""
    far: Mapping[str, Any]
    """Those of the far end, where it differs."""
    capacity: int

    def run(self, setting: Setting) -> Outcome:
        """Open a pair, run the function on it, close the pair."""
        start = time.perf_counter()
        status, message = "ok", ""
        try:
            with Pair(setting, self.capacity, dict(self.options), {**self.options, **self.far}) as pair:
                self.function(pair)
        except Skipped as reason:
            status, message = "skipped", str(reason)
        except Failure as failure:
            status, message = "failed", str(failure)
        except Exception as error:
            # A case that a provider brings down is one failure; the others still run.
            status, message = "failed", f"{type(error).__name__}: {error} ({_where(error)})"
        return Outcome(self.name, status, message, time.perf_counter() - start)


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    name: str
    status: str
    """`ok`, `failed`, or `skipped`."""
    message: str
    seconds: float = field(compare=False)


def _where(error: BaseException) -> str:
    """File and line that raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


CASES: dict[str, Case] = {}
"""By name, in the order defined."""

CAPACITY = 4 * 2**20


def case(
    *, capacity: int = CAPACITY, far: Mapping[str, Any] | None = None, **options: Any
) -> Callable[[Callable[[Pair], None]], Callable[[Pair], None]]:
    """Make a function a case; its name, in words, is the promise.

    Args:
        capacity: bytes of either arena.
        far: channel options of the far end that differ from `options`.
        options: channel options of both ends.
    """

    def add(function: Callable[[Pair], None]) -> Callable[[Pair], None]:
        name = function.__name__.replace("_", " ")
        CASES[name] = Case(name, function, options, far or {}, capacity)
        return function

    return add
