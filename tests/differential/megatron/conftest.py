"""Ranks as processes, forked from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def on_ranks():
    """`on_ranks(2, "layers")` runs a task of `megatron_ranks` on two ranks."""
    pytest.importorskip("torch")
    import megatron_ranks

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    return partial(megatron_ranks.on_ranks, context)
