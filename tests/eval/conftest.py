from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from dskc.runtime.eval.subject import Subject, open_subject

from .runs import LENGTH, import_run


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    return import_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="package")
def theirs(imported: tuple[LlamaForCausalLM, Path]) -> LlamaForCausalLM:
    return imported[0]


@pytest.fixture(scope="package")
def run(imported: tuple[LlamaForCausalLM, Path]) -> Path:
    return imported[1]


@pytest.fixture(scope="package")
def subject(run: Path) -> Subject:
    return open_subject(run, device="cpu", length=LENGTH)
