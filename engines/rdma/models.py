"""The tensors of four real models, as a committed table and the program that makes it.

`python -m engines.rdma.models` builds each model from its published configuration on torch's meta device (no weights,
no memory) and writes `model_tensors.json`. The table is committed because a plan's digest must not depend on which
version of a model library happens to be installed; a test regenerates it and compares.

Gradients have the shapes of the parameters, so one table serves both directions of a parameter server.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.rdma.tensors import Payload, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

TABLE = "model_tensors.json"


def load(name: str) -> Payload:
    """Parameters of a model in the order of its modules, each in fp32.

    Raises:
        KeyError: the table has no model of this name.
    """
    text = resources.files("engines.rdma").joinpath(TABLE).read_text(encoding="utf-8")
    tensors = json.loads(text)[name]["tensors"]
    return Payload(name, tuple(Tensor(label, tuple(shape), "float32") for label, shape in tensors.items()))


def resnet_50() -> nn.Module:
    """ResNet-50 (He et al. 2016): transformers' default configuration, with its 1000-class head."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig.from_dict({"num_labels": 1000}))


def bert_base() -> nn.Module:
    """BERT-base, uncased (Devlin et al. 2019): the default configuration."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


def gpt2_small() -> nn.Module:
    """GPT-2 small (Radford et al. 2019): the default configuration; the output layer shares the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def lstm_seq2seq(*, vocabulary: int = 32_000, width: int = 512, layers: int = 2) -> nn.Module:
    """A translation model of the LSTM years: embeddings, encoder, decoder, attention, projection.

    Shaped after Luong et al. 2015 (global attention over a stacked LSTM), at half their width; it is no published
    model, which is why its definition stands here in full.
    """
    from torch import nn

    return nn.ModuleDict(
        {
            "source_embedding": nn.Embedding(vocabulary, width),
            "target_embedding": nn.Embedding(vocabulary, width),
            "encoder": nn.LSTM(width, width, layers, batch_first=True, bidirectional=True),
            "bridge": nn.Linear(2 * width, width),
            "decoder": nn.LSTM(2 * width, width, layers, batch_first=True),
            "attention": nn.Linear(2 * width, width, bias=False),
            "combine": nn.Linear(3 * width, width, bias=False),
            "projection": nn.Linear(width, vocabulary),
        }
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet-50": resnet_50,
    "bert-base": bert_base,
    "gpt2-small": gpt2_small,
    "lstm-seq2seq": lstm_seq2seq,
}


def describe(build: Callable[[], nn.Module]) -> dict[str, Any]:
    """Parameter count and shapes of a model built on the meta device; shared parameters appear once."""
    import torch

    with torch.device("meta"):
        model = build()
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return {"parameters": sum(p.numel() for p in model.parameters()), "tensors": shapes}


def render() -> str:
    """The text of `model_tensors.json`: one tensor a line."""
    models = []
    for name, build in MODELS.items():
        table = describe(build)
        rows = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in table["tensors"].items())
        models.append(f' "{name}": {{\n  "parameters": {table["parameters"]},\n  "tensors": {{\n{rows}\n  }}\n }}')
    return "{\n" + ",\n".join(models) + "\n}\n"


if __name__ == "__main__":
    Path(__file__).with_name(TABLE).write_text(render(), encoding="utf-8")
