"""SuperScaler: parallelization plans in three phases (published as nnScaler, OSDI 2024)."""
