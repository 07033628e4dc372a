"""Workloads: what is done when a model is trained, as programs over a mesh of ranks.

`transformer` lists the operators of a decoder, `schedule` the order of micro-batches in a pipeline, `training` makes a
`program.Program` of both, and `memory` says what it holds. None of them knows how long anything takes: that is `cost`,
on a profile.
"""
