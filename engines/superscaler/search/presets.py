"""Plan spaces of other planners, as constraints over the same search.

They say what those can express; each is searched as well as ours is, so it is at least as good as the peer's own
planner would be under the same costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.superscaler.search.constraints import Space
from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

_ONE_STAGE = {"stages": [1, 1], "families": ["pipeline"], "parts": [1]}
_PIPELINE = {"families": ["pipeline"], "schedules": ["1f1b"], "parts": [1], "passes": False}
"""A stage has one forward and one backward pass, and its layers' parameters are on its devices alone."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dp": {**_ONE_STAGE, "layouts": "data", "dims": [1], "zero": [0], "recompute": ["none", "block"]},
    "zero-3": {**_ONE_STAGE, "layouts": "data", "dims": [1], "zero": [3], "recompute": ["none", "block"]},
    "deepspeed-like": {**_ONE_STAGE, "layouts": "megatron", "dims": [2], "zero": [3], "recompute": ["none", "block"]},
    "megatron-3d": {
        **_PIPELINE,
        "schedules": ["1f1b", "interleaved"],
        "layouts": "megatron",
        "dims": [2],
        "zero": [0, 1],
        "equal_stages": True,
        "recompute": ["none", "block", "mixed"],
    },
    "alpa-like": {**_PIPELINE, "dims": [1, 2], "zero": [0, 1, 2], "recompute": ["block"]},
    "autodist-like": {**_PIPELINE, "dims": [1], "zero": [1], "recompute": ["none", "block"]},
    "spmd": {"stages": [1, 1], "families": ["pipeline"]},
    "full": {},
}
"""As YAML would have them."""


def space(name: str) -> Space:
    """A preset.

    Raises:
        PlanError: there is none of this name.
    """
    if name not in PRESETS:
        raise PlanError(
            f"no plan space {name!r}; did you mean {nearest(name, PRESETS)!r}? There are {', '.join(PRESETS)}"
        )
    return Space.from_json({"name": name, **PRESETS[name]})
