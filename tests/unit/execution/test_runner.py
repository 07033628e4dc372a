import threading

import pytest

from harness.records import State
from harness.runner import RunOptions, run
from harness.spec import Limits


class Heard:
    def __init__(self, on=None):
        self.events = []
        self._on = on

    def on(self, event):
        self.events.append((event.kind, event.trial.cell))
        if self._on:
            self._on(event)


def runs_of(tmp_path):
    return len((tmp_path / "ran").read_text().splitlines())


def test_what_is_recorded_is_not_run_again(execute, make_trial, tmp_path):
    trials = [make_trial("counted", cell=f"cell{i}") for i in range(3)]
    execute(*trials[:2])
    heard = Heard()
    ran = execute(*trials, listener=heard)
    assert runs_of(tmp_path) == 3
    assert ran.executed == 1
    assert [r.cell for r in ran.records] == ["cell0", "cell1", "cell2"]
    assert heard.events == [("cached", "cell0"), ("cached", "cell1"), ("start", "cell2"), ("record", "cell2")]


MODES = {
    "cached keeps failures": ("cached", 0, 2),
    "retry runs what failed": ("retry", 1, 2),
    "force runs all": ("force", 2, 2),
    "read-only runs none": ("read-only", 0, 2),
}


@pytest.mark.parametrize(("mode", "executed", "records"), MODES.values(), ids=list(MODES))
def test_the_mode_says_what_runs_again(execute, make_trial, mode, executed, records):
    trials = [make_trial("ok"), make_trial("raises")]
    execute(*trials)
    ran = execute(*trials, mode=mode)
    assert (ran.executed, len(ran.records)) == (executed, records)


def test_read_only_says_what_is_missing_and_creates_nothing(execute, make_trial, store):
    ran = execute(make_trial("ok"), mode="read-only")
    assert ran.records == []
    assert [t.cell for t in ran.missing] == ["default"]
    assert not store.directory.exists()


def test_force_replaces_the_record_and_its_files(execute, make_trial, store):
    trial = make_trial("notes")
    first = execute(trial).records[0]
    second = execute(trial, mode="force").records[0]
    place = store.trial_directory(trial)
    assert first.started < second.started
    assert all((place / a.path).is_file() for a in second.artifacts)
    assert [p.name for p in (place / "attempts").iterdir()] == ["2"]
    assert [r.started for r in store.records()] == [second.started]


def test_a_forced_run_that_is_killed_leaves_the_old_record_whole(execute, make_trial, store):
    trial = make_trial("notes")
    first = execute(trial).records[0]

    def die(event):
        if event.kind == "start":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(trial, mode="force", listener=Heard(die))
    place = store.trial_directory(trial)
    assert store.find(trial) == first
    assert all((place / a.path).is_file() for a in first.artifacts)


def test_fail_fast_stops_at_the_first_that_does_not_end_well(execute, make_trial):
    trials = [make_trial("ok", "a"), make_trial("raises", "b"), make_trial("ok", "c")]
    ran = execute(*trials, fail_fast=True)
    assert [r.state for r in ran.records] == [State.OK, State.FAILED]
    assert [t.cell for t in ran.missing] == ["c"]


def test_a_crash_is_tried_again_within_its_retries(execute, make_trial):
    (record,) = execute(make_trial("crashes_once", limits=Limits(timeout="60 s", retries=2))).records
    assert record.state is State.OK
    assert [a.state for a in record.attempts] == [State.CRASHED, State.OK]
    assert record.attempts[0].failure.exit_code == 9


def test_retries_end(execute, make_trial):
    (record,) = execute(make_trial("exits", limits=Limits(timeout="60 s", retries=2))).records
    assert [a.state for a in record.attempts] == [State.CRASHED] * 3


def test_an_exception_of_the_engine_is_not_tried_again(execute, make_trial):
    (record,) = execute(make_trial("raises", limits=Limits(timeout="60 s", retries=2))).records
    assert len(record.attempts) == 1


def test_predictions_run_side_by_side_and_measured_trials_alone(execute, make_trial):
    most = {"emulated": 0, "local": 0}
    active = dict.fromkeys(most, 0)

    def count(event):
        backend = event.trial.target.backend
        active[backend] += {"start": 1, "record": -1}[event.kind]
        most[backend] = max(most[backend], sum(active.values()))

    trials = [make_trial("noop", f"c{i}", backend) for backend in most for i in range(6)]
    ran = execute(*trials, jobs=3, listener=Heard(count))
    assert all(r.state is State.OK for r in ran.records)
    assert most == {"emulated": 3, "local": 1}


def test_the_same_trial_named_twice_runs_once(execute, make_trial, tmp_path):
    trial = make_trial("counted")
    assert len(execute(trial, trial).records) == 1
    assert runs_of(tmp_path) == 1


@pytest.mark.parametrize("state", [State.CANCELLED, State.UNSUPPORTED])
def test_what_never_ran_to_its_end_is_run_again(execute, make_trial, store, state):
    trial = make_trial("ok")
    record = execute(trial).records[0]
    store.write(record.model_copy(update={"state": state}))
    assert execute(trial).records[0].state is State.OK


def test_the_runner_works_in_a_thread(make_trial, store):
    found = []
    thread = threading.Thread(target=lambda: found.extend(run([make_trial("ok")], store=store).records))
    thread.start()
    thread.join()
    assert [r.state for r in found] == [State.OK]


def test_two_runs_of_one_emulated_trial_have_equal_results(execute, make_trial):
    trial = make_trial("ok", backend="emulated")
    first = execute(trial).records[0]
    second = execute(trial, mode="force").records[0]
    assert first.result_digest == second.result_digest
    assert first.started != second.started


def test_options_have_the_defaults_of_the_command_line():
    assert RunOptions() == RunOptions(mode="cached", jobs=0, fail_fast=False, ray_address="", grace=10.0)
