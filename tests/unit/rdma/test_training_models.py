"""The models that are trained: their published sizes, and that the small ones have the same structure."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from engines.rdma.training import models  # noqa: E402 - torch is optional
from harness.api import HarnessError  # noqa: E402

FROM_TRANSFORMERS = ("bert-base", "gpt2-small", "resnet-50")
OURS = [name for name in models.MODELS if name not in FROM_TRANSFORMERS]

PUBLISHED = {
    # torchvision documents these three
    "alexnet": 61_100_840,
    "vgg-16": 138_357_544,
    "inception-v3": 27_161_264,
    # the tutorial's network: two convolutions, three fully connected layers, on 24 x 24 crops
    "cifar": 1_068_298,
}


def on_meta(name, size="full"):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return models.variant(name, size).build()


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_full_models_have_the_published_number_of_parameters(name, parameters):
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_parameters_follow_from_gates_and_width(name):
    words, width, gates = 10_000, 650, {"lstm": 4, "gru": 3}[name]
    layer = gates * (2 * width * width + 2 * width)
    assert sum(p.numel() for p in on_meta(name).parameters()) == words * width + 2 * layer + words * width + words


def test_fcn_5_has_five_weights_and_five_biases():
    shapes = [tuple(p.shape) for p in on_meta("fcn-5").parameters()]
    assert shapes == [
        *((4096, 784), (4096,), (4096, 4096), (4096,), (4096, 4096), (4096,), (4096, 4096), (4096,)),
        *((10, 4096), (10,)),
    ]


@pytest.mark.parametrize("name", [name for name in OURS if name not in ("lstm-seq2seq",)])
def test_a_small_model_has_the_layers_of_the_full_one(name):
    def kinds(size):
        return [type(module).__name__ for module in on_meta(name, size).modules()]

    full, small = kinds("full"), kinds("small")
    # Inception's auxiliary pooling adapts to smaller pictures.
    assert Counter(full) == Counter(small) if name != "inception-v3" else len(full) == len(small)


@pytest.mark.parametrize("name", OURS)
def test_a_step_gives_every_parameter_a_gradient(name):
    model = models.build(name, "small", seed=1)
    batch = models.variant(name, "small").task.batch(0, 4, seed=1)
    loss = models.loss(model(*batch.inputs), batch.targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_seed_decides_the_parameters_and_the_callers_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (models.build("fcn-5", "small", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(HarnessError, match="did you mean 'alexnet'"):
        models.variant("alexnett", "full")


def test_auxiliary_scores_weigh_less():
    scores, targets = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    alone = models.loss(scores, targets)
    assert models.loss((scores,), targets) == alone
    torch.testing.assert_close(models.loss((scores, scores), targets), 1.4 * alone)
