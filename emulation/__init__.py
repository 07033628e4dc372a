"""A cluster you do not have: profiles, workload graphs, cost models and evaluators."""
