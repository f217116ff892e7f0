"""Prefill and decode: the cache that generated `serve.py` fills, sampling, and generation of text."""

from .cache import Cache
from .generate import generate
from .sampling import Sampler

__all__ = ["Cache", "Sampler", "generate"]
