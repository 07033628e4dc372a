"""Models to plan: their sizes and what they refuse."""

from __future__ import annotations

import pytest
import torch

from engines.superscaler import models

NOMINAL = {"350M": 350e6, "1.3B": 1.3e9, "2.6B": 2.6e9, "6.7B": 6.7e9, "13B": 13e9, "175B": 175e9}


@pytest.mark.parametrize("size", NOMINAL)
def test_a_gpt_has_the_parameters_that_its_name_says(size: str) -> None:
    module, _ = models.preset("gpt", size, device="meta", dtype="fp16")

    assert sum(parameter.numel() for parameter in module.parameters()) == pytest.approx(NOMINAL[size], rel=0.05)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


def test_known_architectures_have_their_known_number_of_parameters() -> None:
    """He et al., 2016, and Liu et al., 2021, give 25.6 and 197 million."""
    for name, size, millions in (("resnet", "50", 25.6), ("swin", "swin-large", 197)):
        module, _ = models.preset(name, size, device="meta")
        assert sum(parameter.numel() for parameter in module.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)


def test_the_same_seed_gives_the_same_model_and_batch() -> None:
    (one, batch), (other, same) = models.tiny("gpt"), models.tiny("gpt")

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True))
    assert not torch.equal(models.tiny("gpt", seed=1)[1][0], batch[0])


def test_what_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(models.ModelError, match="nearest is 'gpt'"):
        models.build("gptt")
    with pytest.raises(models.ModelError, match="nearest is 'hidden'"):
        models.build("gpt", hiden=3)
    with pytest.raises(models.ModelError, match="it has 350M"):
        models.preset("gpt", "7B")
