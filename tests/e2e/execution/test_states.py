import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from harness.backends import group
from harness.records import Kind, State
from harness.spec import Limits, Needs


def only(ran):
    (record,) = ran.records
    return record


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_trial_that_works_leaves_its_values(execute, make_trial):
    record = only(execute(make_trial("ok")))
    assert record.state is State.OK, record.failure
    assert [(v.labels, v.samples, v.kind) for v in record.values] == [
        ({"part": "first"}, [1.5, 3.0], Kind.MEASURED),
        ({"part": "second"}, [0.1, 0.2], Kind.MEASURED),
    ]
    assert record.plan_digest
    assert "pydantic" in record.provenance.packages


ENDS = {
    "raises": (State.FAILED, {"type": "ValueError", "message": "the engine is out of steam", "exit_code": 1}),
    "leaves": (State.FAILED, {"type": "SystemExit", "message": "I have had enough"}),
    "exits": (State.CRASHED, {"exit_code": 3, "signal": None}),
    "exits_with_zero": (State.CRASHED, {"exit_code": 0}),
    "segfaults": (State.CRASHED, {"signal": signal.SIGSEGV}),
    "kills_itself": (State.CRASHED, {"signal": signal.SIGKILL}),
    "cuda_out_of_memory": (State.OOM, {"type": "RuntimeError"}),
}


@pytest.mark.parametrize(("mode", "state", "failure"), [(m, *e) for m, e in ENDS.items()], ids=list(ENDS))
def test_an_end_is_named_and_what_was_measured_before_is_kept(execute, make_trial, mode, state, failure):
    ran = execute(make_trial(mode, cell="bad"), make_trial("ok", cell="good"))
    bad, good = ran.records
    assert bad.state is state, bad.failure
    assert {k: getattr(bad.failure, k) for k in failure} == failure
    assert [v.samples for v in bad.values] == [[1.5, 3.0]]
    assert good.state is State.OK


@pytest.mark.parametrize("mode", ["raises", "segfaults"])
def test_a_failure_points_at_the_engines_own_line(execute, make_trial, mode):
    record = only(execute(make_trial(mode)))
    assert record.failure.where.startswith("fake/engine.py:")
    assert record.failure.where.endswith(f" in {mode}")
    assert mode in record.failure.log_tail


REFUSED = {
    "undeclared": "metric 'tiem' is not declared; did you mean 'time'?",
    "unlabelled": "needs labels ['part']",
    "infinite": "not finite",
}


@pytest.mark.parametrize(("mode", "message"), REFUSED.items(), ids=list(REFUSED))
def test_a_measurement_that_breaks_its_declaration_fails_the_trial(execute, make_trial, mode, message):
    record = only(execute(make_trial(mode)))
    assert record.state is State.FAILED
    assert message in record.failure.message


def test_values_that_are_not_finite_survive_the_record(execute, make_trial, store):
    execute(make_trial("any_loss"))
    (value,) = store.records()[0].values
    assert [str(s) for s in value.samples] == ["nan", "inf", "-inf", "1.0"]


@pytest.mark.parametrize("mode", ["allocates", "shares"])
def test_more_memory_than_allowed_is_oom(execute, make_trial, mode):
    record = only(execute(make_trial(mode, limits=Limits(timeout="60 s", memory="200 MiB"))))
    assert record.state is State.OOM, record.failure
    assert len(record.values) == 1


class ClockFromAnEvent:
    """A clock that stands still until a trial has written its note: a slow start takes nothing off its limit."""

    def __init__(self, note):
        self._note = note
        self._zero = None

    def monotonic(self):
        if self._zero is None and self._note.exists() and self._note.read_text():
            self._zero = time.monotonic()
        return 0.0 if self._zero is None else time.monotonic() - self._zero


@pytest.mark.parametrize("mode", ["hangs", "hangs_on"])
def test_a_trial_that_hangs_is_stopped_and_says_where(execute, make_trial, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(group, "time", ClockFromAnEvent(tmp_path / "hanging"))
    record = only(execute(make_trial(mode, limits=Limits(timeout="0.2 s"))))
    assert record.state is State.TIMEOUT
    assert "limits.timeout" in record.failure.message
    assert len(record.values) == 1
    assert gone(int((tmp_path / "hanging").read_text()))
    if mode == "hangs":
        assert record.failure.where.endswith(" in hangs")


def test_grandchildren_do_not_outlive_their_trial(execute, make_trial, tmp_path):
    record = only(execute(make_trial("leaves_grandchildren")))
    assert record.state is State.OK, record.failure
    assert gone(int((tmp_path / "grandchild").read_text()))


def test_an_engine_may_say_that_the_environment_lacks_something(execute, make_trial):
    record = only(execute(make_trial("lacks")))
    assert record.state is State.UNSUPPORTED
    assert record.failure.message == "no such device here; load its driver"


LACKING = {
    "gpus": ({"gpus": 64}, "GPUs per host: needs 64, has "),
    "hosts": ({"hosts": 3}, "hosts: needs 3, has 1"),
    "memory": ({"memory": "1 PiB"}, "memory per host: needs 1024 TiB, has "),
}


@pytest.mark.parametrize("backend", ["local", "emulated"])
@pytest.mark.parametrize(("needs", "message"), LACKING.values(), ids=list(LACKING))
def test_a_need_that_is_not_met_is_unsupported_and_nothing_runs(execute, make_trial, store, needs, message, backend):
    trial = make_trial("ok", backend=backend, needs=Needs(**needs))
    record = only(execute(trial))
    assert record.state is State.UNSUPPORTED
    assert message in record.failure.message
    assert not record.attempts
    assert not (store.trial_directory(trial) / "attempts").exists()


def test_the_middle_of_a_long_log_is_left_out(execute, make_trial, store):
    trial = make_trial("writes_much")
    execute(trial)
    log = store.trial_directory(trial) / "attempts" / "1" / "rank0" / "stdout.log"
    text = log.read_text()
    assert len(text) < 10 * 2**20
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert "bytes left out" in text


def test_artifacts_and_the_timeline_are_kept_and_scratch_is_not(execute, make_trial, store, tmp_path):
    trial = make_trial("notes")
    record = only(execute(trial))
    place = store.trial_directory(trial)
    assert [Path(a.path).name for a in record.artifacts] == ["note.txt", "trace.json"]
    assert all((place / a.path).stat().st_size == a.bytes for a in record.artifacts)
    assert len(record.values[0].samples) == 4
    assert not Path((tmp_path / "scratch").read_text()).exists()


def test_ranks_meet_and_report(execute, make_trial):
    record = only(execute(make_trial("meet", world=2, ranks=2)))
    assert record.state is State.OK, record.failure
    assert [(v.rank, v.samples) for v in record.values] == [(0, [1.0]), (1, [0.0])]


def test_a_rank_that_dies_takes_the_others_with_it(execute, make_trial):
    record = only(execute(make_trial("second_rank_dies", world=2, ranks=2)))
    assert record.state is State.CRASHED
    assert (record.failure.rank, record.failure.exit_code) == (1, 7)
    assert record.seconds < 30
    assert {v.rank for v in record.values} == {0, 1}


def test_ranks_that_plan_differently_are_refused(execute, make_trial):
    record = only(execute(make_trial("plans_differ", world=2, ranks=2)))
    assert record.state is State.FAILED
    assert record.failure.type == "PlanMismatch"


def test_a_prediction_is_labelled_and_stamped(execute, make_trial):
    record = only(execute(make_trial("ok", backend="emulated")))
    assert record.state is State.OK, record.failure
    (value,) = record.values
    assert (value.kind, value.band) == (Kind.EMULATED, (1.0, 3.0))
    assert record.emulation.profile == "laptop"
    assert len(record.emulation.profile_digest) == 64


def test_a_trial_inherits_no_descriptor_and_no_terminal(execute, make_trial, store):
    trial = make_trial("descriptors")
    record = only(execute(trial))
    assert record.state is State.OK, record.failure
    assert record.values[0].samples == [0.0]


def test_the_callers_environment_reaches_the_trial(execute, make_trial, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    record = only(execute(make_trial("reads_environment")))
    assert record.values[0].samples == [3.0]
    assert record.provenance.environment["OMP_NUM_THREADS"] == "3"


def test_nothing_of_a_run_is_left_running(execute, make_trial):
    before = {p.pid for p in psutil.Process(os.getpid()).children(recursive=True)}
    execute(make_trial("ok"), make_trial("raises"))
    assert {p.pid for p in psutil.Process(os.getpid()).children(recursive=True)} <= before
