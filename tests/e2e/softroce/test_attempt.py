"""Attempts in a cluster whose guests are stand-ins on this machine: every end of an attempt, without a boot."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from emulation.softroce import GuestLost, Wire
from emulation.softroce.guest import agent as guest
from emulation.softroce.line import Line
from harness.backends.softroce_attempt import GuestGroup
from harness.records import State
from harness.spec import Limits

from .test_line import ProcessGroup

ROOT = Path(__file__).parents[3]


class Agent(guest.Agent):
    """One whose line may be cut, which a guest's port never is."""

    def answer(self, content):
        with contextlib.suppress(OSError):
            super().answer(content)


class StandIn:
    """A guest whose agent runs on this machine, in a thread."""

    def __init__(self, number, folder):
        self.number = number
        self.address = "127.0.0.1"
        self.folder = folder / f"guest{number}"
        self.folder.mkdir(parents=True)
        (self.folder / "serial.log").write_text("booted\n")
        ours, self.theirs = socket.socketpair()
        agent = Agent(self.theirs.fileno(), control=self.folder, scratch=self.folder, group=self.group)
        self.groups = []
        self.serving = threading.Thread(target=self._serve, args=[agent], daemon=True)
        self.serving.start()
        self.line = Line(ours, f"guest {number}")
        self.wire = None
        self.out_of_memory = False

    def group(self, name, memory):
        made = ProcessGroup(name, 1 if self.out_of_memory else 0)
        self.groups.append(made)
        return made

    def _serve(self, agent):
        try:
            agent.serve()
        except (OSError, AttributeError):
            return

    @property
    def lost(self):
        return self.line.lost

    def start(self, command, **more):
        if "serve" in command:
            # Ranks of this machine need no server to start quickly, and find none.
            return self.line.start(command=["true"])
        command = [word.replace("python3", sys.executable) if i == 2 else word for i, word in enumerate(command)]
        environment = {"PYTHONPATH": str(ROOT)}
        return self.line.start(command=command, environment=environment, **more)

    def run(self, command, timeout):
        command = ["true"] if "until" in command[-1] else command
        return self.line.start(command=command).wait(timeout)

    def set_wire(self, wire):
        self.wire = wire

    def unplug(self):
        for group in self.groups:
            group.end()
        self.theirs.shutdown(socket.SHUT_RDWR)


class Standing:
    """What `Cluster` is to an attempt."""

    def __init__(self, folder, hosts=2):
        self.hosts = [StandIn(number, folder) for number in range(hosts)]
        self.memory = 1 << 30
        self.up = False
        self.fails = ""
        self.booted = threading.Event()
        self.booted.set()

    def __len__(self):
        return len(self.hosts)

    @property
    def lost(self):
        return next((h.lost for h in self.hosts if h.lost), "")

    def await_up(self, timeout):
        self.booted.wait()
        if self.fails:
            raise GuestLost(self.fails)
        self.up = True

    def about(self):
        return {"accelerator": "tcg", "processors": 1, "memory": self.memory, "kernel": "6.12", "rdma": ["rxe0"]}

    def close(self):
        for host in self.hosts:
            host.unplug()
            host.line.close()


@pytest.fixture
def cluster(tmp_path):
    made = Standing(tmp_path / "logs")
    yield made
    made.close()


@pytest.fixture
def begin(make_trial, cluster, tmp_path):
    def started(mode, *, grace=0.5, ranks=1, **more):
        trial = make_trial(mode, backend="softroce", ranks=ranks, world=ranks, **more)
        directory = tmp_path / "run" / trial.directory_name / "attempts" / "1"
        directory.mkdir(parents=True)
        wires = [Wire(loss=0.1)] * len(cluster)
        return GuestGroup(trial, directory, cluster, wires, grace=grace)

    return started


def end(running, seconds=60):
    deadline = time.monotonic() + seconds
    while (outcome := running.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(running.pause())
    return outcome


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def poll_until(running, condition):
    until(lambda: running.poll() is None and condition())


def test_ranks_meet_on_guests_in_turn_with_the_wire_the_faults_ask_for(begin, cluster):
    outcome = end(begin("meet", ranks=2))
    assert outcome.state is State.OK, outcome.failure
    assert [(v.rank, list(v.samples)) for v in outcome.values] == [(0, [1.0]), (1, [0.0])]
    assert [len(host.groups) for host in cluster.hosts] == [4, 4], (
        "the server, the wait for it, a rank and a clean-up each"
    )
    assert [host.wire for host in cluster.hosts] == [Wire(loss=0.1)] * 2
    assert outcome.hardware["guests"]["wires"][0]["loss"] == 0.1


def test_a_rank_that_ends_badly_takes_the_other_along(begin):
    outcome = end(begin("second_rank_dies", ranks=2))
    assert outcome.state is State.CRASHED
    assert (outcome.failure.rank, outcome.failure.exit_code) == (1, 7)
    assert [v.rank for v in outcome.values] == [0, 1]


def test_what_hangs_is_stopped_at_its_limit_and_says_where(begin):
    outcome = end(begin("hangs", limits=Limits(timeout="3 s")))
    assert outcome.state is State.TIMEOUT
    assert outcome.failure.where.endswith(" in hangs")
    assert outcome.failure.message == "still running after 3 s (limits.timeout)"


def test_what_will_not_stop_is_killed(begin, tmp_path):
    running = begin("hangs_on")
    poll_until(running, (tmp_path / "hanging").exists)
    running.cancel()
    outcome = end(running)
    assert outcome.state is State.CANCELLED
    assert outcome.failure.signal == signal.SIGKILL


def test_a_cancelled_attempt_does_not_wait_for_guests_to_boot(begin, cluster):
    cluster.booted.clear()
    running = begin("ok")
    assert running.poll() is None
    running.cancel()
    assert end(running).state is State.CANCELLED
    cluster.booted.set()
    assert cluster.lost, "half-booted guests are of no use to the next trial"


def test_a_guest_that_is_lost_loses_the_attempt_and_keeps_its_logs(begin, cluster, tmp_path):
    running = begin("hangs", ranks=2)
    poll_until(running, (tmp_path / "hanging").exists)
    cluster.hosts[1].unplug()
    outcome = end(running)
    assert (outcome.state, outcome.lost) == (State.CRASHED, True)
    assert "a guest of the cluster was lost" in outcome.failure.message
    (log,) = (tmp_path / "run").rglob("guest1/serial.log")
    assert log.read_text() == "booted\n"


def test_guests_that_do_not_come_up_lose_the_attempt(begin, cluster):
    cluster.fails = "guest 1 did not answer 'ping' within 240 s while booting: kernel panic"
    outcome = end(begin("ok"))
    assert (outcome.state, outcome.lost) == (State.CRASHED, True)
    assert "kernel panic" in outcome.failure.message


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(timeout="60 s"), "a guest ran out of its 1 GiB of memory"),
        (Limits(timeout="60 s", memory="4 GiB"), "a rank needed more than 4 GiB (limits.memory)"),
    ],
)
def test_a_rank_that_the_kernel_killed_for_memory_ran_out_of_it(begin, cluster, limits, said):
    cluster.hosts[0].out_of_memory = True
    outcome = end(begin("kills_itself", limits=limits))
    assert (outcome.state, outcome.failure.message) == (State.OOM, said)
    assert len(outcome.values) == 1


def test_a_guest_that_does_not_let_go_of_a_killed_rank_is_powered_off(begin, cluster, monkeypatch, tmp_path):
    monkeypatch.setattr("harness.backends.softroce_attempt.SETTLE", 0.2)
    running = begin("hangs", limits=Limits(timeout="3 s"), grace=0.1)
    poll_until(running, (tmp_path / "hanging").exists)
    monkeypatch.setattr(ProcessGroup, "signal", lambda self, number: None)
    outcome = end(running)
    assert outcome.state is State.TIMEOUT
    assert cluster.lost
    monkeypatch.undo()
    os.killpg(int((tmp_path / "hanging").read_text()), signal.SIGKILL)
