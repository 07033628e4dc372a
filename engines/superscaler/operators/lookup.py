"""Operators that look numbers up by index: embedding tables, one-hot codes, the target of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.superscaler.operators.shapes import dims, line
from engines.superscaler.operators.table import OperatorError, define

if TYPE_CHECKING:
    import torch

    from engines.superscaler.operators.cost import Sizes, Work
    from engines.superscaler.operators.table import Call, Local


def _table_annotation(call: Call) -> str:
    rest = dims(len(call.inputs[0]) - 1)
    leading = [f"i{number}" for number in range(len(call.inputs[1]))]
    return line([["v+", *rest], leading], [[*leading, *rest]])


def _embedding(local: Local) -> torch.Tensor:
    import torch

    table, index = local.inputs
    padding = local.get("padding_idx", -1)
    if "v" not in local.parts:
        return table[index] if padding < 0 else torch.nn.functional.embedding(index, table, padding)
    # Rows that other parts have are zero here: the parts add up to the whole.
    own = index - local.start("v")
    mine = (own >= 0) & (own < table.shape[0])
    found = table[torch.where(mine, own, 0)]
    if padding >= 0:
        found = torch.where((index == padding).unsqueeze(-1), found.detach(), found)
    return torch.where(mine.view(*mine.shape, *(1,) * (table.dim() - 1)), found, torch.zeros((), dtype=table.dtype))


def _embedding_cost(sizes: Sizes) -> Work:
    result, table = sizes.output_bytes(), sizes.input_bytes(0)
    kept = _looked_up(sizes, "v", sizes.input(1))
    return sizes.work(family="embedding", nbytes=2 * result, backward_nbytes=table + 3 * result, **kept)


define("embedding", _table_annotation, _embedding, _embedding_cost)


# --- the target's score: what is left of gather when one class per row is picked ----------------------------------


def _pick_annotation(call: Call) -> str:
    dim = call.attributes["dim"]
    names = dims(len(call.inputs[0]), suffix={dim: "+"})
    kept = [name for place, name in enumerate(names) if place != dim]
    return line([names, kept], [kept])


def _pick(local: Local) -> torch.Tensor:
    import torch

    scores, target = local.inputs
    dim = local.get("dim")
    name = f"d{dim}"
    classes = local.op.annotation.sizes[name]
    if bool(((target < 0) | (target >= classes)).any()):
        bad = target[(target < 0) | (target >= classes)][0].item()
        raise OperatorError(
            f"operator {local.op.name!r}: target {bad} is outside of 0 ... {classes - 1}; rows that are to be ignored "
            "would change what the mean is over: weigh the losses in the model instead"
        )
    if name not in local.parts:
        return scores[_places(target, dim)]
    own = target - local.start(name)
    mine = (own >= 0) & (own < scores.shape[dim])
    found = scores[_places(torch.where(mine, own, 0), dim)]
    return torch.where(mine, found, torch.zeros((), dtype=scores.dtype, device=scores.device))


def _places(classes: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    """Indices of one class per row. Unlike `gather`, indexing does not keep the scores for the backward pass."""
    import torch

    rank = classes.dim()
    rows = [
        torch.arange(size, device=classes.device).view(*(-1 if place == other else 1 for other in range(rank)))
        for place, size in enumerate(classes.shape)
    ]
    return (*rows[:dim], classes, *rows[dim:])


def _looked_up(sizes: Sizes, name: str, indices: int) -> dict[str, Any]:
    """What is kept of the indices: themselves, or, split along `name`, those of this part and which are in it."""
    return {"extra": 9 * indices} if sizes.degrees.get(name, 1) > 1 else {"inputs": (1,)}


def _pick_cost(sizes: Sizes) -> Work:
    kept = _looked_up(sizes, f"d{sizes.op.attributes['dim']}", sizes.output())
    nbytes = 2 * sizes.output_bytes() + sizes.input_bytes(1)
    return sizes.work(nbytes=nbytes, backward_nbytes=sizes.input_bytes(0), **kept)


define("pick", _pick_annotation, _pick, _pick_cost)


def _one_hot_annotation(call: Call) -> str:
    names = dims(len(call.inputs[0]))
    return line([names], [[*names, "n"]])


def _one_hot(local: Local) -> torch.Tensor:
    import torch

    start = local.start("n")
    classes = torch.arange(start, start + local.length("n"), device=local.inputs[0].device)
    return (local.inputs[0].unsqueeze(-1) == classes).to(torch.int64)


define("one_hot", _one_hot_annotation, _one_hot, lambda sizes: sizes.work())


def _gather_annotation(call: Call) -> str:
    """Indices of one dim; the others must have the size of the tensor's, or cannot be split."""
    dim = call.attributes["dim"]
    pairs = []
    for place, (size, taken) in enumerate(zip(*call.inputs, strict=True)):
        same = size == taken and place != dim
        pairs.append((f"d{place}", f"d{place}") if same else (f"g{place}^", f"t{place}^"))
    given, taken_ = [name for name, _ in pairs], [name for _, name in pairs]
    return line([given, taken_], [taken_])


def _gather(local: Local) -> torch.Tensor:
    return local.inputs[0].gather(local.get("dim"), local.inputs[1])


def _gather_cost(sizes: Sizes) -> Work:
    return sizes.work(inputs=(1,), family="embedding", backward_nbytes=sizes.input_bytes(0) + 2 * sizes.output_bytes())


define("gather", _gather_annotation, _gather, _gather_cost)
