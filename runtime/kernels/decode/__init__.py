"""Attention of new tokens over a cache, and the writing of caches."""
