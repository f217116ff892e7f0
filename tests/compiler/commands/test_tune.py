"""`dskc tune`: with kernels interpreted it tunes; without a GPU it says so; what was found elsewhere is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import Dskc, names

TINY = """\
dsk 1

use std { attention, swiglu }

/// As small as a model can be.
model tiny(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 32, D = 16, F = 16, H = 1, E = D / H }
  x = embed(tokens, V -> D)
  repeat 3 layers {
    x += attention(rms_norm(x), heads: H, width: E, rope: rope(theta: 10_000))
    x += swiglu(rms_norm(x), inner: F)
  }
  logits = linear(rms_norm(x) as norm, D -> V)
}

train small of tiny {
  objective next_token(logits)
  tokens    = 1M
  batch     { sequences = 2, S = 16 }
  precision { params = fp32, compute = fp32, reduce = fp32 }
}
"""
ABOUT = {"versions": {"torch": "1"}, "batch": 2, "length": 16}
CHOICE = {"operation": "attention.forward", "shape": "bf16 Causal 2", "way": "cudnn", "ms": 0.25}
without = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")


@pytest.fixture
def tiny(project: Path) -> Path:
    """Where the generated code of a tiny spec goes; the spec is specs/tiny.dsk."""
    (project / "specs" / "tiny.dsk").write_text(TINY, encoding="utf-8")
    return project / "generated" / "tiny"


def tuned(folder: Path, *gpus: str) -> None:
    folder.mkdir(parents=True)
    further = {"next_way": "triton 128x64", "next_ms": 0.5}
    found = {gpu: {**ABOUT, "choices": [CHOICE | further, CHOICE | {"operation": "lone"}]} for gpu in gpus}
    (folder / "tuned.json").write_text(json.dumps(found), encoding="utf-8")


@without
@pytest.mark.slow
def test_tuning_where_kernels_are_interpreted(tiny: Path, dskc: Dskc) -> None:
    # Triton must be told before it loads.
    command = [
        sys.executable,
        "-m",
        "dskc.compiler.cli",
        "tune",
        "specs/tiny.dsk",
        "--record",
        "ways.json",
        "--batch=1",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "attention.forward" in result.stdout and "attention.backward" in result.stdout
    (found,) = json.loads((tiny / "tuned.json").read_text()).values()
    assert (found["batch"], found["length"]) == (1, 16)
    chosen = {choice["operation"]: choice for choice in found["choices"]}
    assert {"attention.forward", "attention.backward"} <= set(chosen)
    backward = chosen["attention.backward"]
    assert backward["ms"] <= backward["next_ms"]
    assert json.loads(Path("ways.json").read_text())["attention.backward"] == {backward["shape"]: backward["way"]}
    assert "unchanged" in dskc("compile", "specs/tiny.dsk").output  # tuning leaves the code as it is


@without
def test_it_needs_a_gpu(tiny: Path, project: Path, dskc: Dskc) -> None:
    before = names(project)
    assert "error: this needs a GPU" in dskc("tune", "specs/tiny.dsk", exit_code=1).output
    assert names(project) == before


def test_what_was_found_elsewhere(tiny: Path, dskc: Dskc) -> None:
    tuned(tiny, "GPU 8", "GPU 9")
    output = dskc("tune", "specs/tiny.dsk", "--show").output
    for part in ("GPU 8: 2 x 16 tokens, torch 1", "GPU 9", "attention.forward", "cudnn", "0.2500", "128x64"):
        assert part in output
    assert "of GPU 8, GPU 9" in dskc("tune", "specs/tiny.dsk", "--show", "--record", "ways.json", exit_code=1).output


def test_recording_what_was_found_elsewhere(tiny: Path, dskc: Dskc) -> None:
    tuned(tiny, "GPU 9")
    dskc("tune", "specs/tiny.dsk", "--show", "--record", "ways.json")
    assert json.loads(Path("ways.json").read_text())["lone"] == {"bf16 Causal 2": "cudnn"}


def test_nothing_to_show(tiny: Path, dskc: Dskc) -> None:
    output = dskc("tune", "specs/tiny.dsk", "--show", exit_code=1).output
    assert "error: tiny was not tuned yet\nhelp: " in output
    tiny.mkdir(parents=True)
    (tiny / "tuned.json").write_text("[]", encoding="utf-8")
    assert "holds no choices of kernels" in dskc("tune", "specs/tiny.dsk", "--show", exit_code=1).output


def test_a_model_that_is_not_there(tiny: Path, dskc: Dskc) -> None:
    assert "defines no model `tinny`" in dskc("tune", "specs/tiny.dsk", "--model", "tinny", exit_code=1).output
