"""The models that are trained, each in full size and as a small one of the same structure.

`small` keeps the kinds and the order of layers and has fewer channels, layers or words, so that a training step takes
a fraction of a second on two cores. `full` is the published size where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from engines.rdma.training.data import Images, Reversal, SentencePairs, TokenStream
from engines.rdma.training.models import convolutional, inception, pretrained, recurrent
from harness.api import HarnessError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from engines.rdma.training.data import Task
    from engines.rdma.training.settings import Size

AUXILIARY = 0.4
"""Weight of Inception's auxiliary loss, as in torchvision's training recipe."""


@dataclass(frozen=True)
class Variant:
    """A model at one size, and the task it is trained on."""

    build: Callable[[], nn.Module]
    task: Task


@dataclass(frozen=True)
class Model:
    """Both sizes of one model."""

    full: Variant
    small: Variant


MODELS: dict[str, Model] = {
    "alexnet": Model(
        Variant(convolutional.AlexNet, Images(224, 1000)),
        Variant(lambda: convolutional.AlexNet(10, narrow=8, grid=1), Images(64, 10)),
    ),
    "inception-v3": Model(
        Variant(inception.Inception3, Images(299, 1000)),
        Variant(lambda: inception.Inception3(10, narrow=16, auxiliary_kernel=1), Images(75, 10)),
    ),
    "vgg-16": Model(
        Variant(convolutional.Vgg16, Images(224, 1000)),
        Variant(lambda: convolutional.Vgg16(10, narrow=16, grid=1), Images(32, 10)),
    ),
    "resnet-50": Model(
        Variant(pretrained.resnet, Images(224, 1000)),
        Variant(
            lambda: pretrained.resnet(classes=10, embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1] * 4),
            Images(64, 10),
        ),
    ),
    "lstm": Model(
        Variant(lambda: recurrent.LanguageModel("lstm"), TokenStream(10_000, 35)),
        Variant(lambda: recurrent.LanguageModel("lstm", vocabulary=64, width=48), TokenStream(64, 12)),
    ),
    "gru": Model(
        Variant(lambda: recurrent.LanguageModel("gru"), TokenStream(10_000, 35)),
        Variant(lambda: recurrent.LanguageModel("gru", vocabulary=64, width=48), TokenStream(64, 12)),
    ),
    "fcn-5": Model(
        Variant(convolutional.FullyConnected5, Images(28, 10, channels=1, flat=True)),
        Variant(lambda: convolutional.FullyConnected5(196, 128), Images(14, 10, channels=1, flat=True)),
    ),
    "bert-base": Model(
        Variant(pretrained.bert, SentencePairs(30_522, 64, joined=True)),
        Variant(
            lambda: pretrained.bert(
                vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
            ),
            SentencePairs(128, 8, joined=True),
        ),
    ),
    "gpt2-small": Model(
        Variant(pretrained.gpt2, TokenStream(50_257, 128)),
        Variant(
            lambda: pretrained.gpt2(
                vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
            ),
            TokenStream(128, 16),
        ),
    ),
    "lstm-seq2seq": Model(
        Variant(recurrent.Seq2Seq, Reversal(32_000, 32)),
        Variant(lambda: recurrent.Seq2Seq(vocabulary=16, width=32, layers=1), Reversal(16, 5)),
    ),
    "cifar": Model(
        Variant(convolutional.CifarNetwork, Images(24, 10)),
        Variant(lambda: convolutional.CifarNetwork(pixels=16, narrow=4), Images(16, 10)),
    ),
    "sentence-embedding": Model(
        Variant(recurrent.SentenceEncoder, SentencePairs(20_000, 24)),
        Variant(
            lambda: recurrent.SentenceEncoder(vocabulary=256, embedding=16, width=24, hidden=32), SentencePairs(256, 8)
        ),
    ),
}


def variant(name: str, size: Size) -> Variant:
    """A model at one size.

    Raises:
        HarnessError: there is no such model.
    """
    model = MODELS.get(name)
    if model is None:
        hint = nearest(name, MODELS)
        raise HarnessError(f"no model {name!r}" + (f"; did you mean {hint!r}?" if hint else ""))
    return model.small if size == "small" else model.full


def build(name: str, size: Size, seed: int) -> nn.Module:
    """A model in training mode whose initial parameters the seed decides; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return variant(name, size).build().train()


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross entropy, averaged over all targets.

    Args:
        outputs: scores; or a tuple of them, where those after the first are auxiliary; or what a `transformers` model
            gives, with its scores under `logits`.
        targets: int64 class numbers, of the shape of the scores without their last dimension.
    """
    outputs = getattr(outputs, "logits", outputs)
    scores = outputs if isinstance(outputs, tuple) else (outputs,)
    losses = [functional.cross_entropy(score.flatten(0, -2), targets.flatten()) for score in scores]
    return sum((AUXILIARY * other for other in losses[1:]), start=losses[0])
