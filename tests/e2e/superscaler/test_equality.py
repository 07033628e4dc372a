"""Every named plan of every model, on 2, 4 and 8 devices, computes what the module does: float64, two steps of Adam.

All ranks are interpreted in one process. A plan that a model or its sizes cannot have must be refused, and must be in
`REFUSED` with what it says: none falls back to another plan silently.
"""

from __future__ import annotations

from functools import cache

import pytest

from engines.superscaler import models, named
from engines.superscaler.dependency import preserve
from engines.superscaler.runtime import reference
from engines.superscaler.runtime.interpret import interpret
from engines.superscaler.runtime.outcome import compare
from engines.superscaler.trace import trace
from harness.api import PlanError

MODELS = ("gpt", "t5", "swin", "evoformer")
SIZES = (2, 4, 8)
STEPS, MICRO_BATCHES = 2, 2
ROUNDS = {"interleaved": 8}
"""An interleaved schedule takes micro-batches in rounds of one for each device."""
PIPELINES = ("gpipe", "1f1b", "zero-bubble", "interlaced", "3f1b")
"""Where micro-batches overlap; the others get one of the large Evoformer, for time."""
BOUND = 1e-10

NO_EXPERTS = "the model has no experts"
NO_PASSES = "is for models that apply the same layers several times"
TABLE = "is for models that start with a large table"
REFUSED = {
    **{(model, "ep", size): NO_EXPERTS for model in MODELS for size in SIZES},
    **{(model, "3f1b", size): NO_PASSES for model in ("gpt", "swin") for size in SIZES},
    **{("t5", "3f1b", size): "the model has no recycled passes" for size in SIZES},
    **{("swin", "interlaced", size): TABLE for size in SIZES},
    ("t5", "sp", 4): "10 tokens .* cannot be divided over 4 devices",
    **{(model, "sp", 8): r"\d+ tokens .* cannot be divided over 8 devices" for model in ("gpt", "t5", "evoformer")},
}
QUICK = {
    *(("gpt", name, 2) for name in named.NAMES),
    *((model, name, 4) for model in ("gpt", "t5") for name in ("zero-3", "tp", "1f1b")),
    *((model, name, 2) for model in ("t5", "swin") for name in ("dp", "sp", "zero-bubble")),
    *(("evoformer", "3f1b", size) for size in (2, 4)),
    ("swin", "co-shard", 2),
    ("t5", "interlaced", 4),
    ("gpt", "zero-2", 8),
    ("gpt", "interlaced", 8),
}


def cases():
    """The whole table; what takes more than seconds together is `slow`."""
    for model in MODELS:
        for name in named.NAMES:
            for size in SIZES:
                quick = (model, name, size) in QUICK or (model, name, size) in REFUSED
                yield pytest.param(model, name, size, marks=() if quick else pytest.mark.wide)


@cache
def traced(name):
    """(module, its graph, one micro-batch)."""
    module, example = models.tiny(name)
    return module, trace(module, example), example


@cache
def on_one_device(name, micro_batches):
    """(batches, what the module itself makes of them)."""
    module, _, example = traced(name)
    batches = reference.make_batches(example, STEPS, micro_batches)
    return batches, reference.train(module, batches)


@pytest.mark.parametrize(("model", "name", "size"), list(cases()))
def test_a_named_plan_computes_what_one_device_does(model, name, size):
    module, graph, _ = traced(model)
    few = model == "evoformer" and name not in PIPELINES
    micro_batches = ROUNDS.get(name, 1 if few else MICRO_BATCHES)
    if (model, name, size) in REFUSED:
        with pytest.raises(PlanError, match=REFUSED[model, name, size]):
            named.build(name, graph, size, micro_batches=micro_batches)
        return
    program = preserve(graph, named.build(name, graph, size, micro_batches=micro_batches))
    batches, expected = on_one_device(model, micro_batches)
    compare(interpret(program, module, batches), expected, BOUND)
