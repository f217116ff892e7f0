"""Layers of experts: tokens sorted by expert, and products of a matrix for each."""
