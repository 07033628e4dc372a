"""The committed table of operations and tensors against the models that it was made from."""

from __future__ import annotations

import warnings
from importlib import resources

import pytest

torch = pytest.importorskip("torch")

from engines.rdma.training import costs, models  # noqa: E402 - torch is optional


@pytest.mark.slow
def test_the_committed_table_is_what_the_models_need_today():
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        # What the model libraries warn about on import is theirs to mend.
        warnings.simplefilter("ignore")
        made = costs.render(list(models.MODELS))
    assert made == resources.files("engines.rdma.training").joinpath(costs.TABLE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "multiply_adds"),
    # torchvision documents these, in units of 10^9
    [("alexnet", 0.71), ("vgg-16", 15.47), ("inception-v3", 5.71), ("resnet-50", 4.09)],
)
def test_operations_of_known_models_are_twice_the_published_multiply_adds(model, multiply_adds):
    assert costs.load(model, "full").flops == pytest.approx(2e9 * multiply_adds, rel=0.01)
