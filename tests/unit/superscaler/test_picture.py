"""What a person sees: the chart, the sketch, the table, the trace and the reasons."""

from __future__ import annotations

import json

import pytest

from emulation.evaluate import simulate
from engines.superscaler import emulate, memory, picture
from engines.superscaler.plan import Block
from harness.hardware import load_profile

from .pipelines import INNER, WIDTH, pipeline, table


@pytest.fixture
def drawn(monkeypatch):
    table(monkeypatch)
    profile = load_profile("v100x8-nvlink")
    program = pipeline(2, 2, 2, micro_batches=3)
    lowered = emulate.workload(program, profile)
    return program, lowered, simulate(lowered.work, profile), memory.over_step(program), profile


def test_spans_are_the_blocks_of_each_device_in_order(drawn):
    _, lowered, result, _, _ = drawn
    found = picture.spans(lowered, result)
    first = found[0].device
    forward = [s.block for s in found if s.device == first and s.kind == "compute" and s.block and s.block.what == "F"]
    assert forward == [Block(0, m, "F") for m in range(3)]
    assert max(span.end for span in found) == pytest.approx(result.seconds)
    assert {span.kind for span in found} == {"compute", "collective", "message"}
    assert all(span.start < span.end for span in found)


def test_folded_and_rank_by_rank_are_drawn_alike(drawn):
    program, lowered, result, _, profile = drawn
    ranks = emulate.workload(program, profile, form="ranks")
    other = simulate(ranks.work, profile)
    devices = {span.device for span in picture.spans(lowered, result)}
    wanted = [span for span in picture.spans(lowered, result) if span.kind != "message"]
    found = [span for span in picture.spans(ranks, other, devices) if span.kind != "message"]
    assert [(s.device, s.kind, s.block) for s in found] == [(s.device, s.kind, s.block) for s in wanted]
    assert [s.start for s in found] == pytest.approx([s.start for s in wanted])


def test_files_are_complete_and_the_same_every_time(drawn, tmp_path):
    program, lowered, result, held, profile = drawn
    once, again = tmp_path / "once", tmp_path / "again"
    for folder in (once, again):
        folder.mkdir()
        picture.write(folder, program, lowered, result, held, profile)
    names = sorted(path.name for path in once.iterdir())
    assert names == ["plan.json", "plan.svg", "plan.trace.json", "plan.txt"]
    assert all((once / name).read_bytes() == (again / name).read_bytes() for name in names)
    svg = (once / "plan.svg").read_text()
    assert "device 0" in svg
    assert "part 1" in svg
    events = json.loads((once / "plan.trace.json").read_text())["traceEvents"]
    assert any(event["name"] == "F0 up0.linear" and event["args"]["stage"] == 0 for event in events)
    stages = json.loads((once / "plan.json").read_text())["stages"]
    assert [stage["devices"] for stage in stages] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_sketch_has_every_micro_batch_of_every_device(drawn):
    program, lowered, result, _, _ = drawn
    *devices, legend = picture.sketch(program, picture.spans(lowered, result), width=60).splitlines()
    assert all(len(line) == len("device 0  ") + 60 for line in devices)
    first = devices[0]
    assert [first.find(letter, 10) for letter in "012"] == sorted(first.find(letter, 10) for letter in "012")
    assert all(letter in first for letter in "₀₁₂")
    assert legend.startswith("by hand: ")


def test_the_table_says_who_holds_what(drawn):
    program, _, _, held, _ = drawn
    first, second = picture.rows(program, held)
    assert (first.devices, first.mesh, first.ops) == ((0, 1, 2, 3), (2, 2), 2)
    assert first.parameters == 2 * WIDTH * INNER
    assert first.split == "x2: b 2; x2: k 1, n 1"
    assert sum(second.memory.values()) == memory.peak(program)[4].total
    lines = picture.text([first, second]).splitlines()
    assert lines[0].split()[:3] == ["stage", "what", "devices"]
    assert "4-7 (2 x 2)" in lines[2]


def test_reasons_name_what_costs_the_runners_up():
    winner = picture.Candidate("co-shard", 1.0, 2**30, {"compute": 0.9, "collective": 0.1}, 0.05)
    slow = picture.Candidate("tensor parallel", 1.5, 2**31, {"compute": 0.6, "collective": 0.4})
    broken = picture.Candidate("data parallel", problem="stage 0 needs 40 GiB")
    lines = picture.why(winner, [broken, slow]).splitlines()
    assert lines[0] == "co-shard: 1 s a step, 1 GiB on the fullest device."
    assert "computing 90%, collectives 10%" in lines[1]
    assert lines[2] == "tensor parallel: 1.5 s, 50.0% slower, 1 GiB more memory; 500 ms more of it for collectives."
    assert lines[3] == "data parallel: cannot be done: stage 0 needs 40 GiB"


def test_reasons_of_a_search(drawn):
    from engines.superscaler.search.searching import Found, RunnerUp

    plan = drawn[0].plan
    refused = (("DP", "stage 0 needs 40 GiB"),)
    found = Found(plan, 1.0, (2**29, 2**30), (RunnerUp("1F1B", 1.25, 2**30),), 0.0, 2.0, "abstract", refused)
    lines = picture.why_found(found, shares={"compute": 1.0}, bubble=0.25).splitlines()
    assert lines[0] == "by hand: 1 s a step, 1 GiB on the fullest device."
    assert lines[1].endswith("devices are idle 25% of the time.")
    assert lines[2] == "1F1B: 1.25 s, 25.0% slower."
    assert lines[3] == "DP: cannot be done: stage 0 needs 40 GiB"
