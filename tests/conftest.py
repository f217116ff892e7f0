"""What all tests share."""

from __future__ import annotations

import os

# Threads that wait for work spin by default, which on two cores takes them from whoever has some. Set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
