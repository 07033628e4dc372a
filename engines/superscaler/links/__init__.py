"""Predictions of steps held against steps on real links: processes in network namespaces, joined at a limited rate.

`network` makes the links, `calibrate` times single collectives and messages on them into a profile, and `score` holds
what is predicted from that profile against what plans take there (`plans` has some).
"""
