"""What all tests share."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path

# Threads that wait for work spin by default, which takes the cores from those that have some. Set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings

# What is drawn is the same every time; `make test-all` draws anew.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

if not torch.cuda.is_available():
    # Functions of Triton's and of the runtime can be interpreted only if Triton is told so when they are defined.
    # Whether they run is said later: tests/kernels has them interpreted, all else does without kernels.
    os.environ["TRITON_INTERPRET"] = "1"
    from dskc.runtime import kernels

    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        if not module.name.endswith(".hopper_kernel"):  # Gluon is not interpreted
            importlib.import_module(module.name)

    del os.environ["TRITON_INTERPRET"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write what golden tests compare with, then review it"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a golden file; `pytest --update-golden` writes the file instead."""

    def compare(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"not as in {path}; if it should be, pytest --update-golden"

    return compare
