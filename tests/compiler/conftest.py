from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dskc.dsl.parser import tokenize

tokenize("")  # raises Python's recursion limit, once: Hypothesis warns of one that changes under its hands


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these are slower on several threads, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
