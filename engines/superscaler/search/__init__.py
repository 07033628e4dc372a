"""Which plan: how every operator is split, where the model is cut into stages, what is kept and what is recomputed.

`search` finds a plan in a plan space, `compare_presets` the best plan of every peer's space beside ours. Importing this
package costs nothing; NumPy, HiGHS and the emulator's models are loaded by the first search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.superscaler.search.searching import Found, compare_presets, search

__all__ = ["Found", "compare_presets", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from engines.superscaler.search import searching

        return getattr(searching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
