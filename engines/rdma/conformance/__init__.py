"""One suite that every provider passes: shared memory, real verbs, the simulated adapter.

A *case* is a plain function of a `Pair`, two connected devices in one process. The cases know no provider; where
providers may differ, and do, is in `statuses`. Nothing here needs more than the standard library and numpy, so that
the suite also runs inside a guest::

    python -m engines.rdma.conformance --provider verbs --near device=rxe0 --far device=rxe1 --json
"""
