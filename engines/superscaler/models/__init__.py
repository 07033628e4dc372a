"""Models to plan: plain `torch.nn.Module`s that know nothing of plans, each returning its mean loss.

`build` makes one of any size, `tiny` one that is checked in seconds, `preset` one of a published size. Large ones are
built on torch's `meta` device: shapes without numbers, which is all that planning needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.api import PlanError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

MODELS = ("evoformer", "gpt", "mlp", "moe", "resnet", "swin", "t5")


class ModelError(PlanError):
    """A model, preset or size that does not exist."""


def build(
    name: str, *, device: str = "cpu", dtype: str = "fp32", seed: int = 0, **shape: Any
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A model and one micro-batch for it.

    Args:
        name: one of `MODELS`.
        device: `meta` for shapes alone.
        dtype: of parameters and of what is computed (`fp32`, `fp16`, `bf16`, `fp64`).
        seed: of parameters and of the batch.
        **shape: the model's sizes, see its `Shape`; what is left out is as in its tiny preset.

    Raises:
        ModelError: there is no such model, or it has no such size.
    """
    import torch

    from engines.superscaler.operators.dtypes import torch_dtype

    module = _module(name)
    fields = module.Shape._fields
    for field in shape:
        if field not in fields:
            close = nearest(field, fields)
            hint = f"; nearest is {close!r}" if close else ""
            raise ModelError(f"model {name!r} has no size {field!r}{hint}; it has {', '.join(fields)}")
    sizes = module.Shape(**shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        made = module.Model(sizes).to(torch_dtype(torch, dtype))
        batch = module.batch(sizes, None if device == "meta" else generator)
    floats = torch_dtype(torch, dtype)
    return made, tuple(one.to(floats) if one.is_floating_point() else one for one in batch)


def tiny(name: str, **options: Any) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A model that is computed in float64 in milliseconds.

    Its dims differ from one another, and divide by 2, 4 and 8 where plans split them.
    """
    return build(name, **options)


def preset(name: str, size: str, **options: Any) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A model of a published size: `preset("gpt", "6.7B", device="meta")`.

    Raises:
        ModelError: there is none of that name.
    """
    sizes = presets(name)
    if size not in sizes:
        raise ModelError(f"model {name!r} has no preset {size!r}; it has {', '.join(sizes)}")
    return build(name, **{**dict(sizes[size]), **options})


SMALL: Mapping[str, Mapping[str, int]] = {
    "gpt": {"sequence": 32, "vocabulary": 64},
    "t5": {"sequence": 32, "target_sequence": 32, "vocabulary": 64, "buckets": 8},
    "swin": {"window": 2, "classes": 64},
    "evoformer": {"sequences": 32, "residues": 32, "outer": 4, "words": 22, "bins": 16},
}
"""What `shrunk` sets; dims that plans split divide by up to 32 devices."""
PER_HEAD = 2
"""Width of one head in a shrunk model."""


def shrunk(name: str, size: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a model with the same operators, small enough to compute in float64.

    Layers, heads and the batch stay, because operators and their splits belong to them; widths and lengths shrink.

    Raises:
        ModelError: there is no such model or preset, or nobody has said how to shrink this one.
    """
    if name not in SMALL:
        raise ModelError(f"a {name} of this size is too large to compute, and there is no rule to shrink it by")
    if size:
        preset_sizes = presets(name)
        if size not in preset_sizes:
            raise ModelError(f"model {name!r} has no preset {size!r}; it has {', '.join(preset_sizes)}")
        shape = {**preset_sizes[size], **shape}
    full = _module(name).Shape(**shape)._asdict()
    small = {**full, **{field: min(full[field], most) for field, most in SMALL[name].items()}}
    if name == "swin":
        # As many windows as before.
        small["image"] = full["image"] // full["window"] * small["window"]
    widths = {"hidden": "heads", "msa": "msa_heads", "pair": "pair_heads"}
    small |= {width: PER_HEAD * full[heads] for width, heads in widths.items() if width in full}
    if "inner" in full:
        small["inner"] = 2 * small["hidden"]
    return small


def presets(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Published sizes of a model, by name."""
    found: Mapping[str, Mapping[str, Any]] = _module(name).PRESETS
    return found


def _module(name: str) -> Any:
    if name not in MODELS:
        close = nearest(name, MODELS)
        hint = f"; nearest is {close!r}" if close else ""
        raise ModelError(f"no model {name!r}{hint}; there are {', '.join(MODELS)}")
    return importlib.import_module(f"engines.superscaler.models.{name}")
