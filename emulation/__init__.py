"""A cluster you do not have: profiles, workload graphs, cost models and evaluators.

::

    profile   what the cluster is made of, every figure with its source
    topology  its links and the routes over them
    graph     what is to be done, and in which order
    cost      what each node costs: a fixed time, then bytes over links
    evaluate  when everything happens
    band      how far that may be off

Engines build a `graph.Workload` and call `evaluate.simulate`; nothing here knows an engine or the harness.
"""

MODEL_VERSION = "2"
"""Raised whenever the same workload on the same profile would give another result; part of every emulated record."""
