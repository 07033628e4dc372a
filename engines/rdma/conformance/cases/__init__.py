"""The cases, by what they are about; importing this fills `CASES`."""

from __future__ import annotations

from engines.rdma.conformance.cases import (  # noqa: F401 - each adds its cases
    addresses,
    completions,
    immediates,
    memory,
    messages,
    placement,
    process,
    recovery,
    refusals,
)
