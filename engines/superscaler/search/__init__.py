"""Which plan: how every operator is split, where the model is cut into stages, what is kept and what is recomputed."""
