"""A divided training step in two processes over shared memory: equal to one process, and without payload copies."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from engines.rdma.analyzer import allocator_hook  # noqa: E402 - after the check that torch is there

MACHINE = Path(__file__).with_name("analyzer_machine.py")
STEPS = 5


@pytest.fixture
def machines(tmp_path):
    """Runs both machines; returns what each found, or None for one that was killed."""
    started = []

    def run(steps=STEPS, die_at=None):
        for name in ("server", "worker0"):
            order = {
                "machine": name,
                "scratch": str(tmp_path),
                "steps": steps,
                "die_at": (die_at or {}).get(name),
                "provider": "shm",
                "timeout": 60.0,
            }
            command = [sys.executable, "-W", "error", str(MACHINE), json.dumps(order)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        output = "".join(process.communicate(timeout=100)[0] for process in started)
        paths = [tmp_path / f"{name}.json" for name in ("server", "worker0")]
        assert any(path.exists() for path in paths), output
        return [json.loads(path.read_text()) if path.exists() else None for path in paths]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def program():
    spec = spec_from_file_location("analyzer_machine", MACHINE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(allocator_hook.compiler() is None, reason="no C++ compiler")
def test_training_equals_one_process_and_copies_nothing_after_the_first_step(machines, program):
    server, worker = machines()
    assert server["copied"] == [0] * STEPS
    module = program.model()
    size = sum(parameter.nbytes for parameter in module.parameters())
    assert worker["copied"] == [size] + [0] * (STEPS - 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=program.RATE)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        program.loss(module(program.batch(step))).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(torch.tensor(server["state"][name]), parameter.detach())


def test_a_machine_that_is_killed_is_told_to_the_other(machines):
    server, worker = machines(die_at={"worker0": 3})
    assert worker is None
    assert server["error"].startswith("PeerLost: server: ")
    assert len(server["copied"]) == 2
