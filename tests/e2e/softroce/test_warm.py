"""Ranks forked by a warm server: they end as their assignments end, inside the group of whoever asked."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.execution import journal
from harness.execution.assignment import Assignment

CLIENT = "import sys; from pathlib import Path; from harness.execution import warm; "
CLIENT += "warm.run(sys.argv[1], sys.argv[2], groups=Path(sys.argv[3]))"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("warm") / "socket"
    process = subprocess.Popen([sys.executable, "-m", "harness.execution.warm", "serve", str(place)])
    deadline = time.monotonic() + 60
    while not place.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield place
    process.kill()
    process.wait()


@pytest.fixture
def begin(make_trial, tmp_path, server):
    """Starts a stand-in for a rank; where it believes to be grouped is a folder of ours."""

    def started(mode, place=server, **fields):
        directory = tmp_path / "rank0"
        directory.mkdir()
        assignment = Assignment(
            trial=make_trial(mode, **fields),
            mode="run",
            rank=0,
            world_size=1,
            address="127.0.0.1",
            rendezvous=str(tmp_path / "rendezvous"),
            scratch=str(tmp_path),
            artifacts=str(tmp_path),
        )
        assignment.write(directory)
        group = Path("/proc/self/cgroup").read_text().partition("::")[2].strip().lstrip("/")
        (tmp_path / "groups" / group).mkdir(parents=True)
        command = [sys.executable, "-c", CLIENT, str(place), str(directory), str(tmp_path / "groups")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return process, directory, tmp_path / "groups" / group / "cgroup.procs"

    return started


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [
        ("ok", 0, ""),
        ("raises", 1, "ValueError: the engine is out of steam"),
        ("exits", 3, ""),
        ("kills_itself", -signal.SIGKILL, ""),
        ("segfaults", -signal.SIGSEGV, "Segmentation fault"),
    ],
)
def test_a_rank_ends_as_its_assignment_ends_and_prints_where_it_was_asked_from(begin, mode, code, said):
    process, directory, members = begin(mode)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert said in errors
    assert ("to stdout\n" in output) == (mode == "raises")
    assert journal.read(directory / journal.FILE)[0]["pid"] == int(members.read_text()) != process.pid


def test_a_rank_that_is_told_to_stop_says_where_it_was(begin, tmp_path):
    process, directory, members = begin("hangs")
    deadline = time.monotonic() + 60
    while not (tmp_path / "hanging").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in (process.pid, int(members.read_text())):
        os.kill(pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert " in hangs" in errors
    assert journal.last(directory / journal.FILE) == "value"


def test_a_rank_starts_without_a_server_where_there_is_none(begin, tmp_path):
    process, directory, members = begin("ok", place=tmp_path / "nowhere")
    assert process.wait(60) == 0
    process.communicate()
    assert journal.last(directory / journal.FILE) == "done"
    assert not members.exists()


def test_a_stand_in_whose_server_dies_fails(begin, tmp_path):
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        door.listen(1)
        process, _, _ = begin("ok", place=tmp_path / "door")
        line, _ = door.accept()
        with line:
            told, streams, _, _ = socket.recv_fds(line, 1 << 16, 2)
        for stream in streams:
            os.close(stream)
    _, errors = process.communicate(timeout=60)
    assert json.loads(told)["directory"].endswith("rank0")
    assert process.returncode == 1
    assert "forked from died" in errors
