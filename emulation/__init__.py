"""A cluster you do not have: profiles, workload graphs, cost models and evaluators."""

MODEL_VERSION = "1"
"""Raised when the same workload on the same profile would take another time; part of every emulated run key."""
