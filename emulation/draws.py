"""Random numbers that depend on what they are for, and on nothing else.

No generator is shared. Each stream of numbers comes from NumPy's Philox, a counter-based generator, keyed by the
SHA-256 of the experiment's seed, the path of the entity (`host0/gpu3`) and the purpose (`jitter:matmul`). So another
rank, another probe or another trace sink changes nobody's numbers, and two variants of an experiment with one seed are
compared under the same luck (common random numbers).

The numbers of a stream are counted: `count` from `start` on are the same whichever way they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Seed = int | str
"""An experiment's seed, or its key."""
_WORDS = 4
"""Numbers that Philox makes for one value of its counter."""


def uniform(seed: Seed, entity: str, purpose: str, count: int, start: int = 0) -> Array:
    """Numbers in (0, 1).

    Args:
        seed: of the experiment.
        entity: path of what the numbers are for.
        purpose: what they are for.
        count: how many.
        start: number of the first; the n-th number of a stream is always the same.

    Returns:
        Shape (count,), float64; never 0 or 1, so that logarithms of them are finite.
    """
    words = _words(seed, entity, purpose, count, start)
    # 53 bits, and half of the last one: the middle of each of 2^53 equal parts.
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: Seed, entity: str, purpose: str, count: int, start: int = 0) -> Array:
    """Standard normal numbers, by inversion: one uniform number makes one of them."""
    from scipy.special import ndtri

    found: Array = ndtri(uniform(seed, entity, purpose, count, start))
    return found


def lognormal(seed: Seed, entity: str, purpose: str, sigma: float, count: int, start: int = 0) -> Array:
    """Factors with median 1 whose logarithm has standard deviation `sigma`; exactly 1 where that is 0."""
    return np.exp(sigma * normal(seed, entity, purpose, count, start)) if sigma else np.ones(count)


def exponential(seed: Seed, entity: str, purpose: str, mean: float, count: int, start: int = 0) -> Array:
    """Waiting times of this mean between events that come independently of one another."""
    return -mean * np.log(uniform(seed, entity, purpose, count, start))


def _words(seed: Seed, entity: str, purpose: str, count: int, start: int) -> NDArray[np.uint64]:
    # JSON keeps the parts apart: ("a", "b:c") and ("a:b", "c") are different streams, and so are 1 and "1".
    text = json.dumps([seed, entity, purpose])
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u8")
    generator = np.random.Philox(key=key)
    generator.advance(start // _WORDS)
    skipped = start % _WORDS
    found: NDArray[np.uint64] = generator.random_raw(skipped + count)
    return found[skipped:]
