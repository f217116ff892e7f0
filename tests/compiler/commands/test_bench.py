"""`dskc bench kernels` without a GPU: it says so, and what is asked wrongly is said first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .conftest import Dskc, names

without = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")


@without
@pytest.mark.parametrize("arguments", [(), ("specs/deepseek_nano.dsk",)])
def test_it_needs_a_gpu(arguments: tuple[str, ...], project: Path, dskc: Dskc) -> None:
    before = names(project)
    result = dskc("bench", "kernels", *arguments, "--out", "found", exit_code=1)
    assert "error: this needs a GPU, and there is none here\nhelp: " in result.output
    assert names(project) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--warm-only",), "--warm-only needs --warm N"),
        (("--set", "dims.D=8"), "none is given"),
        (("--batch", "0"), "not in the range"),
        (("--timeout", "0"), "not in the range"),
    ],
)
def test_what_is_asked_wrongly(arguments: tuple[str, ...], said: str, dskc: Dskc) -> None:
    assert said in dskc("bench", "kernels", *arguments, exit_code=2).output


def test_the_published_spec_is_sound(dskc: Dskc) -> None:
    from dskc.compiler.commands.bench import PUBLISHED

    assert "no problems" in dskc("check", str(PUBLISHED)).output
