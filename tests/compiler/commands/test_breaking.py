"""`dskc breaking`: what a change does to checkpoints, between files and against git revisions."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Dskc, names

GOLDEN = Path(__file__).parent / "golden"
MOE, DENSE = "specs/moe_nano.dsk", "specs/deepseek_7b.dsk"
LOADS = "existing checkpoints load, and give what they gave"
OTHER = "existing checkpoints load, but give other results"


def changed(project: Path, spec: str, *changes: tuple[str, str]) -> str:
    """The spec with each change made, under another name."""
    text = (project / spec).read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    (project / "new.dsk").write_text(text, encoding="utf-8")
    return "new.dsk"


@pytest.mark.parametrize(
    "spec", ["deepseek_7b", "deepseek_nano", "llama31_8b", "mistral_7b", "mixtral_8x7b", "moe_nano", "smollm2_135m"]
)
def test_nothing_breaks_where_nothing_changes(spec: str, dskc: Dskc) -> None:
    assert dskc("breaking", f"specs/{spec}.dsk", f"specs/{spec}.dsk").output == f"{spec}: {LOADS}\n"


@pytest.mark.parametrize(
    "change",
    [
        ("lr: 3e-3", "lr: 1e-3"),
        ("H = 6 ", "H = 3 * 2 "),
        ("F", "Fx"),
        ("/// experts", "/// specialists"),
        ("D -> V)", "D -> V)\n  # a comment"),
        ("model moe_nano", "model moe_small"),
    ],
)
def test_changes_that_no_checkpoint_notices(change: tuple[str, str], project: Path, dskc: Dskc) -> None:
    more = [("of moe_nano", "of moe_small")] if "moe_small" in change[1] else []
    assert LOADS in dskc("breaking", MOE, changed(project, MOE, change, *more)).output


BLOCK = """\
dsk 1

block gated(x: [.., D], inner: F) -> [.., D] {{
{}
  return linear(silu(gate) * up, F -> D) as down
}}

model small(tokens: ids[B, S]) -> logits: [B, S, V] {{
  dims {{ V = 64, D = 32, F = 32 }}
  x = embed(tokens, V -> D)
  repeat 3 layers {{
    x += gated(rms_norm(x), inner: F)
  }}
  logits = linear(rms_norm(x) as norm, D -> V)
}}
"""
GATE, UP = "  gate = linear(x, D -> F)", "  up = linear(x, D -> F)"


def test_the_order_of_statements_means_nothing(project: Path, dskc: Dskc) -> None:
    (project / "old.dsk").write_text(BLOCK.format(f"{GATE}\n{UP}"))
    (project / "new.dsk").write_text(BLOCK.format(f"{UP}\n{GATE}").replace("silu(gate) * up", "up * silu(gate)"))
    assert LOADS in dskc("breaking", "old.dsk", "new.dsk").output


def test_weights_that_change_places_are_noticed(project: Path, dskc: Dskc) -> None:
    text = BLOCK.format(f"{GATE}\n{UP}")
    (project / "old.dsk").write_text(text)
    (project / "new.dsk").write_text(text.replace("silu(gate) * up", "silu(up) * gate"))
    assert OTHER in dskc("breaking", "old.dsk", "new.dsk", exit_code=1).output


@pytest.mark.parametrize(
    ("spec", "change", "said"),
    [
        (DENSE, ("H = 32 ", "H = 64 "), "linear q: target [32, 128] -> [64, 64]"),
        (DENSE, ("theta: 10_000", "theta: 500_000"), "rope_table: theta 10_000 -> 500_000"),
        (DENSE, ("theta: 10_000", "theta: 10_000, pairs: interleaved"), "rope q: pairs half -> interleaved"),
        (
            DENSE,
            ("theta: 10_000", "theta: 10_000, scaling: linear(factor: 4)"),
            "rope_table: scaling none -> linear(factor: 4)",
        ),
        (DENSE, ("rms_norm(x) as norm", "rms_norm(x, eps: 1e-5) as norm"), "rms_norm: eps 1e-06 -> 1e-05"),
        (DENSE, ("rope: rope(theta: 10_000)", "scale: 2"), "attend o: scale none -> 2"),
        (DENSE, ("rope: rope(theta: 10_000)", "scale: 2"), "rope q is gone"),
        (DENSE, ("rope: rope", "mask: causal & window(9), rope: rope"), "mask causal -> causal & window(9)"),
        (
            DENSE,
            ("= linear(rms_norm(x) as norm, D -> V)", "= softcap(linear(rms_norm(x) as norm, D -> V) as logits, 30)"),
            "softcap logits is new",
        ),
        (MOE, ("top: 2", "top: 3"), "top_k chosen: k 2 -> 3"),
        (MOE, ("top: 2", "top: 2, renormalize: false"), "normalize weight is gone"),
    ],
)
def test_what_changes_results_unseen(spec: str, change: tuple[str, str], said: str, project: Path, dskc: Dskc) -> None:
    more = [("require params == 6_910_365_696", "")] if spec == DENSE else []
    found = dskc("breaking", spec, changed(project, spec, change, *more), exit_code=1).output
    assert OTHER in found and said in found
    assert found.count("\n") <= 7, "one cause is one line, not all that follows from it"
    (report,) = json.loads(dskc("breaking", spec, "new.dsk", "--format", "json", exit_code=1).output)
    assert report["breaks"] and report["loads"] and not report["renamed"] and not report["reshaped"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("renamed", [("repeat 4 layers", "repeat 4 blocks"), ("as norm", "as final")]),
        ("reshaped", [("V = 2048 ", "V = 4096 "), ("theta: 10_000", "theta: 20_000")]),
        ("deeper", [("repeat 4", "repeat 6")]),
        ("shallower", [("repeat 4", "repeat 3")]),
        ("without_norms", [("qk_norm: true, ", "")]),
        (
            "another_block",
            [
                ("moe(rms_norm(x), count: X, inner: F, top: 2)", "swiglu(rms_norm(x), inner: F)"),
                ("moe, mixtral", "swiglu, mixtral"),
                (" + 0.01 * balance", ""),
            ],
        ),
    ],
)
def test_golden(
    name: str, changes: list[tuple[str, str]], project: Path, dskc: Dskc, golden: Callable[[Path, str], None]
) -> None:
    new = changed(project, MOE, *changes, ("  weights mixtral\n", ""), (", mixtral", ""))
    golden(GOLDEN / f"breaking.{name}.txt", dskc("breaking", MOE, new, exit_code=1).output)
    golden(GOLDEN / f"breaking.{name}.json", dskc("breaking", MOE, new, "--format", "json", exit_code=1).output)


def test_equal_shapes_are_told_apart_by_position_and_name(project: Path, dskc: Dskc) -> None:
    text = BLOCK.format(f"{GATE}\n{UP}")
    (project / "old.dsk").write_text(text)
    renamed = text.replace("gate ", "first ").replace("(gate)", "(first)").replace("up", "second")
    (project / "new.dsk").write_text(renamed)
    (report,) = json.loads(dskc("breaking", "old.dsk", "new.dsk", "--format", "json", exit_code=1).output)
    pairs = {(c["was"], c["name"]) for c in report["renamed"]}
    assert pairs == {
        ("layers.*.gated.gate.weight", "layers.*.gated.first.weight"),
        ("layers.*.gated.up.weight", "layers.*.gated.second.weight"),
    }
    assert not report["added"] and not report["removed"] and not report["meaning"]


def test_the_end_of_a_name_tells_more_than_the_place(project: Path, dskc: Dskc) -> None:
    text = BLOCK.format(f"{GATE}\n{UP}")
    (project / "old.dsk").write_text(text)
    more = (
        text.replace("gated", "glu")
        .replace(GATE, f"  first = linear(x, D -> F)\n{GATE}")
        .replace("* up", "* up * first")
    )
    (project / "new.dsk").write_text(more)
    (report,) = json.loads(dskc("breaking", "old.dsk", "new.dsk", "--format", "json", exit_code=1).output)
    assert [c["name"] for c in report["added"]] == ["layers.*.glu.first.weight"]
    assert {(c["was"], c["name"], c["tensors"]) for c in report["renamed"]} == {
        ("layers.*.gated_norm.weight", "layers.*.glu_norm.weight", 1),
        ("layers.*.gated.*", "layers.*.glu.*", 3),
    }


def test_another_kind_of_module_is_no_renaming(project: Path, dskc: Dskc) -> None:
    text = BLOCK.format(f"{GATE}\n{UP}")
    (project / "old.dsk").write_text(text)
    (project / "new.dsk").write_text(text.replace("rms_norm(x) as norm", "layer_norm(x, bias: false) as final"))
    (report,) = json.loads(dskc("breaking", "old.dsk", "new.dsk", "--format", "json", exit_code=1).output)
    assert [c["name"] for c in report["added"]] == ["final.weight"]
    assert [c["name"] for c in report["removed"]] == ["norm.weight"]


def test_models_by_name(project: Path, dskc: Dskc) -> None:
    both = (
        'dsk 1\n\nuse "specs/moe_nano.dsk" { moe_nano }\n\nmodel a from moe_nano {\n}\n\nmodel b from moe_nano {\n}\n'
    )
    (project / "both.dsk").write_text(both)
    (project / "one.dsk").write_text(both.split("\nmodel b")[0].replace("model a", "model a"))
    output = dskc("breaking", "both.dsk", "one.dsk", exit_code=1).output
    assert output == f"a: {LOADS}\n\nb: the model is gone, and with it what its checkpoints are of\n"
    assert dskc("breaking", "one.dsk", "both.dsk").output == f"a: {LOADS}\n"
    assert dskc("breaking", "both.dsk", "both.dsk", "--model", "b").output == f"b: {LOADS}\n"


# --- revisions


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *options, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(project: Path) -> Path:
    """The specs, committed once; after that the file that deepseek_nano imports is another."""
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "first")
    base = project / DENSE
    base.write_text(base.read_text().replace("theta: 10_000", "theta: 20_000"))
    return project


def test_imports_are_read_at_the_revision_too(repository: Path, dskc: Dskc) -> None:
    nano = "specs/deepseek_nano.dsk"
    found = dskc("breaking", nano, "--against", "HEAD", exit_code=1).output
    assert "rope_table: theta 10_000 -> 20_000" in found and "specs/deepseek_7b.dsk:17" in found
    git(repository, "commit", "--quiet", "-am", "second")
    assert LOADS in dskc("breaking", nano, "--against", "HEAD").output
    assert "theta 10_000 -> 20_000" in dskc("breaking", nano, "--against", "HEAD~1", exit_code=1).output


def test_the_same_from_any_folder(repository: Path, dskc: Dskc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "specs")
    assert "theta 10_000 -> 20_000" in dskc("breaking", "deepseek_nano.dsk", "--against", "HEAD", exit_code=1).output


def test_mistakes_at_the_revision_are_shown_as_the_revisions(repository: Path, dskc: Dskc) -> None:
    base = repository / DENSE
    good = base.read_text()
    base.write_text(good.replace("swiglu(rms", "swigloo(rms"))
    git(repository, "commit", "--quiet", "-am", "a mistake")
    base.write_text(good)
    found = dskc("breaking", DENSE, "--against", "HEAD", exit_code=1).output
    assert "--> HEAD:specs/deepseek_7b.dsk:18:10" in found
    git(repository, "rm", "--quiet", "--cached", DENSE)
    git(repository, "commit", "--quiet", "-m", "the import is gone")
    found = dskc("breaking", "specs/deepseek_nano.dsk", "--against", "HEAD", exit_code=1).output
    assert "--> HEAD:specs/deepseek_nano.dsk:3:5" in found and str(repository) not in found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((MOE, "--against", "nowhere"), "there is no revision `nowhere`\nhelp: name a commit, a branch or a tag"),
        ((MOE, "--against", "--all"), "there is no revision `--all`"),
        ((MOE, "--against", ""), "there is no revision ``"),
        (("new.dsk", "--against", "HEAD"), "HEAD has no file new.dsk\nhelp: where was it then? git log --follow"),
        ((MOE,), f"nothing to compare with\nhelp: dskc breaking {MOE} NEW, or dskc breaking {MOE} --against HEAD"),
        ((MOE, DENSE, "--against", "HEAD"), "two files and --against: it compares either"),
        ((MOE, "absent.dsk"), "there is no file `absent.dsk`"),
        (("absent.dsk", "--against", "HEAD"), "there is no file `absent.dsk`"),
        ((MOE, DENSE, "--model", "moe_nano"), "defines no model `moe_nano`"),
        (("escapes.dsk", "--against", "HEAD"), '"../outside.dsk" (HEAD:escapes.dsk:3) is outside the repository'),
    ],
)  # fmt: skip
def test_bad_input(arguments: tuple[str, ...], said: str, repository: Path, dskc: Dskc) -> None:
    (repository / "new.dsk").write_text((repository / MOE).read_text())
    text = (repository / MOE).read_text()
    (repository / "escapes.dsk").write_text(text.replace("dsk 1\n", 'dsk 1\n\nuse "../outside.dsk" { f }\n', 1))
    git(repository, "add", "escapes.dsk")
    git(repository, "commit", "--quiet", "-m", "an import from outside")
    (repository / "escapes.dsk").write_text(text)
    before = names(repository)
    assert said in dskc("breaking", *arguments, exit_code=1).output
    assert names(repository) == before


def test_without_a_repository_and_without_git(project: Path, dskc: Dskc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    found = dskc("breaking", MOE, "--against", "HEAD", exit_code=1).output
    assert "not a git repository" in found and "help: name two files instead: dskc breaking OLD NEW" in found
    monkeypatch.setenv("PATH", str(project))
    found = dskc("breaking", MOE, "--against", "HEAD", exit_code=1).output
    assert "git is not installed\nhelp: install it, or name two files" in found
