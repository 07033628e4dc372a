import os
import threading
from pathlib import Path

import psutil
import pytest

from harness.records import State
from harness.runner import RunOptions, run
from harness.spec import Limits, Needs

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    # Ray leaves its own sockets and log files to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.timeout(300)
def test_a_ray_of_our_own_runs_trials_ranks_and_failures(make_trial, store):
    import ray

    trials = [
        make_trial("notes", backend="ray"),
        make_trial("meet", backend="ray", world=2, ranks=2),
        make_trial("parting_word", backend="ray", world=2, ranks=2),
        make_trial("segfaults", backend="ray"),
        make_trial("second_rank_dies", backend="ray", world=2, ranks=2),
        make_trial("hangs", backend="ray", limits=Limits(timeout="1 s")),
        make_trial("ok", backend="ray", needs=Needs(gpus=64)),
    ]
    ran = run(trials, store=store, options=RunOptions(grace=1.0))
    assert not ray.is_initialized()
    notes, meet, parting, segfault, dies, hangs, lacks = ran.records
    states = [State.OK] * 3 + [State.CRASHED] * 2 + [State.TIMEOUT, State.UNSUPPORTED]
    assert [r.state for r in ran.records] == states, [r.failure for r in ran.records]
    place = store.record_directory(notes)
    assert [Path(a.path).name for a in notes.artifacts] == ["note.txt", "trace.json"]
    assert all((place / a.path).is_file() for a in notes.artifacts)
    assert [(v.rank, v.samples) for v in meet.values] == [(0, [1.0]), (1, [0.0])]
    assert [v.samples for v in parting.values] == [[5.0]]
    assert segfault.failure.where.endswith(" in segfaults")
    assert [len(r.values) for r in (segfault, hangs)] == [1, 1]
    assert (dies.failure.rank, dies.failure.exit_code) == (1, 7)
    assert lacks.failure.message.startswith("GPUs per host: needs 64")
    assert notes.provenance.hardware["cpu"]


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.timeout(300)
def test_a_node_that_dies_costs_the_attempt_and_not_the_trial(make_trial, store, cluster, tmp_path):
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    trial = make_trial("hangs_once", backend="ray")

    def kill_its_node():
        mark = tmp_path / "hanging"
        while not (mark.exists() and mark.read_text()):
            waiting.wait(0.05)
        ancestors = {p.pid for p in psutil.Process(int(mark.read_text())).parents()}
        for node in workers:
            raylets = node.all_processes["raylet"]
            if any(r.process.pid in ancestors for r in raylets):
                cluster.remove_node(node, allow_graceful=False)

    waiting = threading.Event()
    killer = threading.Thread(target=kill_its_node)
    killer.start()
    options = RunOptions(grace=1.0, ray_address=cluster.address)
    (record,) = run([trial], store=store, options=options).records
    killer.join()
    assert record.state is State.OK, record.failure
    assert [a.state for a in record.attempts] == [State.CRASHED, State.OK]
    assert "lost" in record.attempts[0].failure.message


def test_a_cluster_that_is_not_there_is_one_clear_error(make_trial, store):
    from harness.errors import BackendError

    options = RunOptions(ray_address=f"127.0.0.1:{os.getpid() % 100 + 1}")
    with pytest.raises(BackendError, match=r"no Ray cluster at 127\.0\.0\.1"):
        run([make_trial("ok", backend="ray")], store=store, options=options)
