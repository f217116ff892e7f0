"""Kernels beside what users could call instead, timed in one run."""
