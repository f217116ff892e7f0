"""Kernels without a GPU: Triton's interpreter runs them, in this folder's tests only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import triton


@contextmanager
def triton_interprets() -> Iterator[None]:
    """Kernels defined within are interpreted where there is no GPU."""
    before = triton.knobs.runtime.interpret
    triton.knobs.runtime.interpret = not torch.cuda.is_available()
    yield
    triton.knobs.runtime.interpret = before


@pytest.fixture(scope="package", autouse=True)
def interpreted() -> Iterator[None]:
    """What a test defines is interpreted; whether it then runs is chosen by the test."""
    with triton_interprets():
        yield
