"""Names of dtypes: torch's and ours."""

from __future__ import annotations

from typing import Any

from engines.superscaler.operators.context import current

NAMES = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "uint8": "uint8",
}
"""torch's name -> the graph's."""
FLOATS = frozenset({"fp64", "fp32", "fp16", "bf16"})


def floating(dtype: str) -> bool:
    """Whether numbers of this dtype have gradients."""
    return dtype in FLOATS


def torch_dtype(torch: Any, dtype: str) -> Any:
    """Torch's dtype of a name of the graph; in a context with `floats`, those stand for every floating dtype."""
    if dtype in FLOATS:
        dtype = current().floats or dtype
    return getattr(torch, next(name for name, ours in NAMES.items() if ours == dtype))
