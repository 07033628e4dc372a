"""Prediction held against published fact: Aceso's measured iteration times, from its own recorded profiles.

`profile` reads the tables, `space` finds the best plan of the space that the paper describes, `prediction` times it and
compares. Nothing is fitted to the times that are predicted.
"""
