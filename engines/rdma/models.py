"""The tensors of real models, as a committed table and the program that makes it.

`python -m engines.rdma.models` builds each model of `training.models` at its published size on torch's meta device (no
weights, no memory) and writes `model_tensors.json`. The table is committed because a plan's digest must not depend on
which version of a model library happens to be installed; a test regenerates it and compares.

Gradients have the shapes of the parameters, so one table serves both directions of a parameter server.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.rdma.tensors import Payload, Tensor

if TYPE_CHECKING:
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


MODELS = (
    "resnet-50",
    "bert-base",
    "gpt2-small",
    "lstm-seq2seq",
    "alexnet",
    "inception-v3",
    "vgg-16",
    "lstm",
    "gru",
    "fcn-5",
)
"""Models of the table, by their names in `training.models`."""


def build(name: str) -> nn.Module:
    """A model at its published size; of BERT the encoder, without the head that a task adds."""
    from engines.rdma.training import models

    model = models.variant(name, "full").build()
    return model.bert if name == "bert-base" else model


def describe(name: str) -> dict[str, Any]:
    """Parameter count and shapes of a model built on the meta device; shared parameters appear once."""
    import torch

    with torch.device("meta"):
        model = build(name)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return {"parameters": sum(p.numel() for p in model.parameters()), "tensors": shapes}


def render() -> str:
    """The text of `model_tensors.json`: one tensor a line."""
    models = []
    for name in MODELS:
        table = describe(name)
        rows = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in table["tensors"].items())
        models.append(f' "{name}": {{\n  "parameters": {table["parameters"]},\n  "tensors": {{\n{rows}\n  }}\n }}')
    return "{\n" + ",\n".join(models) + "\n}\n"


if __name__ == "__main__":
    Path(__file__).with_name(TABLE).write_text(render(), encoding="utf-8")
