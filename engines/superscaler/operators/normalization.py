"""Norms over a dim, which must be whole on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.operators.shapes import unary
from engines.superscaler.operators.table import define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local

_STATISTIC = 4
"""Bytes of a mean or a reciprocal deviation: kept in float32 at least."""


def _normed(call: Call) -> str:
    names = " ".join(f"h{number}^" for number in range(len(call.attributes["normalized_shape"])))
    given = ", ".join([f"* {names}", *[names] * (len(call.inputs) - 1)])
    return f"{given} -> * {names}"


def _layer_norm(local: Local) -> torch.Tensor:
    import torch

    shape = tuple(local.get("normalized_shape"))
    return torch.nn.functional.layer_norm(local.inputs[0], shape, *local.inputs[1:], eps=local.get("eps", 1e-5))


def _rms_norm(local: Local) -> torch.Tensor:
    import torch

    shape = tuple(local.get("normalized_shape"))
    return torch.nn.functional.rms_norm(local.inputs[0], shape, *local.inputs[1:], eps=local.get("eps"))


def _normed_cost(sizes: Sizes, statistics: int) -> Work:
    names = [name for name in sizes.op.annotation.sizes if name.startswith("h")]
    rows = sizes.input(0)
    for name in names:
        rows //= sizes.length(name)
    nbytes = sizes.input_bytes(0) + sizes.output_bytes()
    return sizes.work(
        inputs=range(len(sizes.op.inputs)),
        family="normalization",
        extra=statistics * _STATISTIC * rows,
        flops=5.0 * sizes.input(0),
        backward_flops=9.0 * sizes.input(0),
        nbytes=nbytes,
        backward_nbytes=nbytes + sizes.input_bytes(0),
    )


define("layer_norm", _normed, _layer_norm, lambda sizes: _normed_cost(sizes, 2))
define("rms_norm", _normed, _rms_norm, lambda sizes: _normed_cost(sizes, 1))


def _softmax(local: Local) -> torch.Tensor:
    return local.inputs[0].softmax(local.get("dim"))


def _log_softmax(local: Local) -> torch.Tensor:
    return local.inputs[0].log_softmax(local.get("dim"))


def _softmax_cost(sizes: Sizes) -> Work:
    return sizes.work(outputs=(0,), family="softmax", flops=4.0 * sizes.input(0), backward_flops=3.0 * sizes.input(0))


define("softmax", unary("dim"), _softmax, _softmax_cost)
define("log_softmax", unary("dim"), _log_softmax, _softmax_cost)


# --- batch norm: statistics over the batch, so only channels can be split -----------------------------------------


def _batch_norm_annotation(call: Call) -> str:
    rest = " ".join(f"s{number}^" for number in range(len(call.inputs[0]) - 2))
    return f"{', '.join([f'b^ c {rest}', *['c'] * (len(call.inputs) - 1)])} -> b^ c {rest}"


def _batch_norm(local: Local) -> torch.Tensor:
    import torch

    given, *affine = local.inputs
    return torch.nn.functional.batch_norm(given, None, None, *affine, training=True, eps=local.get("eps", 1e-5))


def _batch_norm_cost(sizes: Sizes) -> Work:
    nbytes = sizes.input_bytes(0) + sizes.output_bytes()
    return sizes.work(
        inputs=(0, 1) if len(sizes.op.inputs) > 1 else (0,),
        family="normalization",
        extra=2 * _STATISTIC * sizes.length("c"),
        flops=5.0 * sizes.input(0),
        backward_flops=9.0 * sizes.input(0),
        nbytes=nbytes,
        backward_nbytes=nbytes + sizes.input_bytes(0),
    )


define("batch_norm", _batch_norm_annotation, _batch_norm, _batch_norm_cost)
