"""Calibration: what this machine does, measured, as a hardware profile.

``measure`` runs probes and keeps every sample; ``fit`` turns samples into the figures of a profile, by relative error,
and says which of them the samples do not determine; ``describe`` writes the profile and the raw samples beside it.

NumPy is enough for memory copies, matrix products and sockets. PyTorch adds the operators of training and gloo's
collectives, gRPC the remote procedure call; what is missing is left out and said.
"""
