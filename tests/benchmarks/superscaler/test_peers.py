"""Steps of our plans beside torch's own ways to train on two processes, as ratios within one run.

No limit on the clock: a bound on a ratio fails only where the whole confidence interval is beyond it. Seconds of the
processors are held to the closer one, because other programs change them less than they change what the clock says.
"""

import json
import subprocess
import sys
from pathlib import Path

from harness.measure import summarise

SCRIPT = Path(__file__).parents[2] / "differential" / "superscaler" / "peers.py"
SHAPE = {"hidden": 256, "heads": 4, "sequence": 64, "batch": 8}
PEERS = {"dp": "DistributedDataParallel", "1f1b": "Schedule1F1B"}
BOUNDS = {"processors": 1.2, "clock": 1.5}
TOLERANCE = 1e-6
TURNS = 9
TIMEOUT = 90.0


def test_steps_take_no_longer_than_torchs(benchmark, tmp_path):
    out = tmp_path / "found.json"
    order = {
        "plans": list(PEERS), "shape": SHAPE, "micro_batches": 4, "turns": TURNS,
        "timeout": TIMEOUT, "out": str(out),
    }  # fmt: skip
    command = [sys.executable, SCRIPT, json.dumps(order)]
    ended = benchmark.pedantic(
        lambda: subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True), rounds=1
    )
    assert ended.returncode == 0, ended.stderr
    beyond = []
    for plan, found in json.loads(out.read_text()).items():
        assert found["difference"] <= TOLERANCE, plan
        for what, pairs in found["seconds"].items():
            ratio = summarise([ours / torchs for ours, torchs in pairs])
            text = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            benchmark.extra_info[f"{plan} over {PEERS[plan]}, {what}"] = text
            if ratio.low > BOUNDS[what]:
                beyond.append(f"{plan} takes {text} times the seconds of {PEERS[plan]} ({what})")
    assert not beyond, beyond
