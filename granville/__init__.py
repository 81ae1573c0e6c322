"""Granville: a local inference kernel. One daemon owns the models on a machine and serves every program there."""

__version__ = "0.1.0"
