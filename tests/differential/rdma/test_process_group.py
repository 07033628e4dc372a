"""The `rdma` backend of torch.distributed against gloo: the same tensors in, equal results out, and DDP unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

RANK = Path(__file__).with_name("process_group_rank.py")
MODELS = ["alexnet", "lstm", "fcn-5", "vgg-16"]


def run(size, models, scratch):
    orders = [{"rank": rank, "size": size, "models": models, "scratch": str(scratch)} for rank in range(size)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), json.dumps(order)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for order in orders
    ]
    try:
        output = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(output)
    return [torch.load(scratch / f"found{rank}.pt") for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_collectives_and_ddp_agree_with_gloo(size, tmp_path):
    found = run(size, MODELS if size == 2 else MODELS[:1], tmp_path)
    for rank, backends in enumerate(found):
        gloo, ours = backends["gloo"], backends["rdma"]
        assert gloo.keys() == ours.keys()
        for part, expected in gloo.items():
            assert expected.keys() == ours[part].keys()
            for name, value in expected.items():
                torch.testing.assert_close(
                    ours[part][name],
                    value,
                    rtol=0,
                    atol=1e-6 if part != "collectives" else 1e-5,
                    msg=lambda text, where=(rank, part, name): f"{where}: {text}",
                )
    # every rank has the same parameters, to the last bit
    for part in found[0]["rdma"]:
        if part != "collectives":
            for name, value in found[0]["rdma"][part].items():
                if name != "losses":
                    assert all(torch.equal(value, other["rdma"][part][name]) for other in found)
    assert set(found[0]["copied"]) == {
        "process group: into registered memory",
        "process group: out of registered memory",
        "message slot",
    }
