from dataclasses import replace

import pytest

from harness.hardware import load_profile
from harness.records import State
from harness.runner import RunOptions, run
from harness.spec import Limits, Needs

pytestmark = pytest.mark.timeout(600)


def guests():
    return load_profile("softroce-2").model_dump(mode="json", by_alias=True)


def test_guests_run_trials_ranks_and_failures(make_trial, store):
    def trial(mode, **more):
        made = make_trial(mode, backend="softroce", **more)
        return replace(made, profile=guests(), engine_fields={**made.engine_fields, "folder": str(folder)})

    folder = store.directory / "trial" / "made"
    folder.mkdir(parents=True)
    trials = [
        trial("notes"),
        trial("meet", world=2, ranks=2),
        trial("segfaults"),
        trial("second_rank_dies", world=2, ranks=2),
        trial("hangs", limits=Limits(timeout="1 s")),
        trial("shares", limits=Limits(memory="200 MiB")),
        trial("ok", needs=Needs(gpus=1)),
    ]
    ran = run(trials, store=store, options=RunOptions(grace=1.0))
    for r in ran.records: print(r.cell, r.state, r.failure, r.seconds, r.provenance.hardware)
    notes, meet, segfault, dies, hangs, shares, lacks = ran.records
    states = [State.OK] * 2 + [State.CRASHED] * 2 + [State.TIMEOUT, State.OOM, State.UNSUPPORTED]
    assert [r.state for r in ran.records] == states, [r.failure for r in ran.records]
