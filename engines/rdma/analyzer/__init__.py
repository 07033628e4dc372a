"""The graph analyzer: which tensors cross between machines, and which allocations their bytes come from."""
