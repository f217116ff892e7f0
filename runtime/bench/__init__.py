"""Kernels beside what users could call instead, timed in one run: `dskc bench kernels`, `python -m dskc.runtime.bench`."""
