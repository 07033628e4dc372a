from dataclasses import replace

import pytest

from emulation.validation import Row, megatron
from emulation.validation.megatron_cluster import PRIORS, Figures
from emulation.validation.megatron_fit import ClosedForm, Messages, fit_figures

TRUTH = Figures(**{name: prior.median for name, prior in PRIORS.items()})


def row(gpus, batch, micro_batch, hidden, layers, tensor, data, pipeline, seconds=1.0, family="model"):
    sizes = (gpus, batch, micro_batch, hidden, 32, layers, 1024, tensor, data, pipeline)
    return Row(family, dict(zip(megatron.NAMES, sizes, strict=True)), seconds, choice=family)


@pytest.fixture(scope="module")
def tables():
    """Rings on 2, 4 and 8 GPUs."""
    times = {
        ranks: [(2.0**k * 2**20, 20e-6 * ranks + 2**k * 1e-5 * (ranks - 1) / ranks) for k in range(11)]
        for ranks in (2, 4, 8)
    }
    rows = [
        Row(f"{ranks} A100", {"chip": "A100", "ranks": ranks, "bytes": size}, seconds)
        for ranks, sweep in times.items()
        for size, seconds in sweep
    ]
    return rows


PLANS = [
    row(8, 16, 2, 2048, 8, 2, 2, 2),
    row(4, 8, 1, 1024, 8, 1, 1, 4),
    row(2, 4, 2, 1024, 8, 2, 1, 1),
    row(32, 64, 2, 4096, 16, 4, 2, 4),
    row(64, 64, 4, 4096, 16, 16, 4, 1),
    row(16, 64, 2, 4096, 16, 1, 8, 2),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.features['gpus']} GPUs")
def test_what_is_fitted_is_what_the_emulator_does(plan, tables):
    fitted = megatron.fitted_tables(tables)
    closed = ClosedForm.of([megatron.case(plan)], Messages(fitted)).times(TRUTH)[0]
    assert megatron.simulated(plan, TRUTH, fitted) == pytest.approx(closed, rel=2e-3)


def sweep():
    """Plans of several sizes, on one node and on clusters."""
    node = [
        row(tensor * data * pipeline, 16 * data, micro, hidden, 8, tensor, data, pipeline, family="node")
        for hidden in (1024, 2048)
        for micro in (1, 4, 8)
        for tensor, data, pipeline in ((1, 2, 1), (2, 1, 1), (2, 2, 2), (8, 1, 1), (1, 2, 4))
    ]
    cluster = [
        row(tensor * data * pipeline, 512, micro, hidden, 32, tensor, data, pipeline, family="cluster")
        for hidden in (3072, 8192)
        for micro in (1, 4)
        for tensor, data, pipeline in ((8, 8, 1), (4, 8, 4), (8, 4, 8), (16, 4, 1), (8, 16, 4))
    ]
    return [*node, *cluster]


@pytest.fixture(scope="module")
def synthetic(tables):
    truth = replace(TRUTH, matmul=0.8, memory=0.6, call=55e-6, network=0.28, cluster_step=0.1)
    rows = sweep()
    form = ClosedForm.of([megatron.case(found) for found in rows], Messages(megatron.fitted_tables(tables)))
    return truth, [replace(found, seconds=float(time)) for found, time in zip(rows, form.times(truth), strict=True)]


def test_the_fit_finds_the_figures_that_made_the_rows(synthetic, tables):
    truth, rows = synthetic
    form = ClosedForm.of([megatron.case(found) for found in rows], Messages(megatron.fitted_tables(tables)))
    found = fit_figures(form)
    for name in ("matmul", "memory", "call", "network"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.05), name


def test_a_prediction_stays_within_its_band_and_near_the_truth(synthetic, tables):
    _, rows = synthetic
    held, rest = rows[::5], [found for number, found in enumerate(rows) if number % 5]
    predict = megatron.fit([*rest, *tables], 0, simulate=False)
    for found in held:
        prediction = predict(found)
        assert prediction.seconds == pytest.approx(found.seconds, rel=0.05)
        assert prediction.low <= prediction.seconds <= prediction.high


def test_rows_of_tables_are_not_predicted(synthetic, tables):
    _, rows = synthetic
    assert megatron.fit([*rows[:30], *tables], 0, simulate=False)(tables[0]) is None
    assert megatron.fit([*rows[:30], *tables], 0, simulate=False)(rows[-1]) is None


def test_a_file_with_other_columns_is_refused_at_its_line(tmp_path):
    folder = tmp_path / megatron.FOLDER
    folder.mkdir()
    (folder / "single_node.csv").write_text("gpus,time\n8,1\n")
    with pytest.raises(ValueError, match=r"single_node.csv:1: expected the columns # GPUs"):
        megatron.rows(tmp_path)
    (folder / "single_node.csv").write_text(",".join(megatron.COLUMNS) + "\n8,16,2,2048,16,8,1024,2,2,x,1\n")
    with pytest.raises(ValueError, match=r"single_node.csv:2: expected 11 numbers"):
        megatron.rows(tmp_path)


def test_an_absent_folder_has_no_rows(tmp_path):
    assert megatron.rows(tmp_path) == []
