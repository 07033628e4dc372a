"""Declarative experiments for machine-learning systems: spec, run, record, report."""

__version__ = "0.1.0"
