"""Iteration times that Aceso measured on up to 32 V100, predicted from the profiles that it published."""

import os
from pathlib import Path

import pytest
import yaml

from engines.superscaler.aceso.prediction import compare
from engines.superscaler.aceso.profile import read
from engines.superscaler.aceso.space import LIMIT, best, recomputed

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("HARNESS_DATA") or ROOT.parent / "shared" / "data") / "aceso-v100"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs Aceso's profiles (HARNESS_DATA)")


@pytest.fixture(scope="module")
def published() -> dict:
    return yaml.safe_load((ROOT / "results/published/aceso.yaml").read_text())["tables"]["gpt-iteration"]["rows"]


def test_the_plan_that_is_published_takes_what_aceso_predicts(published) -> None:
    plan = recomputed(read(DATA, "350M"), micro_batch=8)
    assert plan.seconds == pytest.approx(published["Aceso predicted"]["350M"], abs=0.01)


@pytest.mark.wide
def test_iteration_times_are_predicted_within_five_percent(published) -> None:
    found = compare(DATA, published["Aceso actual"])
    for point in found.points.values():
        assert point.events == pytest.approx(point.formula, rel=0.005)
        assert max(stage.memory for stage in point.plan.stages) <= LIMIT * 1.0001
    assert found.mape <= 0.05
    assert max(abs(point.error) for point in found.points.values()) <= 0.08


def test_less_memory_or_fewer_devices_never_make_a_plan_faster() -> None:
    profile = read(DATA, "1_3B")
    times = [best(profile, 4, limit=limit).seconds for limit in (16_000.0, 20_000.0, 28_000.0)]
    assert times == sorted(times, reverse=True)
    assert best(profile, 2).seconds > times[-1]
