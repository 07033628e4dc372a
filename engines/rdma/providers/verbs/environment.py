"""Which adapter this host shall use, from its environment.

Adapters differ from host to host, and a plan holds for all of them; so what a host must say about its own is not in
the spec. An option given to `open_device` comes before the variable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "HARNESS_VERBS_"
TRUTH = {"yes": True, "no": False}
KINDS: dict[str, type] = {"device": str, "port": int, "gid_index": int, "binding": str, "in_order": bool}
"""`VerbsDevice`'s options that a host may set, each under its name in capitals: `HARNESS_VERBS_DEVICE=mlx5_0`."""


def options(environment: Mapping[str, str]) -> dict[str, Any]:
    """The options that are set.

    Raises:
        ValueError: a variable holds no number where one belongs, or neither yes nor no.
    """
    found: dict[str, Any] = {}
    for name, kind in KINDS.items():
        variable = PREFIX + name.upper()
        text = environment.get(variable, "")
        if not text:
            continue
        if kind is int and not text.isdecimal():
            raise ValueError(f"{variable} must be a number, got {text!r}")
        if kind is bool and text not in TRUTH:
            raise ValueError(f"{variable} must be yes or no, got {text!r}")
        found[name] = TRUTH[text] if kind is bool else kind(text)
    return found
