"""The operators that a training step is made of, as eager PyTorch runs them: forward and backward, by size.

What a profile says of a family of operators holds under these conventions (float32, 4 bytes a number; a backward pass
is one operator whose name ends in `-backward`):

==============  ===========================================  ============================  ===========================
family          operator                                     forward                       backward
==============  ===========================================  ============================  ===========================
matmul          `linear`, (m, k) by (n, k), with bias        2mnk FLOP                     4mnk FLOP
attention       `baddbmm`, then `bmm`: scores and context    4bssd FLOP (two products)     8bssd FLOP
softmax         over the last dimension                      8 B a number                  12 B
normalization   `layer_norm`, scale and shift                8 B a number                  12 B
activation      `gelu`, tanh approximation                   8 B a number                  12 B
elementwise     `add` of two tensors                         12 B a number                 0 B: gradients pass through
accumulate      `add_` of a gradient into another            12 B a number
layout          transposed copy (heads and sequence)         8 B a number                  8 B: put back in order
embedding       rows of a table                              8 B a number of the result    4 B a number of the table
                                                                                           + 12 B a number of the result
loss            cross-entropy over the vocabulary            8 B a logit                   12 B a logit
optimizer       Adam, fused, one tensor                      28 B a parameter
optimizer-loop  Adam, PyTorch's default loop                 28 B a parameter
==============  ===========================================  ============================  ===========================

Each operator is timed in several independent copies with their own inputs and weights, one after another, so that it
finds its data where training does: not all in the nearest cache, and the overheads of Python, dispatch and autograd
are those of one operator among others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emulation.calibrate.sampling import Case, joined, sweep, together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from emulation.calibrate.pool import Pool, Worker
    from emulation.calibrate.sampling import Series

NUMBER = 4
"""Bytes of a float32."""
COPIES = 12
FEWEST_COPIES = 4
COPIED_BYTES = 2**24
"""Copies of one operator together touch about as much as this, at most."""
COPIED_FLOPS = 2e8
"""And compute about as much as this, where more than one is needed to see it."""
LARGEST_FLOPS = 1.1e9
MATMULS = (
    (16, 16),
    (64, 64),
    (64, 256),
    (256, 64),
    (128, 128),
    (384, 128),
    (512, 128),
    (128, 512),
    (256, 256),
    (768, 256),
    (1024, 256),
    (256, 1024),
    (512, 512),
    (2048, 512),
    (512, 2048),
    (1024, 1024),
)
"""(outputs, inputs) of linear layers: square, wide and narrow, whole and divided."""
ROWS = (64, 256, 1024, 2048)
"""Tokens that go through a linear layer; fewer than these use a processor worse than their FLOP tell."""
ATTENTION = ((4, 16, 16), (8, 64, 32), (16, 64, 64), (16, 128, 64), (32, 128, 32), (16, 256, 64), (8, 512, 64))
"""(batch x heads, sequence, width of a head)."""
NUMBERS = (64, 2**10, 2**13, 2**15, 2**17, 2**19, 2**21)
"""Sizes of element-wise operators."""
WIDTH = 256
"""Of a row that is normalised."""
TABLES = ((256, 64, 64), (1024, 128, 256), (2048, 256, 512), (8192, 256, 1024))
"""(rows of the table, width, tokens)."""
LOGITS = ((32, 256), (256, 1024), (512, 2048), (1024, 8192))
"""(tokens, vocabulary)."""
CROWD = "crowd"
CROWD_TURNS = 2
"""How often the numbers of processes are gone through: what drifts meanwhile touches all of them."""
CROWD_SECONDS = 0.006
"""About what a sample takes where processes run side by side; they do not wake up at the same moment."""
CROWD_FLOPS, CROWD_BYTES = 3e8, 3e7
"""Of the operators that are run side by side, at most."""
PARAMETERS = (2**10, 2**13, 2**16, 2**19, 2**21, 2**23)


@dataclass(frozen=True)
class Operator:
    """One operator at one size."""

    family: str
    shape: str
    forward: tuple[float, float]
    """(FLOP, bytes) of one execution."""
    backward: tuple[float, float] | None
    make: Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]
    """torch -> (function, tensors it takes); the tensors that need gradients say so."""

    @property
    def copies(self) -> int:
        """How many copies a sample runs; alike in all processes."""
        flops, nbytes = self.forward
        fitting = min(COPIED_BYTES / max(nbytes, 1), COPIED_FLOPS / max(flops, 1))
        # Starting autograd costs as much as a small operator, once for all copies.
        least = FEWEST_COPIES if self.backward and flops < LARGEST_FLOPS / 4 else 1
        return max(least, min(COPIES, int(fitting)))


def operators(*, quick: bool = False) -> list[Operator]:
    """What is timed; a quick calibration takes every second size."""
    found = [
        *_matmuls(),
        *_attention(),
        *_rowwise(),
        *_elementwise(),
        *_embeddings(),
        *_losses(),
        *_optimizers(),
    ]
    if not quick:
        return found
    kept: list[Operator] = []
    for family in dict.fromkeys(operator.family for operator in found):
        sizes = [operator for operator in found if operator.family == family]
        step = 5 if family == "matmul" else 2
        kept += [*sizes[:-1:step], sizes[-1]]
    return kept


def cases(chosen: list[Operator]) -> list[Case]:
    """Forward and backward of each, ready to be timed in this process."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    return [case for operator in chosen for case in _cases(operator, torch)]


def _cases(operator: Operator, torch: Any) -> Iterator[Case]:
    copies = [operator.make(torch) for _ in range(operator.copies)]
    count = len(copies)

    def forward() -> None:
        for function, tensors in copies:
            function(*tensors)

    yield Case(_labels(operator, operator.family, operator.forward), forward, executions=count, repeats=1)
    if operator.backward is None:
        return
    outputs: list[Any] = []
    inputs = [tensor for _, tensors in copies for tensor in tensors if tensor.requires_grad]
    gradient = torch.ones_like(copies[0][0](*copies[0][1]))

    def prepare() -> None:
        outputs.extend(function(*tensors) for function, tensors in copies)

    def backward() -> None:
        # Not `.backward()`: it would also copy or add each gradient into its leaf, which is a family of its own.
        torch.autograd.grad(outputs, inputs, [gradient] * count)
        outputs.clear()

    labels = _labels(operator, f"{operator.family}-backward", operator.backward)
    yield Case(labels, backward, before=prepare, executions=count)


def _labels(operator: Operator, family: str, work: tuple[float, float]) -> dict[str, Any]:
    return {"family": family, "shape": operator.shape, "flops": work[0], "bytes": work[1]}


def _matmuls() -> Iterator[Operator]:
    shapes = [(m, n, k) for m in ROWS for n, k in MATMULS if 2.0 * m * n * k <= LARGEST_FLOPS]
    for m, n, k in sorted(shapes, key=lambda shape: (shape[0] * shape[1] * shape[2], shape)):

        def make(torch: Any, m: int = m, n: int = n, k: int = k) -> Any:
            x, weight, bias = _leaf(torch, m, k), _leaf(torch, n, k), _leaf(torch, n)
            return torch.nn.functional.linear, (x, weight, bias)

        flops, nbytes = 2.0 * m * n * k, float(NUMBER * (m * k + n * k + m * n))
        yield Operator("matmul", f"{m}x{n}x{k}", (flops, nbytes), (2 * flops, 2 * nbytes), make)


def _attention() -> Iterator[Operator]:
    for batch, sequence, width in ATTENTION:

        def make(torch: Any, b: int = batch, s: int = sequence, d: int = width) -> Any:
            mask = torch.zeros(s, s)
            query, key, value = (_leaf(torch, b, s, d) for _ in range(3))

            def both(query: Any, key: Any, value: Any) -> Any:
                # The softmax between the two products is a family of its own.
                return torch.bmm(torch.baddbmm(mask, query, key.transpose(1, 2), alpha=d**-0.5), value)

            return both, (query, key, value)

        flops = 4.0 * batch * sequence * sequence * width
        nbytes = float(NUMBER * batch * (4 * sequence * width + 2 * sequence * sequence))
        yield Operator("attention", f"{batch}x{sequence}x{width}", (flops, nbytes), (2 * flops, 2 * nbytes), make)


def _rowwise() -> Iterator[Operator]:
    for numbers in NUMBERS:
        columns = min(WIDTH, numbers)
        shape, forward, backward = f"{numbers // columns}x{columns}", (0.0, 8.0 * numbers), (0.0, 12.0 * numbers)

        def normalized(torch: Any, rows: int = numbers // columns, columns: int = columns) -> Any:
            function = torch.nn.functional.layer_norm
            scale, shift = _leaf(torch, columns), _leaf(torch, columns)
            return (lambda x, w, b: function(x, (columns,), w, b)), (_leaf(torch, rows, columns), scale, shift)

        def softmax(torch: Any, rows: int = numbers // columns, columns: int = columns) -> Any:
            return (lambda x: torch.nn.functional.softmax(x, dim=-1)), (_leaf(torch, rows, columns),)

        yield Operator("normalization", shape, forward, backward, normalized)
        yield Operator("softmax", shape, forward, backward, softmax)


def _elementwise() -> Iterator[Operator]:
    for numbers in NUMBERS:
        read_written = 8.0 * numbers

        def activation(torch: Any, n: int = numbers) -> Any:
            return (lambda x: torch.nn.functional.gelu(x, approximate="tanh")), (_leaf(torch, n),)

        def add(torch: Any, n: int = numbers) -> Any:
            return (lambda x, y: x + y), (_leaf(torch, n), _leaf(torch, n))

        def accumulate(torch: Any, n: int = numbers) -> Any:
            return (lambda x, y: x.add_(y)), (torch.zeros(n), torch.full((n,), 1e-6))

        def layout(torch: Any, n: int = numbers) -> Any:
            width = min(32, n // 4)
            heads = n // width // (n // width // 4 or 1) or 1
            shape = (n // width // heads, heads, width)
            # From a flat tensor, so that the gradient has to be put back in order, as before a matrix product.
            return (lambda x: x.view(shape).transpose(0, 1).contiguous()), (_leaf(torch, n),)

        shape = str(numbers)
        yield Operator("activation", shape, (0.0, read_written), (0.0, 12.0 * numbers), activation)
        yield Operator("elementwise", shape, (0.0, 12.0 * numbers), (0.0, 0.0), add)
        yield Operator("accumulate", shape, (0.0, 12.0 * numbers), None, accumulate)
        yield Operator("layout", shape, (0.0, read_written), (0.0, read_written), layout)


def _embeddings() -> Iterator[Operator]:
    for rows, width, tokens in TABLES:

        def make(torch: Any, rows: int = rows, width: int = width, tokens: int = tokens) -> Any:
            found = torch.randint(rows, (tokens,))
            return torch.nn.functional.embedding, (found, _leaf(torch, rows, width))

        result = tokens * width
        backward = float(NUMBER * rows * width + 12 * result)
        yield Operator("embedding", f"{rows}x{width}x{tokens}", (0.0, 8.0 * result), (0.0, backward), make)


def _losses() -> Iterator[Operator]:
    for tokens, vocabulary in LOGITS:

        def make(torch: Any, tokens: int = tokens, vocabulary: int = vocabulary) -> Any:
            targets = torch.randint(vocabulary, (tokens,))
            return torch.nn.functional.cross_entropy, (_leaf(torch, tokens, vocabulary), targets)

        logits = tokens * vocabulary
        yield Operator("loss", f"{tokens}x{vocabulary}", (0.0, 8.0 * logits), (0.0, 12.0 * logits), make)


def _optimizers() -> Iterator[Operator]:
    for family, fused in (("optimizer", True), ("optimizer-loop", False)):
        for numbers in PARAMETERS:

            def make(torch: Any, n: int = numbers, fused: bool = fused) -> Any:
                parameter = torch.nn.Parameter(torch.randn(n))
                parameter.grad = torch.full((n,), 1e-3)
                # PyTorch leaves CPU tensors to its plain loop unless asked for the fused kernel.
                return torch.optim.Adam([parameter], lr=1e-6, fused=True if fused else None).step, ()

            yield Operator(family, str(numbers), (0.0, 28.0 * numbers), None, make)


def _leaf(torch: Any, *shape: int) -> Any:
    return torch.empty(*shape).uniform_(-1, 1).requires_grad_()


def alone(pool: Pool, *, rounds: int, quick: bool = False) -> list[Series]:
    """Every operator, in one process while the others sleep.

    Raises:
        ProbeError: the worker failed or hung.
    """
    return together(pool.run(_alone, quick=quick, rounds=rounds), 1)


def crowded(pool: Pool, levels: Sequence[int], *, rounds: int) -> list[Series]:
    """One operator of each family, on 1 process and on more at once, in turns.

    Raises:
        ProbeError: a worker failed or hung.
    """
    found: dict[int, list[list[Series]]] = {}
    for _ in range(CROWD_TURNS):
        for processes in levels:
            answers = pool.run(_crowded, processes, processes=processes, rounds=max(2, rounds // CROWD_TURNS))
            found.setdefault(processes, []).append(together(answers, processes))
    return [series for turns in found.values() for series in joined(turns)]


def _alone(worker: Worker, *, quick: bool, rounds: int) -> list[Series]:
    return sweep("operators", cases(operators(quick=quick)), rounds=rounds, seed=worker.rank)


def _crowded(worker: Worker, *, processes: int, rounds: int) -> list[Series]:
    if CROWD not in worker.kept:
        worker.kept[CROWD] = _forward_only(operators())
    found: list[Series] = sweep(
        "contention", worker.kept[CROWD], rounds=rounds, meet=lambda: worker.meet(processes), warmups=1
    )
    return found


def _forward_only(found: list[Operator]) -> list[Case]:
    """The forward pass of a middle-sized operator of each family, long enough for all processes to be at it at once."""
    middle = {operator.family: operator for operator in found if _middling(operator)}
    chosen = [case for case in cases(list(middle.values())) if case.before is None]
    for case in chosen:
        once = case.labels["flops"] / 5e10 + case.labels["bytes"] / 1e10
        case.repeats = max(1, round(CROWD_SECONDS / once / case.executions))
    return chosen


def _middling(operator: Operator) -> bool:
    flops, nbytes = operator.forward
    return flops <= CROWD_FLOPS and nbytes <= CROWD_BYTES
