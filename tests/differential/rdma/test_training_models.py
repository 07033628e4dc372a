"""Models rebuilt here against the ones a user would take from torchvision, and from transformers."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")

from engines.rdma.training import models  # noqa: E402 - torch is optional


def layers_in_order(model, images):
    """Layers with parameters as the forward pass meets them, and what it gives."""
    met = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: met.append(layer))
        for layer in model.modules()
        if next(layer.parameters(), None) is not None and next(layer.children(), None) is None
    ]
    with torch.no_grad():
        outputs = model(images)
    for hook in hooks:
        hook.remove()
    return met, outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "pixels"),
    [("alexnet", "alexnet", 224), ("vgg-16", "vgg16", 224), ("inception-v3", "inception_v3", 299)],
)
def test_with_torchvisions_weights_the_outputs_are_torchvisions(ours, theirs, pixels):
    # A torchvision built for another torch fails on import with a RuntimeError.
    torchvision = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    options = {"init_weights": False} if ours == "inception-v3" else {}
    theirs = torchvision.models.get_model(theirs, dropout=0.0, **options).train()
    model = models.build(ours, "full", seed=0)
    images = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    donors, _ = layers_in_order(theirs, images)
    takers, _ = layers_in_order(model, images)
    # Where the auxiliary classifier is computed does not matter: theirs comes in the middle, ours at the end.
    auxiliary = list(theirs.AuxLogits.modules()) if ours == "inception-v3" else []
    donors.sort(key=lambda layer: any(layer is part for part in auxiliary))
    assert [type(layer) for layer in takers] == [type(layer) for layer in donors]
    for taker, donor in zip(takers, donors, strict=True):
        taker.load_state_dict(donor.state_dict())
    with torch.no_grad():
        found, expected = model(images), theirs(images)
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2-small", 124_439_808),
        # the encoder's 109,482,240, and a linear layer from 768 to two classes
        ("bert-base", 109_482_240 + 2 * 768 + 2),
        ("resnet-50", 25_557_032),
    ],
)
def test_configurations_of_transformers_have_the_published_number_of_parameters(name, parameters):
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        # What the model library warns about on import is its to mend.
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            model = models.variant(name, "full").build()
        small = models.build(name, "small", seed=1)
        batch = models.variant(name, "small").task.batch(0, 4, seed=1)
        models.loss(small(*batch.inputs), batch.targets).backward()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert [n for n, p in small.named_parameters() if p.grad is None] == []
