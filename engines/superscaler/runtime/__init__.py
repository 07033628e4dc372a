"""The runtime: interprets the instruction list of each rank, all ranks in one process or one rank in a process group.

`interpret` and `lockstep` run every rank in this process, for proofs in float64; `distributed` runs one rank over
`torch.distributed`; both drive the same `interpreter`. `reference` is what they are compared with: the model on one
device.
"""
