"""The fit and the emulator against published iteration times."""

import os
from pathlib import Path

import pytest

from emulation.calibrate.score import Pair, score
from emulation.validation import allreduce, megatron
from emulation.validation.megatron_cluster import PRIORS, Figures, cluster
from emulation.validation.megatron_fit import ClosedForm, Messages, fit_figures
from emulation.workloads.training import step_seconds
from harness.hardware import load_profile

DATA = Path(os.environ.get("HARNESS_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")
TRUTH = Figures(**{name: prior.median for name, prior in PRIORS.items()})
needs_data = pytest.mark.skipif(
    not (DATA / megatron.FOLDER / "multi_node.csv").is_file(), reason=f"no published iteration times in {DATA}"
)


@pytest.fixture(scope="module")
def published():
    return megatron.rows(DATA)


@needs_data
def test_splits_hold_every_scored_row_out(published):
    for split in megatron.splits(published, 0):
        fitted = {found.key for found in split.fit}
        assert not any(found.key in fitted for found in split.scored)
        assert {found.key for found in allreduce.rows(DATA)} <= fitted


@needs_data
def test_held_out_rows_are_predicted_as_well_as_claimed(published):
    errors = {}
    for split in megatron.splits(published, 0):
        predict = megatron.fit(split.fit, 0, simulate=False)
        pairs = []
        for found in split.scored:
            prediction = predict(found)
            pairs.append(Pair(prediction.seconds, found.seconds, (prediction.low, prediction.high)))
        errors[split.name.split(":")[0], not split.drawn] = score(pairs)
    assert errors["clusters", False].mape <= 0.06
    assert errors["clusters", True].mape <= 0.07
    assert errors["one node", False].mape <= 0.03
    assert errors["one node", False].coverage == pytest.approx(0.8, abs=0.08)


@needs_data
def test_the_band_of_shapes_that_were_not_fitted_is_wider(published):
    node = [found for found in published if found.features.get("gpus", 99) <= 8]
    tables = [found for found in published if "gpus" not in found.features]
    shapes = [(found.features["hidden"], found.features["tensor"], found.features["micro_batch"]) for found in node]
    gone = set(sorted(set(shapes))[::4])
    predict = megatron.fit(
        [*(found for found, shape in zip(node, shapes, strict=True) if shape not in gone), *tables], 0, simulate=False
    )
    new = [predict(found) for found, shape in zip(node, shapes, strict=True) if shape in gone]
    old = [predict(found) for found, shape in zip(node, shapes, strict=True) if shape not in gone]
    assert min(found.high / found.low for found in new) > 2 * max(found.high / found.low - 1 for found in old) + 1


@needs_data
def test_published_rows_are_emulated_as_they_were_fitted(published):
    steps = [found for found in published if "gpus" in found.features]
    fitted = megatron.fitted_tables(published)
    for found in [*steps[:13:4], *steps[56::180]]:
        closed = ClosedForm.of([megatron.case(found)], Messages(fitted)).times(TRUTH)[0]
        assert megatron.simulated(found, TRUTH, fitted) == pytest.approx(closed, rel=2e-3)


@needs_data
def test_the_shipped_profile_has_the_figures_of_all_published_rows(published):
    profile = load_profile("a100x8-hdr-megatron@8")
    steps = [found for found in published if "gpus" in found.features]
    figures = fit_figures(
        ClosedForm.of([megatron.case(found) for found in steps], Messages(megatron.fitted_tables(published)))
    )
    found = megatron.case(steps[0])
    fitted = cluster(figures, 64, megatron.fitted_tables(published))
    expected = step_seconds(found.model, found.plan, fitted)
    assert step_seconds(found.model, found.plan, profile) == pytest.approx(expected, rel=5e-3)
    families = profile.models["a100"].compute["fp16"].families
    assert families["matmul"].flops.value_at(1e12) == pytest.approx(figures.matmul, rel=5e-3)
    assert families["matmul"].half.rows == pytest.approx(figures.rows, rel=2e-2)
    assert families["elementwise"].bytes.value_at(1e9) == pytest.approx(figures.memory, rel=5e-3)
    assert profile.framework.call.value == pytest.approx(figures.call, rel=5e-3)
    assert profile.fabric.links[0].efficiency.value == pytest.approx(figures.network, rel=5e-3)
