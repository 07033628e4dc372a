import hashlib
from pathlib import Path

import pytest

from harness import project
from harness.load import load_yaml_model
from harness.records import TargetStamp
from harness.runner import RunOptions, run
from harness.spec import Limits, Needs, RepeatSpec
from harness.store import Store
from harness.trial import Trial

ENGINES = Path(__file__).parent / "engines"


@pytest.fixture(scope="session")
def profile():
    from emulation.profile import Profile

    loaded = load_yaml_model(Path(project.__file__).parent.parent / "specs" / "hardware" / "laptop.yaml", Profile)
    return loaded.model_dump(mode="json", by_alias=True)


@pytest.fixture
def make_trial(profile, tmp_path):
    def make(mode="ok", cell="default", backend="local", *, key="", limits=None, needs=None, ranks=1, **fields):
        fields = {"name": "fake", "mode": mode, "folder": str(tmp_path), **fields}
        return Trial(
            key=key or hashlib.sha256(repr((mode, cell, backend, sorted(fields.items()))).encode()).hexdigest(),
            spec="trial",
            cell=cell,
            swept={},
            target=TargetStamp(backend=backend, hardware="laptop"),
            resolved={"engine": fields},
            origins={},
            engine="fake",
            engine_version="1",
            package="fake",
            engine_fields=fields,
            profile=profile,
            ranks=ranks,
            repeat=RepeatSpec(warmup=1, runs=3, seed=7),
            limits=limits or Limits(timeout="60 s"),
            needs=needs or Needs(),
            import_path=(str(ENGINES),),
        )

    return make


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def execute(store):
    def execute(*trials, listener=None, **options):
        return run(trials, store=store, options=RunOptions(grace=1.0, **options), listener=listener)

    return execute
