"""Attention as one operator: softmax(q k^T / sqrt(d) + mask) v."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.superscaler.operators.shapes import dims
from engines.superscaler.operators.table import define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local


def _annotation(call: Call) -> str:
    query = call.inputs[0]
    lead = dims(len(query) - 2)
    text = ", ".join(" ".join([*lead, *own]) for own in (("s", "w^"), ("t^", "w^"), ("t^", "u^")))
    if len(call.inputs) == 4:
        mask = call.inputs[3]
        whole = (*query[:-2], query[-2], call.inputs[1][-2])
        names = [*lead, "s", "t^"]
        aligned = zip(mask, whole[len(whole) - len(mask) :], names[len(names) - len(mask) :], strict=True)
        text += ", " + " ".join("1" if size == 1 != full else name for size, full, name in aligned)
    return f"{text} -> {' '.join([*lead, 's', 'u^'])}"


def _attention(local: Local) -> torch.Tensor:
    import torch

    query, key, value, *mask = local.inputs
    bias = mask[0] if mask else None
    causal = local.get("is_causal", False)
    if causal and "s" in local.parts:
        # A part of the queries sees other keys than the first ones: say which by their places in the whole.
        start, rows, columns = local.start("s"), query.shape[-2], key.shape[-2]
        places = torch.arange(start, start + rows, device=query.device)[:, None]
        bias, causal = torch.arange(columns, device=query.device)[None, :] <= places, False
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=causal, scale=local.get("scale")
    )


def _cost(sizes: Sizes) -> Work:
    batch = sizes.output() // (sizes.length("s") * sizes.length("u"))
    scores = batch * sizes.length("s") * sizes.length("t")
    flops = 2.0 * scores * (sizes.length("w") + sizes.length("u"))
    gradient_of_mask = len(sizes.op.inputs) == 4 and sizes.needs(3)
    # The fused kernel keeps its result and the logarithm of each row's sum, and computes probabilities again: five
    # products backward for two forward. With a mask that is trained there is no fused kernel; probabilities are kept.
    width = sizes.input_bytes(0) // sizes.input(0)
    if gradient_of_mask:
        return sizes.work(
            inputs=(0, 1, 2),
            family="attention",
            flops=flops,
            backward_flops=2 * flops,
            extra=scores * width,
            nbytes=sizes.forward_bytes + 2 * scores * width,
            workspace=scores * width,
        )
    return sizes.work(
        inputs=range(len(sizes.op.inputs)),
        outputs=(0,),
        family="attention",
        flops=flops,
        backward_flops=2.5 * flops,
        extra=4 * batch * sizes.length("s"),
    )


define("attention", _annotation, _attention, _cost)
