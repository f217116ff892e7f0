"""Optimizer steps and norms over all tensors at once."""
