"""Tensor transport over one-sided writes, beside gRPC and TCP, on the same bytes (arXiv 1805.08430)."""
