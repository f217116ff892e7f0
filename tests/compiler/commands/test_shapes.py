"""`dskc shapes` agrees with what the compiler counts elsewhere, and prints as drawn; `dskc ir` knows its passes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dskc.compiler.ir import DType, Graph
from dskc.compiler.parameters import total_parameters
from dskc.compiler.passes.memory import flops, memory
from dskc.compiler.passes.recipes import default_train
from dskc.compiler.pipeline import PASS_NAMES, check, lower
from dskc.compiler.recipe import TrainRecipe
from dskc.compiler.shapes import shapes

from .conftest import ROOT, Dskc

GOLDEN = Path(__file__).parent / "golden"

# Two variants of a repeat, a repeat within a repeat, tied weights, a group, an auxiliary loss.
MANY = """\
dsk 1
use std { attention, swiglu, moe }
model many(tokens: ids[B, S]) -> logits: [B, S, V], next: [B, S, V] {
  dims { V = 64, D = 32, F = 48, H = 4, E = D / H, X = 4 }
  table = embed(V -> D)
  x = table(tokens)
  repeat 5 layers[i] {
    x += attention(rms_norm(x), heads: H, width: E, rope: rope(theta: 10_000))
    repeat 2 parts {
      x += swiglu(rms_norm(x), inner: F)
    }
    x += if i % 2 == 0 then swiglu(rms_norm(x), inner: F) else moe(rms_norm(x), count: X, inner: F, top: 2)
  }
  logits = unembed(rms_norm(x) as norm, table)
  group head {
    h = linear(rms_norm(x), D -> D)
    next = unembed(h, table)
  }
}
"""


def kept(graph: Graph, recipe: TrainRecipe, fused: bool) -> tuple[int, int]:
    """Bytes that the memory pass counts, and by how many its means over copies may be off."""
    found = memory(graph, recipe)
    parts = [(found.rest if fused else found.rest_unfused, 1)]
    parts += [(r.saved if fused else r.unfused, r.count) for r in found.repeats]
    off = sum(7 * r.count for r in found.repeats)
    return sum(n * (2 * saved.compute + 4 * saved.fp32 + saved.bytes) for saved, n in parts), off


def agrees(checked: Graph) -> None:
    """With and without kernels, a graph costs what is counted elsewhere."""
    recipe, whole = default_train(checked, 1), lower(checked)
    for fused, graph in ((True, whole), (False, lower(checked, "canonicalize"))):
        sizes = {"B": 1, **recipe.data}
        found = shapes(graph, DType.BF16, sizes, kernels=fused, objective=recipe.objective)
        assert found.parameters == total_parameters(whole)
        assert (int(found.flops.constant), int(found.causal.constant)) == flops(
            whole, recipe.length, lengths=recipe.lengths
        )
        total, off = kept(whole, recipe, fused)
        assert abs(int(found.saved.constant) - total) <= off, fused


@pytest.mark.parametrize("spec", sorted((ROOT / "specs").glob("*.dsk")), ids=lambda path: path.stem)
def test_totals_agree_with_params_and_the_memory_pass(spec: Path) -> None:
    for graph in check(spec).graphs.values():
        agrees(graph)


def test_totals_agree_where_repeats_vary_and_nest(tmp_path: Path) -> None:
    spec = tmp_path / "many.dsk"
    spec.write_text(MANY, encoding="utf-8")
    compiled = check(spec)
    assert not compiled.problems.has_errors, list(compiled.problems)
    agrees(compiled.graphs["many"])


def test_symbols_and_numbers_tell_the_same() -> None:
    graph = lower(check(ROOT / "specs" / "deepseek_7b.dsk").graphs["deepseek_7b"])
    symbols, numbers = shapes(graph, DType.BF16, {}), shapes(graph, DType.BF16, {"B": 3, "S": 100})
    for (a, _, _), (b, _, _) in zip(symbols.flat(), numbers.flat(), strict=False):
        for field in ("flops", "causal", "saved"):
            assert getattr(a, field).evaluate({"B": 3, "S": 100}) == getattr(b, field).constant


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shapes.moe_nano.txt", ("specs/moe_nano.dsk", "--train", "tiny")),
        ("shapes.fused.txt", ("specs/moe_nano.dsk", "--train", "tiny", "--fused")),
        ("shapes.moe_nano.json", ("specs/moe_nano.dsk", "--length", "128", "--batch", "2", "--format", "json")),
        ("shapes.deepseek_7b.txt", ("specs/deepseek_7b.dsk",)),
        ("shapes.many.txt", ("many.dsk", "--length", "100")),
    ],
)
def test_golden(
    name: str, arguments: tuple[str, ...], project: Path, dskc: Dskc, golden: Callable[[Path, str], None]
) -> None:
    (project / "many.dsk").write_text(MANY, encoding="utf-8")
    golden(GOLDEN / name, dskc("shapes", *arguments).output)


def test_json_counts_every_copy(dskc: Dskc) -> None:
    (found,) = json.loads(dskc("shapes", "specs/deepseek_7b.dsk", "--train", "pretrain", "--format", "json").output)
    assert found["sizes"] == {"S": 4096, "B": 1}
    leaves = [row for row in found["operations"] if row["path"] == "layers.*.attention.q"]
    assert [row["times"] for row in leaves] == [30]
    assert found["total"]["parameters"] == 6_910_365_696


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("specs/deepseek_7b.dsk", "--train", "pre"), "there is no train `pre`\nhelp: it can be pretrain"),
        (("specs/qwen3_8b.dsk", "--train", "pre"), "this spec has none; --length tells S as well"),
        (
            ("specs/moe_nano.dsk", "--model", "moe_nanoo"),
            "defines no model `moe_nanoo`\nhelp: did you mean `moe_nano`?",
        ),
        (("blocks.dsk",), "blocks.dsk defines no model"),
        (("specs/absent.dsk",), "absent.dsk"),
        (("flat.dsk", "--length", "8"), "`flat` takes no input along `S`\nhelp: leave --length and --batch out"),
        (("specs/moe_nano.dsk", "--set", "dims.D=0"), "`D` is at least 1"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], said: str, project: Path, dskc: Dskc) -> None:
    (project / "blocks.dsk").write_text("dsk 1\n\nblock f(x: [.., D]) -> [.., D] {\n  return x\n}\n")
    flat = "dsk 1\nmodel flat(x: [B, P]) -> y: [B, D] {\n  dims { P = 8, D = 4 }\n  y = linear(x, P -> D)\n}\n"
    (project / "flat.dsk").write_text(flat)
    result = dskc("shapes", *arguments, exit_code=1)
    assert said in result.output


def test_numbers_that_are_none(dskc: Dskc) -> None:
    for text in ("0", "-1", "many", "1e3", str(2**60)):
        assert "--length" in dskc("shapes", "specs/moe_nano.dsk", "--length", text, exit_code=2).output


@pytest.mark.parametrize("name", PASS_NAMES)
def test_ir_after_each_pass(name: str, dskc: Dskc) -> None:
    assert dskc("ir", "specs/moe_nano.dsk", "--after", name).output.startswith("model moe_nano(%tokens: int64[B, S]")


def test_ir_says_which_passes_there_are(dskc: Dskc) -> None:
    assert dskc("ir", "specs/moe_nano.dsk").output == dskc("ir", "specs/moe_nano.dsk", "--after", PASS_NAMES[-1]).output
    near = dskc("ir", "specs/moe_nano.dsk", "--after", "inferr", exit_code=2)
    assert "there is no pass `inferr`: did you mean `infer`?" in near.output
    far = dskc("ir", "specs/moe_nano.dsk", "--after", "quantize", exit_code=2)
    assert f"it can be {', '.join(PASS_NAMES)}" in far.output.replace("\n", " ")
    assert "defines no model `x`" in dskc("ir", "specs/moe_nano.dsk", "--model", "x", exit_code=1).output


def test_a_misspelt_command_is_answered_with_the_one_meant(dskc: Dskc) -> None:
    assert "there is no command `shape`: did you mean `shapes`?" in dskc("shape", exit_code=2).output


def test_bold_on_a_terminal_alone(project: Path, dskc: Dskc) -> None:
    pty = pytest.importorskip("pty")
    command = [sys.executable, "-m", "dskc.compiler.cli", "shapes", "specs/moe_nano.dsk", "--train", "tiny"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "40"}
    with subprocess.Popen(command, stdout=theirs, env={k: v for k, v in environment.items() if k != "NO_COLOR"}):
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
    text = re.sub(r"\x1b\[\d*m", "", shown.decode()).replace("\r\n", "\n")
    assert "\x1b[1m" in shown.decode()
    assert text == (GOLDEN / "shapes.moe_nano.txt").read_text()  # no line is broken or cut


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how a terminal's end shows on Linux
        return b""
