"""Both ends of the control channel over a socket pair: the agent as it runs in a guest, and the host's line to it."""

import os
import signal
import socket
import threading

import pytest

from emulation.softroce import GuestError, GuestLost, SoftRoceError, tools
from emulation.softroce.guest import agent as guest
from emulation.softroce.line import Line


class ProcessGroup:
    """What control groups do, as far as a process group can: this machine's are none of a test's business."""

    def __init__(self, name, memory):
        self.memory = memory
        self.pid = 0

    def take_in(self, pid):
        self.pid = pid

    def signal(self, number):
        if self.pid:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    def ran_out(self):
        return self.memory == 1

    def end(self):
        self.signal(signal.SIGKILL)


@pytest.fixture
def line(tmp_path):
    ours, theirs = socket.socketpair()
    agent = guest.Agent(theirs.fileno(), control=tmp_path, scratch=tmp_path, group=ProcessGroup)
    serving = threading.Thread(target=agent.serve)
    serving.start()
    made = Line(ours, "guest 0")
    yield made
    if not made.lost:
        made.ask("stop")
    serving.join(10)
    assert not serving.is_alive()
    theirs.close()
    made.close()


def run(line, *command, **more):
    return line.start(command=list(command), **more).wait(30)


def test_a_command_ends_with_its_code_and_what_it_printed(line):
    ended = run(line, "sh", "-c", "echo $WORD; pwd; echo wrong >&2; exit 3", environment={"WORD": "a b"}, folder="/tmp")
    assert (ended.code, ended.output, ended.errors) == (3, "a b\n/tmp\n", "wrong\n")
    assert (ended.timed_out, ended.out_of_memory) == (False, False)


def test_commands_run_side_by_side_and_requests_are_answered_meanwhile(line):
    slow = line.start(command=["sleep", "30"])
    assert run(line, "echo", "quick").output == "quick\n"
    assert line.ask("ping")["kernel"] == os.uname().release
    assert not slow.over
    slow.signal(signal.SIGTERM)
    assert slow.wait(10).code == -signal.SIGTERM


def test_a_command_is_out_of_time_when_its_limit_is_over(line):
    ended = run(line, "sleep", "30", timeout=0.05)
    assert (ended.code, ended.timed_out) == (-signal.SIGKILL, True)


def test_a_kill_for_want_of_memory_is_told(line):
    assert run(line, "true", memory=1).out_of_memory
    assert not run(line, "true", memory=2).out_of_memory


def test_output_goes_into_the_callers_files(line, tmp_path):
    for _ in range(2):
        ended = run(line, "sh", "-c", "echo more; echo wrong >&2", output=str(tmp_path / "out"))
        assert (ended.output, ended.errors) == ("", "wrong\n")
    assert (tmp_path / "out").read_text() == "more\nmore\n"
    assert not list(tmp_path.glob("task*"))


def test_of_much_output_the_end_is_kept(line, monkeypatch):
    monkeypatch.setattr(guest, "KEPT", 100)
    assert run(line, "sh", "-c", "seq 10000").output.endswith("9999\n10000\n")
    assert len(run(line, "sh", "-c", "seq 10000").output) == 100


@pytest.mark.parametrize(
    ("do", "content"),
    [
        ("run", {"command": ["true"], "folder": "/nowhere"}),
        ("run", {"command": ["true"], "output": "/nowhere/out"}),
        ("get", {"path": "/nowhere", "offset": 0, "size": 1}),
        ("unheard", {}),
        ("put", {}),
    ],
)
def test_what_cannot_be_done_is_the_answer_to_that_request_alone(line, do, content):
    with pytest.raises(GuestError, match="guest 0: "):
        line.ask(do, **content)
    assert line.ask("ping")["uptime"] > 0


def test_a_command_that_does_not_exist_ends_as_a_shell_says(line):
    ended = run(line, "no-such-command")
    assert ended.code == 127
    assert "not found" in ended.errors


def test_a_guest_that_does_not_answer_in_time_is_lost():
    ours, theirs = socket.socketpair()
    line = Line(ours, "guest 4")
    with theirs, pytest.raises(GuestLost, match=r"guest 4 did not answer 'ping' within 0\.01 s"):
        line.ask("ping", timeout=0.01)
    line.close()


def test_whoever_waits_is_told_when_the_machine_ends():
    ours, theirs = socket.socketpair()
    line = Line(ours, "guest 1")
    task = line.start(command=["sleep", "9"])
    with pytest.raises(TimeoutError, match="not over after"):
        task.wait(0.01)
    theirs.close()
    with pytest.raises(GuestLost, match="guest 1 is gone"):
        task.wait(10)
    assert task.over
    with pytest.raises(GuestLost, match="guest 1 is gone"):
        line.ask("ping")
    line.close()


def test_an_answer_that_is_no_json_loses_the_guest():
    ours, theirs = socket.socketpair()
    line = Line(ours, "guest 1")
    task = line.start(command=["true"])
    theirs.sendall(b"garbage\n")
    with pytest.raises(GuestLost, match="control channel broke"):
        task.wait(10)
    theirs.close()
    line.close()


def test_counters_are_read_for_each_device(tmp_path):
    folder = tmp_path / "rxe0" / "ports" / "1" / "hw_counters"
    folder.mkdir(parents=True)
    (folder / "sent_pkts").write_text("12\n")
    (folder / "lifespan").write_text("10\n")
    assert guest.counters(tmp_path) == {"rxe0": {"sent_pkts": 12}}


def test_a_program_of_this_machine_that_fails_is_quoted():
    with pytest.raises(SoftRoceError, match="sh -c failed with exit code 4: what is wrong"):
        tools.call(["sh", "-c", "echo what is wrong >&2; exit 4"])
    with pytest.raises(SoftRoceError, match="sleep was still running after"):
        tools.call(["sleep", "30"], timeout=0.05)
    with pytest.raises(SoftRoceError, match="cannot run no-such-program"):
        tools.call(["no-such-program"])
