"""Our plans beside torch's own ways to train on two processes over gloo: equal losses, gradients and parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

PEERS = {"dp": "DistributedDataParallel", "zero-3": "fully_shard", "gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B"}
TOLERANCE = 1e-6
TIMEOUT = 90.0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Plan -> what two processes found."""
    out = tmp_path_factory.mktemp("peers") / "found.json"
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    order = {
        "plans": list(PEERS), "shape": {}, "micro_batches": 4, "turns": 0,
        "port": store.port, "out": str(out), "timeout": TIMEOUT,
    }  # fmt: skip
    script = str(Path(__file__).with_name("peers.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, json.dumps({**order, "rank": rank})], stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        told = [rank.communicate(timeout=TIMEOUT)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)
    return json.loads(out.read_text())


@pytest.mark.parametrize("plan", PEERS)
def test_a_plan_trains_as_torch_does(found, plan):
    assert found[plan]["difference"] <= TOLERANCE, f"{plan} beside {PEERS[plan]}"
