"""Attention with a spec's own mask, forward and backward."""

from .kernel import AttentionKernel

__all__ = ["AttentionKernel"]
