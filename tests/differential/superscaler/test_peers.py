"""Our plans beside torch's own ways to train on two processes over gloo: equal losses, gradients and parameters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PEERS = {"dp": "DistributedDataParallel", "zero-3": "fully_shard", "gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B"}
TOLERANCE = 1e-6
TIMEOUT = 90.0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Plan -> what two processes found."""
    out = tmp_path_factory.mktemp("peers") / "found.json"
    order = {"plans": list(PEERS), "shape": {}, "micro_batches": 4, "turns": 0, "timeout": TIMEOUT, "out": str(out)}
    script = Path(__file__).with_name("peers.py")
    ended = subprocess.run([sys.executable, script, json.dumps(order)], check=False, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("plan", PEERS)
def test_a_plan_trains_as_torch_does(found, plan):
    assert found[plan]["difference"] <= TOLERANCE, f"{plan} beside {PEERS[plan]}"
