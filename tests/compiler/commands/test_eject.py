"""`dskc eject`: what it writes computes what was there before, under the same names; what it refuses it says."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dskc.compiler.compile import compile_spec, write
from dskc.runtime.serve.cache import Cache
from dskc.runtime.spec_module import SpecModule
from dskc.runtime.train.load import load_package

from .conftest import ROOT, Dskc, names

GOLDEN = Path(__file__).parent / "golden"

MODEL = """\
dsk 1

# what is imported
use std {{
  attention,    # looks along S
  moe,
  swiglu,
}}
{uses}
/// Kept.
model small(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ V = 64, D = 32, Fx = 48, Fy = 24, H = 4, E = D / H, Xx = 4 }}
  x = embed(tokens, V -> D)
  repeat 3 layers[i] {{
    x += attention(rms_norm(x), heads: H, width: E, rope: rope(theta: 10_000))
    {call}    # the call
  }}
  logits = linear(rms_norm(x) as norm, D -> V)
}}

/// A recipe.
train tiny of small {{
  objective next_token(logits)
  tokens = 2M
}}
"""
SWIGLU = "x += swiglu(rms_norm(x), inner: Fx)"
TWO_SIZES = "x += if i < 1 then swiglu(rms_norm(x), inner: Fx) else swiglu(rms_norm(x), inner: Fy)"
OWN = """
/// A router's mixture, written here.
block mixed(x: [B, S, D], inner: F, count: X, top: int, scale: float = 2) -> [B, S, D] {
  # inside
  score  = softmax(linear(x, D -> X, compute: fp32) as router)
  chosen = top_k(score, top)
  h      = linear(x, D -> [X, F]) as wide
  z      = linear(silu(h), [X, F] -> D) as narrow
  return z + scale * experts(x, chosen, gather(score, chosen), swiglu(inner: F), count: X)
}
"""
MIXED = "x += mixed(rms_norm(x), inner: Fx, count: Xx, top: 2, scale: 0.5)"
CASES = {
    "swiglu": ("swiglu", "", SWIGLU),
    "two_sizes": ("swiglu", "", TWO_SIZES),
    "mixed": ("mixed", OWN, MIXED),
    "mlp": ("mlp", "\nuse std { mlp }\n", "x += mlp(rms_norm(x), inner: Fx, dropout: 0.1)"),
    "from_a_file": ("shift_scale", '\nuse "blocks.dsk" { shift_scale, other }\n', "x += shift_scale(rms_norm(x))"),
}
BLOCKS = """\
dsk 1

/// Two norms and two results of a linear layer.
block shift_scale(x: [.., D], eps: float = 1e-5) -> [.., D] {
  a, b = split(linear(layer_norm(x, eps: eps) as first, D -> 2 * D) as both, [D, D])
  return dropout(rms_norm(a) as second, p: 0) * b
}

block other(x: [.., D]) -> [.., D] {
  return x
}
"""


@pytest.fixture(autouse=True)
def importable(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project)


def spec_of(project: Path, case: str) -> Path:
    _, uses, call = CASES[case]
    (project / "blocks.dsk").write_text(BLOCKS)
    spec = project / "small.dsk"
    spec.write_text(MODEL.format(uses=uses, call=call))
    return spec


def generated(spec: Path, folder: Path) -> tuple[SpecModule, object]:
    compiled, outputs = compile_spec(spec, folder)
    assert not compiled.problems.has_errors, list(compiled.problems)
    write(outputs[-1])
    package = load_package(outputs[-1].folder)
    return package.Model().eval(), importlib.import_module(f"{package.__name__}.serve")


@pytest.mark.parametrize("case", CASES)
def test_the_same_names_the_same_logits(case: str, project: Path, dskc: Dskc) -> None:
    spec = spec_of(project, case)
    before, serve_before = generated(spec, project / "before")
    dskc("eject", CASES[case][0], "small.dsk", "--module", f"ejected_{case}")
    after, serve_after = generated(spec, project / "after")
    assert f"from ejected_{case} import" in (project / "after" / "small" / "model.py").read_text()

    torch.manual_seed(0)
    for parameter in before.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert [(n, t.shape) for n, t in before.state_dict().items()] == [
        (n, t.shape) for n, t in after.state_dict().items()
    ]
    after.load_state_dict(before.state_dict())
    tokens_BS = torch.randint(0, 64, (2, 9))
    assert torch.equal(before(tokens_BS), after(tokens_BS))
    caches = [(Cache(2, 9), before, serve_before), (Cache(2, 9), after, serve_after)]
    with torch.no_grad():
        one, other = (serve.forward(model, tokens_BS, cache) for cache, model, serve in caches)  # type: ignore[attr-defined]
    assert torch.equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_costs_are_stated_as_they_were_counted(case: str, project: Path, dskc: Dskc) -> None:
    spec_of(project, case)

    def totals() -> list[str]:
        lines = dskc("shapes", "small.dsk", "--length", "128", "--batch", "2").output.splitlines()
        (total,) = [line for line in lines if line.startswith("total")]
        return total.split()[2:]

    before = totals()
    dskc("eject", CASES[case][0], "small.dsk")
    assert totals() == before


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, project: Path, dskc: Dskc, golden: Callable[[Path, str], None]) -> None:
    spec = spec_of(project, case)
    printed = dskc("eject", CASES[case][0], "small.dsk", "--module", f"mine_{case}").output
    text = (project / f"mine_{case}.py").read_text()
    golden(GOLDEN / f"eject.{case}.txt", f"{printed}\n=== small.dsk\n{spec.read_text()}\n=== mine_{case}.py\n{text}")


def test_what_is_written_is_in_the_style(project: Path, dskc: Dskc) -> None:
    spec = spec_of(project, "swiglu")
    dskc("fmt", "small.dsk")
    dskc("eject", "swiglu", "small.dsk")
    dskc("fmt", "--check", "small.dsk")
    assert spec.read_text().count("#") == 3
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    for command in (["check"], ["format", "--check"]):
        options = ["--config", str(ROOT / "pyproject.toml")]
        subprocess.run([ruff, *command, *options, str(project / "small_swiglu.py")], check=True)


ONE = """\
dsk 1

use std { attention }    # not this

use std { swiglu }    # only this one

# about the model
model one(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 64, D = 32, F = 48 }
  x = embed(tokens, V -> D)
  x += swiglu(rms_norm(x), inner: F)
  logits = linear(rms_norm(x) as norm, D -> V)
}
"""
EXTERN = """\
block swiglu(x: [B, S, D], inner: F) -> [B, S, D] = extern "one_swiglu:Swiglu" {
  flops = 6 * B * D * F * S
  saved = B * D * S + 4 * B * F * S
}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("    # only this one", ""),
        ("use std { attention }    # not this\n\n", ""),
        ("use std { swiglu }    # only this one\n\n", "use std { attention, swiglu }    # both\n\n"),
        ("\n", "\r\n"),
    ],
)
def test_imports_of_every_kind(before: str, after: str, project: Path, dskc: Dskc) -> None:
    text = ONE.replace(before, after) if before else ONE
    if after.startswith("use"):
        text = text.replace("use std { attention }    # not this\n\n", "")
    spec = project / "one.dsk"
    spec.write_text(text, newline="")
    dskc("eject", "swiglu", "one.dsk")
    with spec.open(newline="") as file:
        found = file.read()
    block = EXTERN.replace("\n", "\r\n") if after == "\r\n" else EXTERN
    assert block in found and found.split("/// Gated")[0].count("swiglu") == 0
    for comment in ("# not this", "# only this one", "# both", "# about the model"):
        assert found.count(comment) == text.count(comment)
    assert ("\r" in found) == (after == "\r\n") and found.count("\r") in (0, found.count("\n"))
    assert "\n\n\n\n" not in found
    dskc("check", "one.dsk")


def test_a_shipped_spec(project: Path, dskc: Dskc) -> None:
    spec = project / "specs" / "deepseek_7b.dsk"
    before = names(project)
    said = dskc("eject", "swiglu", "specs/deepseek_7b.dsk", exit_code=1).output
    assert "error[DSK0150]" in said and "not counted in `params`: take the requirement out first" in said
    assert names(project) == before
    spec.write_text(spec.read_text().replace("  require params == 6_910_365_696\n", ""))
    said = dskc("eject", "swiglu", "specs/deepseek_7b.dsk").output
    assert "note: `weights llama` does not reach into it" in said and "export PYTHONPATH=specs" in said
    assert "use std { attention, llama }" in spec.read_text()
    dskc("compile", "specs/deepseek_7b.dsk")
    assert (
        "`swiglu` is code of your own already" in dskc("eject", "swiglu", "specs/deepseek_7b.dsk", exit_code=1).output
    )


def test_ejected_options_are_held(project: Path, dskc: Dskc, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(project, "mixed")
    dskc("eject", "mixed", "small.dsk", "--module", "held")
    spec.write_text(spec.read_text().replace("scale: 0.5", "scale: 0.25"))
    with pytest.raises(ValueError, match=r"this class was written for scale = 0\.5, not 0\.25"):
        generated(spec, project / "after")


LOSS = "x += moe(rms_norm(x), count: Xx, inner: Fx, top: 2)"
VALUE = """c = top_k(softmax(x), 1)
    x += experts(x, c, gather(softmax(x), c), swiglu(inner: Fx), count: Xx)
    x += swiglu(rms_norm(x), inner: Fx)"""
UNALIKE = "x += if i < 1 then swiglu(rms_norm(x), inner: Fx) else swiglu(rms_norm(x), inner: Fx, bias: true)"
TAKES = "\nblock takes(x: [.., D], f: block) -> [.., D] {\n  return f(x)\n}\n"
ALONG = "\nblock along(x: [B, S, D]) -> [B, S, D] {\n  return conv(x, width: 3)\n}\n"
SEES = """
block sees(x: [B, S, D], heads: H) -> [B, S, D] {
  q = rope(linear(x, D -> [H, D / H]) as q)
  return linear(q, [H, D / H] -> D) as out
}
"""


@pytest.mark.parametrize(
    ("block", "uses", "call", "said"),
    [
        ("swigloo", "", SWIGLU, "small.dsk has no block `swigloo`\nhelp: did you mean `swiglu`?"),
        ("mlp", "", SWIGLU, "small.dsk has no block `mlp`\nhelp: it can be attention, moe, swiglu"),
        ("small", "", SWIGLU, "small.dsk has no block `small`"),
        ("rms_norm", "", SWIGLU, "small.dsk has no block `rms_norm`"),
        ("moe", "", SWIGLU, "small.dsk does not call `moe`\nhelp: eject it in the file whose model calls it"),
        ("attention", "", SWIGLU, "decoding keeps k, v of it, and a class of one's own is given no cache"),
        ("along", ALONG, "x += along(x)", "it carries something along the sequence, and a class of one's own is given"),
        ("moe", "", LOSS, "its loss `balance` has no way out of a class of one's own"),
        ("sees", SEES, "x += sees(x, heads: H)", "it sees tokens from outside"),
        (
            "takes",
            TAKES,
            "x += takes(rms_norm(x), f: swiglu(inner: Fx))",
            "its `f` is a block, which a class of one's own is not given",
        ),
        ("swiglu", "", VALUE, "with its class in code of your own the spec has the problems above"),
        ("swiglu", "", UNALIKE, "its uses at `layers.*.swiglu` and `layers.*.swiglu` come out as different classes"),
    ],
)
def test_what_cannot_be_ejected(block: str, uses: str, call: str, said: str, project: Path, dskc: Dskc) -> None:
    spec = project / "small.dsk"
    spec.write_text(MODEL.format(uses=uses, call=call))
    text, before = spec.read_text(), names(project)
    assert said in dskc("eject", block, "small.dsk", exit_code=1).output
    assert spec.read_text() == text and names(project) == before


def test_files_that_stand_in_the_way(project: Path, dskc: Dskc, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(project, "swiglu")
    (project / "small_swiglu.py").write_text("mine")
    text, before = spec.read_text(), names(project)
    for options, said in (
        ((), "small_swiglu.py is there already\nhelp: name another module with --module"),
        (("--module", "class"), "no module can be called `class`"),
        (("--module", "../up"), "no module can be called `../up`"),
        (("--module", ""), "no module can be called ``"),
    ):
        assert said in dskc("eject", "swiglu", "small.dsk", *options, exit_code=1).output
    assert "there is no file" in dskc("eject", "swiglu", "absent.dsk", exit_code=1).output

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    said = dskc("eject", "swiglu", "specs/deepseek_nano.dsk", exit_code=1).output
    assert (
        "deepseek_nano.dsk does not call `swiglu`: specs/deepseek_7b.dsk does\nhelp: dskc eject swiglu specs/" in said
    )

    monkeypatch.setattr("dskc.compiler.report.write_text", refuse)
    said = dskc("eject", "swiglu", "small.dsk", "--module", "other", exit_code=1).output
    assert "small.dsk cannot be written: Permission denied\nhelp: make it writable; nothing was changed" in said
    assert spec.read_text() == text and names(project) == before


def test_specs_with_mistakes(project: Path, dskc: Dskc) -> None:
    spec = spec_of(project, "swiglu")
    spec.write_text(spec.read_text().replace("rms_norm(x)", "rms_nrm(x)"))
    assert "DSK0101" in dskc("eject", "swiglu", "small.dsk", exit_code=1).output
