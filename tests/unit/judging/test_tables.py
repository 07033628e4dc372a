from __future__ import annotations

import pytest

from harness.errors import SpecError
from harness.judging.tables import build
from harness.records import State

BY = {"rows": "transport", "columns": "payload", "value": "step_time", "baseline": {"transport": "grpc"}}


def grid(section):
    """{(row, kind, column): text or reason}."""
    return {(line.row, line.kind, cell.column): cell.text for line in section.lines for cell in line.cells}


def test_measured_and_emulated_stand_beside_each_other(make, shipped):
    records = [make.transports(), make.transports(backend="emulated", hardware="pair")]
    (table,) = build(make.experiment(tables=[BY]), records, shipped)
    (section,) = table.sections
    assert [(line.row, line.kind, line.place) for line in section.lines[:2]] == [
        ("grpc", "measured", "laptop (local)"),
        ("grpc", "emulated", "pair"),
    ]
    assert table.columns == make.MODELS
    for line in section.lines:
        for cell in line.cells:
            assert str(cell.figure.kind) == line.kind
            assert cell.figure.target.hardware in line.place


def test_ratios_are_oriented_so_that_above_one_is_better(make, shipped):
    table = {**BY, "value": ["step_time", "bandwidth"]}
    (view,) = build(make.experiment(tables=[table]), [make.transports()], shipped)
    for section in view.sections:
        by_row = {line.row: line.cells[0] for line in section.lines}
        assert by_row["grpc"].baseline
        assert by_row["shm"].ratio.value == pytest.approx(22.75)
        assert by_row["shm"].ratio.low <= by_row["shm"].ratio.value <= by_row["shm"].ratio.high


def test_ratios_stay_within_one_target(make, shipped):
    only = make.record([make.value("step_time", [1.0], transport="shm", payload="m")], backend="ray", hardware="lab")
    (view,) = build(make.experiment(tables=[BY]), [make.transports(), only], shipped)
    lab = [c for line in view.sections[0].lines if "lab" in line.place for c in line.cells if c.figure]
    assert len(lab) == 1
    assert lab[0].ratio is None


def test_every_empty_cell_says_why(make, shipped):
    sweep = {"grid": {"engine.size": [1, 2, 3]}}
    records = [
        make.record([make.value("step_time", [1.0], transport="shm")], cell="1", swept={"engine.size": 1}),
        make.record(cell="2", swept={"engine.size": 2}, state=State.OOM, message="12 GB of 8 GB"),
        make.record(cell="3", swept={"engine.size": 3}),
    ]
    experiment = make.experiment(
        sweep=sweep, tables=[{"rows": "transport", "columns": "engine.size", "value": "step_time"}]
    )
    (view,) = build(experiment, records, shipped)
    assert view.column_name == "size"
    assert grid(view.sections[0]) == {
        ("shm", "measured", "1"): "1 s",
        ("shm", "measured", "2"): "(oom: 12 GB of 8 GB)",
        ("shm", "measured", "3"): "(not reported)",
    }


def test_a_target_without_any_value_is_named_once_with_its_reason(make, shipped):
    stated = [{"backend": "local"}, {"backend": "ray", "hardware": "lab"}, {"backend": "emulated", "hardware": "pair"}]
    lacking = make.record(backend="ray", hardware="lab", state=State.UNSUPPORTED, message="needs 2 GPUs")
    (view,) = build(make.experiment(on=stated, tables=[BY]), [make.transports(), lacking], shipped)
    absent = [(a.kind, a.place, a.reason) for a in view.sections[0].absent]
    assert absent == [("measured", "lab (ray)", "unsupported: needs 2 GPUs"), ("emulated", "pair", "not run")]


def test_no_two_values_fall_into_one_cell(make, shipped):
    values = [
        make.value("step_time", [s], transport=t, payload=p) for s, t, p in ((1.0, "shm", "a"), (2.0, "shm", "b"))
    ]
    (view,) = build(
        make.experiment(tables=[{"rows": "transport", "value": "step_time"}]), [make.record(values)], shipped
    )
    assert grid(view.sections[0]) == {
        ("shm, payload a", "measured", ""): "1 s",
        ("shm, payload b", "measured", ""): "2 s",
    }


def test_rows_and_columns_follow_the_sweep_not_the_records(make, shipped):
    sweep = {"grid": {"engine.size": [30, 4, 100]}}
    records = [
        make.record([make.value("step_time", [1.0])], cell=str(s), swept={"engine.size": s}) for s in (100, 4, 30)
    ]
    (view,) = build(
        make.experiment(sweep=sweep, tables=[{"rows": "engine.size", "value": "step_time"}]), records, shipped
    )
    assert [line.row for line in view.sections[0].lines] == ["30", "4", "100"]


def test_a_published_row_of_the_same_name_is_set_under_ours(make, paper):
    values = [make.value("step_time", [0.1], transport="Time", payload=p) for p in ("exact", "unknown", "new")]
    table = {"rows": "transport", "columns": "payload", "value": "step_time", "reference": "p/t"}
    (view,) = build(make.experiment(tables=[table]), [make.record(values)], paper)
    published = [line for line in view.sections[0].lines if line.kind == "published"]
    assert [(line.row, line.place) for line in published] == [("Time", "Table 1, p. 3")]
    assert [cell.text for cell in published[0].cells] == ["100 ms", "not known", "(not published)"]
    assert "p/t/time/exact" not in {claim.path for claim in view.claims}
    assert "p/t/speed/exact" in {claim.path for claim in view.claims}


def test_a_headline_is_shown_beside_the_table(make, shipped):
    reference = "rdma/abstract/device/speedup_over_grpc"
    (view,) = build(make.experiment(tables=[{**BY, "reference": reference}]), [make.transports()], shipped)
    assert [claim.text for claim in view.claims] == ["up to 25 x"]


def test_without_tables_every_metric_is_shown_by_cell(make, shipped):
    (view,) = build(make.experiment(), [make.transports()], shipped)
    assert [section.metric for section in view.sections] == ["step_time", "bandwidth"]
    assert len(view.sections[0].lines) == 12


def test_where_narrows_a_table(make, shipped):
    (view,) = build(make.experiment(tables=[{**BY, "where": {"payload": "bert-base"}}]), [make.transports()], shipped)
    assert view.columns == ("bert-base",)


def test_no_records_give_an_empty_table(make, shipped):
    (view,) = build(make.experiment(tables=[BY]), [], shipped)
    assert view.sections[0].lines == ()


def test_a_reference_that_does_not_exist_is_a_mistake_of_the_spec(make, shipped):
    with pytest.raises(SpecError, match="did you mean 'abstract'"):
        build(make.experiment(tables=[{**BY, "reference": "rdma/abstrat"}]), [make.transports()], shipped)


def test_samples_of_several_ranks_are_pooled(make, shipped):
    values = [make.value("step_time", [s]).model_copy(update={"rank": r}) for r, s in enumerate((1.0, 2.0, 3.0))]
    (view,) = build(make.experiment(), [make.record(values)], shipped)
    figure = view.sections[0].lines[0].cells[0].figure
    assert (figure.value, figure.n) == (2.0, 3)
