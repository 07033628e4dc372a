"""Trials of the fake engine, made by hand."""

import functools
import hashlib
from pathlib import Path

from emulation.profile import Profile
from harness import project
from harness.load import load_yaml_model
from harness.records import TargetStamp
from harness.spec import Limits, Needs, RepeatSpec
from harness.trial import Trial

ENGINES = Path(__file__).parent.parent


@functools.cache
def laptop():
    profile = load_yaml_model(Path(project.__file__).parent.parent / "specs" / "hardware" / "laptop.yaml", Profile)
    return profile.model_dump(mode="json", by_alias=True)


def make(folder, mode="ok", cell="default", backend="local", *, limits=None, needs=None, ranks=1, **fields):
    fields = {"name": "fake", "mode": mode, "folder": str(folder), **fields}
    return Trial(
        key=hashlib.sha256(repr((mode, cell, backend, sorted(fields.items()))).encode()).hexdigest(),
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
        profile=laptop(),
        ranks=ranks,
        repeat=RepeatSpec(warmup=1, runs=3, seed=7),
        limits=limits or Limits(timeout="60 s"),
        needs=needs or Needs(),
        import_path=(str(ENGINES),),
    )
