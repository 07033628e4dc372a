"""What one thread's copy of a tensor costs, into memory that is its own and into memory that another core reads.

The first is the bound that `memcpy_fraction` is about. A tensor that somebody consumes cannot reach it while it fits a
cache: before a core may write a line that another has read, it must take the line away from it. The second bound has
that in it, and no transport between processes whose consumer reads what it gets can be faster.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from engines.rdma.memory import anonymous
from engines.rdma.providers.shm.segment import Segment

READER = Path(__file__).with_name("reader.py")
SIZES = {"64 KiB": 2**16, "1 MiB": 2**20, "4 MiB": 2**22, "64 MiB": 2**26}
LARGEST = max(SIZES.values())
ROUNDS = 25


@pytest.fixture(scope="module")
def shared():
    """Memory, and a function that lets another process read so many of its bytes."""
    segment = Segment.create("copy-bound", LARGEST)
    command = [sys.executable, str(READER), *map(str, astuple(segment.place))]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def let_read(nbytes):
        reader.stdin.write(f"{nbytes}\n")
        reader.stdin.flush()
        total = int(reader.stdout.readline())
        assert total == int(np.frombuffer(segment.bytes, np.uint64)[: nbytes // 8].sum())

    yield segment.bytes, let_read
    reader.stdin.close()
    reader.wait(30)
    reader.stdout.close()
    segment.close()


@pytest.fixture(scope="module")
def source():
    memory = anonymous(LARGEST)
    memory[:] = os.urandom(2**16) * (LARGEST // 2**16)
    return memory


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("read", [False, True], ids=["private", "read-by-another-core"])
def test_copy(benchmark, shared, source, size, read):
    nbytes = SIZES[size]
    memory, let_read = shared
    target, sent = (memory if read else anonymous(nbytes))[:nbytes], source[:nbytes]

    def copy():
        target[:] = sent

    benchmark.group = f"copy of {size}"
    benchmark.pedantic(copy, setup=lambda: let_read(nbytes) if read else None, rounds=ROUNDS, warmup_rounds=3)
    if benchmark.stats is not None:
        benchmark.extra_info["GB/s"] = round(nbytes / benchmark.stats.stats.median / 1e9, 1)
    assert target == sent
