"""Real links: namespaces joined at a limited rate, processes on them, and predictions held against those."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engines.superscaler.links import calibrate
from engines.superscaler.links.jobs import Single, measure
from engines.superscaler.links.network import Network, Shape, lacking
from engines.superscaler.links.plans import Case, program
from engines.superscaler.links.score import score

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(lacking()), reason=lacking() or "there")]
SHAPE = Shape(200_000_000)
HOLD = """
import sys, time
from engines.superscaler.links.network import Network, Shape
with Network(2, Shape(200_000_000)) as network:
    print(*(holder.pid for holder in network._holders), flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text()


def test_each_rank_has_one_limited_link_and_reaches_the_others_alone():
    with Network(3, SHAPE) as network:
        look = "ip -o link show | wc -l; tc qdisc show dev link0; ip route"
        seen = [network.start(rank, ["sh", "-c", f"({look}) >/proc/self/fd/1"]) for rank in range(3)]
        assert [process.wait(10) for process in seen] == [0, 0, 0]
        check = "import socket,sys; s=socket.create_connection((sys.argv[1], 9), 5)"
        refused = network.start(0, [sys.executable, "-c", check, network.address(2)], {"PYTHONWARNINGS": "ignore"})
        assert refused.wait(20) == 1  # an answer came, and it was no
    assert "link0" not in Path("/proc/net/dev").read_text()


def test_nothing_is_left_when_the_process_that_made_a_network_is_killed():
    maker = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    holders = [int(pid) for pid in maker.stdout.readline().split()]
    assert len(holders) == 3
    assert all(map(alive, holders))
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    limit = time.monotonic() + 5
    while any(map(alive, holders)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not any(map(alive, holders))


def test_a_message_takes_its_bytes_over_the_rate():
    nbytes = 1 << 20
    taken = measure(2, SHAPE, [Single("send", (0, 1), nbytes, repetitions=3)])[0]
    assert 0.98 <= taken / (nbytes * 8 / SHAPE.rate) <= 1.5  # headers are 4.5 %; the rest is a busy machine


def test_steps_take_about_what_is_predicted_and_rank_alike():
    profile = calibrate.calibrate(2, SHAPE)
    cases = [Case(tensor=2), Case(data=2, hidden=256, inner=768), Case(stages=2, micro_batches=2, batch=384)]
    found = score({case.name: program(case) for case in cases}, profile, 2, SHAPE)
    assert found.tau == 1.0
    assert found.mape < 0.3
