"""Training a GPT with data, tensor and pipeline parallelism, for real and emulated (Megatron-LM)."""
