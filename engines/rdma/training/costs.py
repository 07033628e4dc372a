"""What a step of each model needs, as a committed table and the program that makes it.

`python -m engines.rdma.training.costs` builds every model on torch's meta device (no weights, no memory), counts the
operations of a forward pass over one sample with `torch.utils.flop_counter`, and writes `costs.json`. A prediction
reads the table, and so needs neither torch nor the model libraries; a test makes it anew and compares.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.rdma.tensors import Payload, Tensor

if TYPE_CHECKING:
    from engines.rdma.training.settings import Size

TABLE = "costs.json"
FLOAT = 4
"""Bytes of a parameter."""


@dataclass(frozen=True)
class Costs:
    """Of one model at one size."""

    flops: float
    """Operations of a forward pass over one sample; a multiplication and an addition count two."""
    unit: str
    """What throughput counts: images, tokens, pairs."""
    units: int
    """How many of them one sample is."""
    elements: tuple[int, ...]
    """Of each parameter tensor."""

    @property
    def nbytes(self) -> int:
        """Of all parameters."""
        return FLOAT * sum(self.elements)

    def payload(self, name: str) -> Payload:
        """The parameters, or their gradients, as what is moved."""
        return Payload(name, tuple(Tensor(str(i), (n,), "float32") for i, n in enumerate(self.elements)))


def load(model: str, size: Size) -> Costs:
    """The costs of a model.

    Raises:
        KeyError: the table has no such model.
    """
    text = resources.files("engines.rdma.training").joinpath(TABLE).read_text(encoding="utf-8")
    row = json.loads(text)[model][size]
    return Costs(row["flops"], row["unit"], row["units"], tuple(row["elements"]))


def describe(model: str, size: Size) -> dict[str, Any]:
    """One row of the table."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from engines.rdma.training import models

    variant = models.variant(model, size)
    # GPT-2 in `transformers` looks at the values of its positions, and so needs memory.
    device = "cpu" if model == "gpt2-small" else "meta"
    inputs = [tensor.to(device) for tensor in variant.task.batch(0, 1, seed=0).inputs]
    with torch.device(device):
        module = variant.build()
    counter = FlopCounterMode(display=False)
    # The counter knows the products that attention is made of, not every fused kernel of it.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        # Batch normalisation refuses to take statistics over one number.
        module.eval()(*inputs)
    return {
        "flops": counter.get_total_flops(),
        "unit": variant.task.unit,
        "units": variant.task.units_per_sample,
        "elements": [parameter.numel() for parameter in module.parameters()],
    }


def render(names: list[str]) -> str:
    """The text of `costs.json`: one model at one size a line."""
    rows = []
    for name in names:
        sizes = ",\n".join(f'  "{size}": {json.dumps(describe(name, size))}' for size in ("full", "small"))
        rows.append(f' "{name}": {{\n{sizes}\n }}')
    return "{\n" + ",\n".join(rows) + "\n}\n"


def main() -> None:
    """Write the table."""
    from engines.rdma.training import models

    Path(__file__).with_name(TABLE).write_text(render(list(models.MODELS)), encoding="utf-8")


if __name__ == "__main__":
    main()
