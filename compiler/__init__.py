"""Specs to graphs to code: passes over the graph IR, emission, and the `dskc` command."""

__version__ = "0.1.0"
