from __future__ import annotations

import re

import pytest

from harness import references
from harness.errors import SpecError
from harness.references import Bound


def test_every_shipped_figure_has_a_source_and_a_paper(shipped):
    names = shipped.names()
    assert len(names) > 500
    for name in names:
        found = shipped.find(name)
        assert found.path == name
        assert found.source.place
        assert found.paper.title
        assert found.paper.url.startswith("https://")


@pytest.mark.parametrize(
    ("path", "value", "unit", "bound"),
    [
        ("safe/abstract-v1/SAFE/accuracy", 70.50, "%", "exact"),
        ("safe/abstract-v1/GPT-4o/accuracy", 24.46, "%", "exact"),
        ("safe/abstract-v2/SAFE/accuracy", 52.52, "%", "exact"),
        ("spider/abstract/Spider/speedup", 9.4, "x", "upper"),
        ("superscaler/abstract/SuperScaler/speedup", 3.5, "x", "upper"),
        ("codexglue/abstract/CodeXGLUE/tasks", 10, "", "exact"),
        ("codexglue/abstract/CodeXGLUE/datasets", 14, "", "exact"),
        ("layoutlmv2/abstract/LayoutLMv2/FUNSD", 0.8420, "", "exact"),
        ("layoutlmv2/abstract/LayoutLMv2/DocVQA", 0.8672, "", "exact"),
        ("ngra/abstract/NGra/speedup", 4, "x", "upper"),
        ("rdma/abstract/device/speedup_over_grpc", 25, "x", "upper"),
        ("rdma/abstract/device/improvement_over_rdma_rpc", 169, "%", "upper"),
        ("aceso/gpt-iteration/Aceso actual/1.3B", 100.28, "s", "exact"),
    ],
)
def test_claims_of_the_abstracts_are_shipped(shipped, path, value, unit, bound):
    found = shipped.find(path)
    assert (found.value, found.unit, found.bound) == (value, unit, Bound(bound))


def test_withdrawn_accounting_is_noted_wherever_it_is_quoted(shipped):
    for figure in shipped.select("safe/abstract-v1"):
        assert "withdrawn accounting" in figure.note


def test_no_figure_of_the_rdma_paper_beyond_its_abstract_is_shipped(shipped):
    assert list(shipped.paper("rdma").tables) == ["abstract", "related"]
    text = (shipped.directory / "rdma.yaml").read_text("utf-8")
    # Figures that were only remembered, of models, micro-benchmarks and scaling.
    for recalled in ("176.4", "512.3", "92.9", "185", "54 %", "61x", "E5-2690v4"):
        assert recalled not in text


def test_the_two_versions_of_the_graph_data_sets_are_told_apart(shipped):
    assert shipped.find("ngra/datasets/reddit-full/edges").value == 571_000_000
    assert shipped.find("neugraph/table-1/reddit-full/edges").value == 705_900_000


def test_figures_read_off_a_drawing_carry_a_tolerance(shipped):
    for name in shipped.names():
        found = shipped.find(name)
        if re.search("read off|drawing", found.source.place):
            assert found.tolerance > 0, name


def test_unknown_figures_are_null_and_say_so(shipped):
    found = shipped.find("safe/table-3/without filter/accuracy")
    assert found.value is None
    assert found.text == "not known"


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("rmda/abstract/device/speedup_over_grpc", "rdma"),
        ("rdma/abstrct/device/speedup_over_grpc", "abstract"),
        ("rdma/abstract/devise/speedup_over_grpc", "device"),
        ("rdma/abstract/device/speedup_over_grcp", "speedup_over_grpc"),
    ],
    ids=["paper", "table", "row", "column"],
)
def test_a_typo_in_each_part_suggests_the_part(shipped, path, suggestion):
    with pytest.raises(SpecError, match=f"did you mean '{suggestion}'"):
        shipped.find(path)


@pytest.mark.parametrize("path", ["", "rdma", "rdma/abstract", "rdma/abstract/device", "a/b/c/d/e", "///"])
def test_a_path_of_other_length_is_refused(shipped, path):
    with pytest.raises(SpecError):
        shipped.find(path)


def test_selecting_a_table_gives_its_cells_in_order(shipped):
    columns = [p.column for p in shipped.select("neugraph/table-2/amazon NeuGraph")]
    assert columns == ["io", "compute", "total"]


def test_a_mistake_in_a_file_is_reported_in_its_place(tmp_path):
    head = "schema: 1\npaper: {title: t, venue: v, citation: c, url: u}\ntables:\n"
    text = head + "  t:\n    titel: x\n    source: {place: p}\n    rows: {}\n"
    (tmp_path / "bad.yaml").write_text(text, "utf-8")
    with pytest.raises(SpecError) as caught:
        references.load_all(tmp_path).paper("bad")
    assert "bad.yaml:5:5" in str(caught.value)
    assert "'title'" in str(caught.value)
