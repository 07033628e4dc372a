"""Trials on the backend softroce: the same ends as anywhere else, and guests that get lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from emulation.softroce.status import look
from harness.hardware import load_profile
from harness.records import State
from harness.runner import RunOptions, run
from harness.spec import Limits, Needs

pytestmark = pytest.mark.timeout(600)


TWO = load_profile("softroce-2").model_dump(mode="json", by_alias=True)
ONE = {**TWO, "hosts": [{**TWO["hosts"][0], "count": 1}], "fabric": {"links": []}}


@pytest.fixture
def trial(make_trial, store):
    folder = store.directory / "trial" / "made"
    folder.mkdir(parents=True)

    def made(mode, profile=TWO, **more):
        # Guests take their time where others want the same cores.
        one = make_trial(mode, backend="softroce", **{"limits": Limits(timeout="5 min"), **more})
        # Only what lies in the folder of the run is seen by guests and by this test.
        return replace(one, profile=profile, engine_fields={**one.engine_fields, "folder": str(folder)})

    made.folder = folder
    return made


def test_guests_run_trials_ranks_and_failures(trial, store):
    trials = [
        trial("notes"),
        trial("meet", world=2, ranks=2),
        trial("segfaults"),
        trial("second_rank_dies", world=2, ranks=2),
        trial("hangs_on", limits=Limits(timeout="15 s")),
        trial("allocates", limits=Limits(memory="200 MiB", timeout="5 min")),
        trial("ok", needs=Needs(gpus=1)),
        replace(trial("noop"), faults=[{"kind": "link-down", "link": "rdma", "at": "0 s", "detection": "1 s"}]),
    ]
    ran = run(trials, store=store, options=RunOptions(grace=1.0))
    notes, meet, segfault, dies, hangs, *_, unable = ran.records
    states = [State.OK] * 2 + [State.CRASHED] * 2 + [State.TIMEOUT, State.OOM] + [State.UNSUPPORTED] * 2
    assert [r.state for r in ran.records] == states, [r.failure for r in ran.records]
    place = store.record_directory(notes)
    assert [Path(a.path).name for a in notes.artifacts] == ["note.txt", "trace.json"]
    assert all((place / a.path).is_file() for a in notes.artifacts)
    assert [(v.rank, v.samples) for v in meet.values] == [(0, [1.0]), (1, [0.0])]
    assert segfault.failure.where.endswith(" in segfaults")
    assert len(segfault.values) == 1
    assert (dies.failure.rank, dies.failure.exit_code) == (1, 7)
    assert hangs.failure.message == "still running after 15 s (limits.timeout)"
    assert "link-down" in unable.failure.message
    told = meet.provenance.hardware
    assert (told["guests"]["hosts"], told["guests"]["accelerator"], told["rdma"]) == (2, "tcg", ["rxe0"])
    assert told["kernel"] == told["guests"]["kernel"] != os.uname().release
    assert not [g for g in look().guests if str(store.directory) in g.folder]


def test_a_guest_that_dies_costs_the_attempt_and_not_the_trial(trial, store):
    def kill_its_guest():
        while not (mark := trial.folder / "hanging").exists() or not mark.read_text():
            time.sleep(0.05)
        mine = [g for g in look().guests if g.pid not in before and g.folder.endswith("/guest0")]
        for guest in mine:
            os.kill(guest.pid, signal.SIGKILL)

    before = {g.pid for g in look().guests}
    killer = threading.Thread(target=kill_its_guest)
    killer.start()
    one = trial("hangs_once", profile=ONE)
    (record,) = run([one], store=store, options=RunOptions(grace=1.0)).records
    killer.join()
    assert record.state is State.OK, record.failure
    assert [a.state for a in record.attempts] == [State.CRASHED, State.OK]
    assert "a guest of the cluster was lost" in record.attempts[0].failure.message


SPEC = """
schema: 1
name: guests
engine: {name: rdma, transports: [tcp], sizes: [64 KiB]}
on: {backend: local}
repeat: {warmup: 1, runs: 3, seed: 0}
limits: {timeout: 2 min}
faults: [{kind: loss, link: rdma, p: 2 %}, {kind: extra-latency, link: rdma, latency: 3 ms}]
"""


def harness(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "harness", *arguments], capture_output=True, text=True, **options)


def test_a_spec_runs_in_guests_with_its_faults_on_their_wire(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    command = ["run", str(tmp_path / "spec.yaml"), "--on", "softroce:softroce-2@3", "--out", str(tmp_path / "runs")]
    done = harness(*command, "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "runs").rglob("record.json")
    record = json.loads(file.read_text())
    assert (record["target"]["backend"], record["target"]["hardware"]) == ("softroce", "softroce-2@3")
    assert {v["kind"] for v in record["values"]} == {"measured"}
    wires = record["provenance"]["hardware"]["guests"]["wires"]
    assert wires == [{"loss": 0.02, "delay": 0.003, "rate": 0.0}] * 3
    assert {p.parent.name for p in file.parent.rglob("dmesg.log")} == {"guest0", "guest1", "guest2"}


def test_the_verb_runs_a_command_in_a_guest_and_passes_on_its_exit_code(tmp_path):
    (tmp_path / "sent").write_text("sent\n")
    told = "ping -I v0 -c 1 -W 20 10.0.0.2 >&2 && cat /tmp/sent && hostname && exit 7"
    command = ["--hosts", "1", "--delay", "1ms", "--put", str(tmp_path / "sent"), "--to", str(tmp_path / "logs")]
    done = harness("softroce", "run", *command, "--", "bash", "-c", told)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "sent\nguest0\n"
    assert (tmp_path / "logs" / "guest0" / "output.log").read_text() == "sent\nguest0\n"
