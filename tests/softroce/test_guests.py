"""What two guests on a wire can do: commands, files, verbs, and losses on the wire."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from emulation.softroce import GuestError, Wire
from emulation.softroce.status import look

pytestmark = pytest.mark.timeout(600)

PINGPONG = ("ibv_rc_pingpong", "-d", "rxe0", "-g", "1", "-m", "4096", "-e", "-c", "-s", "65536", "-n", "100")
"""Sends of 64 KiB over a reliable connection, whose bytes are compared at both ends (-c)."""
RESENT = ("duplicate_request", "out_of_seq_request", "rcvd_seq_err", "completer_retry_err")


@pytest.fixture
def plain(pair):
    yield
    pair.set_wire(Wire())


def ping_pong(pair, timeout=60):
    """One exchange between the guests; its ends."""
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(pair[0].run, PINGPONG, timeout=timeout)
        deadline = time.monotonic() + 60
        while "18515" not in pair[0].run(["ss", "-ltn"]).output.replace(":48", " "):
            assert time.monotonic() < deadline, "the server does not listen"
        client = pair[1].run([*PINGPONG, pair[0].address], timeout=timeout)
        return server.result(), client


def sums(pair, names):
    return [sum(host.counters()["rxe0"][name] for name in names) for host in pair.hosts]


def test_each_guest_has_an_active_rdma_device_and_both_python_bindings(pair):
    for host in pair.hosts:
        assert "state ACTIVE" in host.run(["rdma", "link"]).output
        listed = host.run(
            [
                "python3",
                "-c",
                "import ibverbs, pyverbs.device as p; print(len(p.get_device_list()), end=' ')\n"
                "print([d.name for d in ibverbs.get_device_list()])",
            ]
        )
        assert listed.output == "1 ['rxe0']\n", listed
    assert "0% packet loss" in pair[0].run(["ping", "-c", "1", pair[1].address]).output


def test_a_command_ends_with_its_code_its_output_and_its_environment(pair):
    ended = pair[1].run(
        ["bash", "-c", 'echo "$WORD in $PWD"; echo to stderr >&2; exit 3'], environment={"WORD": "a b"}, folder="/tmp"
    )
    assert (ended.code, ended.output, ended.errors, ended.timed_out) == (3, "a b in /tmp\n", "to stderr\n", False)
    with pytest.raises(GuestError, match=r"guest 1: .*nowhere"):
        pair[1].run(["true"], folder="/nowhere")


def test_a_command_out_of_time_is_killed_with_all_that_it_started(pair):
    ended = pair[0].run(["bash", "-c", "setsid sleep 1234 & sleep 1234"], timeout=1)
    assert (ended.code, ended.timed_out) == (-signal.SIGKILL, True)
    assert pair[0].run(["pgrep", "-f", "sleep 1234"]).output == ""


def test_a_command_is_stopped_by_a_signal_while_others_run_on(pair):
    staying = pair[0].start(["sleep", "2"])
    stopped = pair[0].start(["sleep", "1000"])
    pair[0].ping()
    stopped.signal(signal.SIGTERM)
    assert stopped.wait(30).code == -signal.SIGTERM
    assert staying.wait(30).code == 0


def test_a_command_beyond_its_memory_is_killed_alone(pair):
    ended = pair[0].start(["python3", "-c", "bytearray(300 << 20)"], memory=100 << 20, timeout=60).wait(90)
    assert (ended.code, ended.out_of_memory) == (-signal.SIGKILL, True)
    assert pair[0].ping() > 0


def test_files_go_in_and_come_out_whole(pair, tmp_path):
    sent = tmp_path / "sent"
    sent.write_bytes(os.urandom(200_001))
    sent.chmod(0o750)
    pair[0].put(sent, "/root/deep/down/file")
    pair[0].get("/root/deep/down/file", tmp_path / "back" / "file")
    assert (tmp_path / "back" / "file").read_bytes() == sent.read_bytes()
    assert pair[0].run(["stat", "-c", "%a", "/root/deep/down/file"]).output == "750\n"
    (tmp_path / "empty").touch()
    pair[0].put(tmp_path / "empty", "/root/empty")
    assert pair[0].run(["stat", "-c", "%s", "/root/empty"]).output == "0\n"


def test_a_shared_folder_shows_each_guest_at_once_what_another_links_into_it(pair, shared):
    made = pair[0].run(["bash", "-c", "echo here > /share/aside && ln /share/aside /share/key && rm /share/aside"])
    assert made.code == 0, made
    assert pair[1].run(["cat", "/share/key"]).output == "here\n"
    assert (shared / "key").read_text() == "here\n"
    again = pair[1].run(["bash", "-c", "echo there > /share/aside; ln /share/aside /share/key"])
    assert "File exists" in again.errors


def test_verbs_move_whole_bytes_and_a_lossy_wire_makes_the_devices_send_again(pair, plain):
    resent = [sums(pair, RESENT)]
    for wire in (Wire(), Wire(loss=0.02, delay=0.005)):
        pair.set_wire(wire)
        ends = ping_pong(pair)
        for _ in range(2):
            # Whoever is done leaves at once: where the last acknowledgement was lost, the other sends again in vain.
            ends = ends if all(end.code == 0 for end in ends) else ping_pong(pair)
        assert all(end.code == 0 for end in ends), ends
        resent.append(sums(pair, RESENT))
    before, clean, lossy = resent
    # A guest whose processor was elsewhere for long may send once or twice again over any wire.
    assert all(c - z > 3 * (b - a) + 3 for a, b, z, c in zip(before, clean, clean, lossy, strict=True)), resent


def test_a_slow_wire_holds_back_what_is_sent(pair, plain):
    pair.set_wire(Wire(rate=8e6))
    said = pair[0].run(["ping", "-c", "3", "-s", "40000", "-W", "60", pair[1].address], timeout=200).output
    fastest = float(re.search(r"rtt min/avg/max/mdev = ([0-9.]+)/", said)[1])
    # 40 kB there and back at 1 MB/s take 80 ms, however fast the machine.
    assert fastest > 79, said


def test_the_logs_and_counters_of_a_guest_lie_on_this_machine_while_it_runs(pair):
    folder = pair[0].folder
    assert "rxe0" in (folder / "dmesg.log").read_text()
    assert '"sent_pkts"' in (folder / "counters.json").read_text()
    assert "rdma link add" in (folder / "boot.log").read_text()
    assert {host.folder.name for host in pair.hosts} <= {g.folder.rpartition("/")[2] for g in look().guests}


OWNER = """
import sys, time
from pathlib import Path
from emulation.softroce import Cluster
cluster = Cluster(2, Path(sys.argv[1]))
cluster.power_on()
print(*(host.process for host in cluster.hosts), flush=True)
time.sleep(600)
"""


def test_guests_die_with_the_process_that_owns_them(able, tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with owner.stdout:
        groups = [int(word) for word in owner.stdout.readline().split()]
    assert len(groups) == 2
    assert _mine(tmp_path), "no guest runs that could be left behind"
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 20
    while _mine(tmp_path):
        assert time.monotonic() < deadline, _mine(tmp_path)
        time.sleep(0.1)


def _mine(folder):
    return [guest for guest in look().guests if guest.folder.startswith(str(folder))]
