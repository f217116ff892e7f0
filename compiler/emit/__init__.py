"""Graphs to readable Python: expressions, classes, files."""
