"""What is moved: named tensors, grouped into payloads, filled with bytes that both ranks can make.

Contents come from a seeded generator, keyed by the tensor's place, so that the receiver knows every byte it must find
without being told. All bit patterns occur (NaNs of a float type too): a transport moves bytes, not numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.rdma.spec import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Tensor:
    """Name, shape and element type of one tensor; its bytes lie elsewhere."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, C order, without padding."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        """As it stands in a plan."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "bytes": self.nbytes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tensor:
        """Inverse of `to_json`."""
        return cls(value["name"], tuple(value["shape"]), value["dtype"])


@dataclass(frozen=True)
class Payload:
    """Tensors that are moved together: one step."""

    name: str
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a plan."""
        return {"name": self.name, "tensors": [tensor.to_json() for tensor in self.tensors]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Payload:
        """Inverse of `to_json`."""
        return cls(value["name"], tuple(map(Tensor.from_json, value["tensors"])))


def fill(target: NDArray[np.uint8], *, seed: int, payload: str, index: int) -> None:
    """Write the contents of tensor `index` of a payload into `target` (uint8, one dimension)."""
    import numpy as np

    key = [seed, index, *payload.encode()]
    words = target.size // 8
    generator = np.random.SFC64(np.random.SeedSequence(key))
    step = 2**17
    for start in range(0, words, step):
        # Piece by piece: the random words stay in the cache instead of passing twice through memory.
        stop = min(start + step, words)
        target[start * 8 : stop * 8] = generator.random_raw(stop - start).view(np.uint8)
    rest = target.size - words * 8
    if rest:
        target[words * 8 :] = generator.random_raw(1).view(np.uint8)[:rest]


def first_difference(received: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int | None:
    """Offset of the first byte that differs (the shorter length if one ends early), or None if all are equal."""
    import numpy as np

    if received.size == expected.size and np.array_equal(received, expected):
        return None
    shared = min(received.size, expected.size)
    wrong = np.flatnonzero(received[:shared] != expected[:shared])
    return int(wrong[0]) if wrong.size else shared
