"""The passes, one file each: pure functions from graph to graph, verified after each (`../pipeline.py`)."""
