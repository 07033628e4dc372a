"""Whatever is in a file or behind `--set`, the answer is an experiment or a `SpecError` with places."""

import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.load import load_experiment
from harness.loading.document import compose
from harness.loading.overrides import apply

HEAD = "schema: 1\nname: x\nengine: {name: rdma, sizes: [4 KiB]}\n"
SECTIONS = [
    "on",
    "needs",
    "repeat",
    "sweep",
    "faults",
    "limits",
    "tables",
    "expect",
    "paper",
    "engine",
    "name",
    "schema",
]
WORDS = [
    "grid", "zip", "list", "exclude", "engine.dtype", "on.hardware", "repeat.seed", "rows", "value", "metric", "where",
    "baseline", "reference", "at_least", "backend", "hardware", "laptop", "rdma", "step_time", "rdma/abstract", "int8",
]  # fmt: skip

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from(WORDS), st.text(max_size=8)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def refusal(action):
    """The problems of a refusal, or none; any other exception is a failure."""
    try:
        action()
    except SpecError as error:
        return error.problems or pytest.fail("refused without a reason")
    return ()


def answer(path, content, overrides=()):
    """Load; a refusal must have a place for each problem, in order."""
    path.write_bytes(content)
    problems = refusal(lambda: load_experiment(path, overrides))
    assert all(p.position is not None for p in problems)
    assert list(problems) == sorted(problems, key=lambda p: p.position)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes(tmp_path_factory, content):
    answer(tmp_path_factory.getbasetemp() / "any.yaml", content)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab: -[]{},&*!|>'\"#%@`?\n\t<~1.", max_size=60))
def test_any_line_noise_of_yaml(tmp_path_factory, text):
    answer(tmp_path_factory.getbasetemp() / "noise.yaml", (HEAD + text).encode())


@settings(max_examples=300, deadline=None)
@given(data=st.dictionaries(st.sampled_from(SECTIONS) | st.text(max_size=5), values, max_size=5))
def test_any_document(tmp_path_factory, data):
    text = yaml.safe_dump({"schema": 1, "name": "x", "engine": {"name": "rdma", "sizes": ["4 KiB"]}, **data})
    answer(tmp_path_factory.getbasetemp() / "document.yaml", text.encode())


@settings(max_examples=150, deadline=None)
@given(
    path=st.lists(st.sampled_from([*SECTIONS, *WORDS, "0", "1"]), min_size=1, max_size=4).map(".".join),
    value=values.map(
        lambda v: yaml.safe_dump(v, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
    )
    | st.text(max_size=10),
)
def test_any_override(tmp_path_factory, path, value):
    answer(tmp_path_factory.getbasetemp() / "override.yaml", HEAD.encode(), [f"{path}={value}"])


@settings(max_examples=150)
@given(text=st.text(alphabet=string.printable, max_size=20))
def test_any_override_text(text):
    problems = refusal(lambda: apply(compose(HEAD, "f"), [text]))
    assert all(p.position and p.position.file == "--set #1" for p in problems)


awkward = st.sampled_from(
    ["NO", "1e6", "0o17", "017", "3:25", "1_000", "~", "", "a: b", "<<", "=", "null", "0x1f", "1.", ".5", "+1", "-"]
)
plain = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | awkward,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(awkward | st.sampled_from(["on", "y"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(data=plain)
def test_what_explain_writes_is_read_back_the_same(data):
    from harness.explain import _Dumper

    again = compose(yaml.dump({"value": data}, Dumper=_Dumper, sort_keys=False), "f")
    assert not again.problems
    assert again.data["value"] == data
    assert repr(again.data["value"]) == repr(data), "not only equal (1 == 1.0 == True), but of the same types"
