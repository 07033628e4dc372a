"""Data-parallel training of real models over memory-transfer devices."""
