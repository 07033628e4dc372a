"""Tracing a 24-layer GPT: what a graph costs on top of what `torch.export` alone takes, in one run."""

from __future__ import annotations

import time
from statistics import median

import torch

from engines.superscaler import models
from engines.superscaler.trace import trace


def seconds(function, *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def test_a_graph_costs_little_more_than_export(benchmark):
    module, batch = models.preset("gpt", "1.3B", device="meta", dtype="fp16")
    trace(module, batch)  # what torch imports when it first exports is not counted on either side
    export = [seconds(lambda: torch.export.export(module, batch, strict=False)) for _ in range(2)]
    graph = benchmark.pedantic(trace, (module, batch), rounds=2)

    ratio = median(benchmark.stats.stats.data) / median(export)
    benchmark.extra_info |= {"operators": len(graph.ops), "over torch.export": round(ratio, 2)}
    assert ratio < 2
