"""`dskc diff` between runs: what was changed on purpose is what it names."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from dskc.compiler.cli import main
from dskc.runtime.diff.compare import difference
from dskc.runtime.diff.run import Report, diff
from dskc.runtime.diff.trace import trace
from dskc.runtime.problem import Problem
from dskc.runtime.train import Precision, create_run_folder, load_model, write_checkpoint
from dskc.runtime.train.folder import Facts, RunFolder
from tests.compiler.small_models import Small, compiled

SPEC = """dsk 1

use std { attention, FEED, llama }

model small(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 90, D = 32, F = 24, H = 4, E = D / H, X = 4 }
  x = embed(tokens, V -> D)
  repeat 3 layers {
    x += attention(rms_norm(x), heads: H, width: E, rope: rope(), qk_norm: true)
    x += FEED(rms_norm(x), inner: F)
  }
  logits = linear(rms_norm(x) as norm, D -> V)
}
"""
PLAIN = SPEC.replace("FEED", "swiglu")
EXPERTS = SPEC.replace("FEED(rms_norm(x), ", "moe(rms_norm(x), count: X, top: 2, ").replace("FEED", "moe")
# Which operation is the first that a parameter changes.
FIRST = {
    "embed": "model: embed",
    "attention_norm": "{module}: rms_norm",
    "swiglu_norm": "{module}: rms_norm (2)",
    "moe_norm": "{module}: rms_norm (2)",
    "q_norm": "{module}: rms_norm",
    "k_norm": "{module}: rms_norm (2)",
    "norm": "model: rms_norm",
    "logits": "model: logits",
}


def make_run(small: Small, out: Path, seed: int = 0) -> Path:
    facts = Facts("small", "small.dsk", "aaaa", Precision("fp32", "fp32", "fp32", "fp32"))
    run = create_run_folder(out, small.folder, facts)
    write_checkpoint(run.checkpoints, 0, small.model(seed=seed).state_dict())
    return out


@pytest.fixture(scope="module", params=["plain", "experts"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return compiled(PLAIN if request.param == "plain" else EXPERTS, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(small, tmp_path_factory.mktemp("runs") / "run")


def dskc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def with_weights(run: Path, to: Path, change: str) -> Path:
    """The same run, one element of one parameter another."""
    shutil.copytree(run, to)
    state = {name: value.clone() for name, value in load_model(run, device="cpu")[0].state_dict().items()}
    state[change].view(-1)[state[change].numel() // 2] += 0.25
    write_checkpoint(RunFolder(to).checkpoints, 0, state)
    return to


def first(report: Report) -> str:
    assert report.forward.first is not None
    return report.forward.first.name


def test_a_run_does_not_differ_from_itself(run: Path) -> None:
    result = dskc("diff", run, "--with", run, "--gradients")
    assert result.exit_code == 0, result.output
    assert "differ" not in result.output and result.output.count("agree") == 3


def test_of_every_weight_the_operation_that_it_changes_first_is_named(small: Small, run: Path, tmp_path: Path) -> None:
    for number, name in enumerate(small.model().state_dict()):
        other = with_weights(run, tmp_path / str(number), name)
        report = diff(run, str(other), sequences=8)  # so many tokens that each row of the embedding is there
        assert report.weights is not None and [each.name for each in report.weights.differing] == [name]
        module, _, layer = name.removesuffix(".weight").rpartition(".")
        if "experts" in name:
            assert first(report).startswith(f"{module}: "), name
        else:
            assert first(report) == FIRST.get(layer, "{module}: {layer}").format(module=module, layer=layer), name
        assert report.differs


@pytest.mark.parametrize(
    ("file", "old", "new", "named", "code"),
    [
        ("kernels.py", "silu(gate", "gelu(gate", "layers.0.swiglu: ", "kernels.swiglu(gate_BSF, up_BSF)"),
        ("kernels.py", "return reference.rope(q", "return 2 * reference.rope(q", "layers.0.attention: ", "_rope(q_"),
        ("model.py", "return x_BSD + self.swiglu(", "return x_BSD + 1.001 * self.swiglu(", "layers.0: ", "1.001"),
        ("model.py", "theta=10_000.0", "theta=10_001.0", "model: rope_table.0", "theta=10_00"),
        ("model.py", "self.q(x_BSD)", "self.q(x_BSD + 1e-3)", "layers.0.attention: q", "self.q(x_BSD"),
    ],
)  # fmt: skip
def test_of_changed_code_the_statement_is_named(
    tmp_path: Path, file: str, old: str, new: str, named: str, code: str
) -> None:
    small = compiled(PLAIN, tmp_path)
    one, other = make_run(small, tmp_path / "one"), make_run(small, tmp_path / "other")
    path = other / "code" / "small" / file
    source = path.read_text(encoding="utf-8")
    assert old in source
    path.write_text(source.replace(old, new), encoding="utf-8")
    report = diff(one, str(other))
    assert report.weights is not None and not report.weights.differing
    assert first(report).startswith(named)
    assert report.forward.first is not None and code in report.forward.first.code
    assert "small.dsk:" in report.forward.first.spec


def test_what_is_printed(tmp_path: Path) -> None:
    small = compiled(PLAIN, tmp_path)
    run = make_run(small, tmp_path / "run")
    other = with_weights(run, tmp_path / "other", "layers.1.attention.k.weight")
    result = dskc("diff", run, "--with", other, "--gradients")
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if " norm" not in line or "first is" in line]
    assert lines[:4] == [
        f"{run}, step-00000000",
        f"{other}, step-00000000",
        "on 2 x 64 tokens",
        "weights: 1 of 36 parameters differ; the first is",
    ]
    assert re_lines(result.output, "layers.1.attention.k.weight: by 0.25 at most")
    assert re_lines(result.output, "layers.1.attention: k: by ")
    assert "    k_BSHE = self.k(x_BSD).unflatten(-1, (H, E))" in lines
    assert any(line.startswith("    ") and "small.dsk:9: x += attention(" in line for line in lines)
    found = json.loads(dskc("diff", run, "--with", other, "--json").output)
    assert found["differs"] and found["forward"]["first"]["name"] == "layers.1.attention: k"
    assert [each["name"] for each in found["forward"]["found"]][:2] == ["model: embed", "model: position_S"]


def re_lines(output: str, start: str) -> bool:
    return any(line.strip().startswith(start) for line in output.splitlines())


def test_gradients_of_a_changed_loss_alone(tmp_path: Path) -> None:
    """The forward pass is the same, and only what comes back through one layer is another."""
    small = compiled(PLAIN, tmp_path)
    one, other = make_run(small, tmp_path / "one"), make_run(small, tmp_path / "other")
    path = other / "code" / "small" / "model.py"
    source = path.read_text(encoding="utf-8")
    nothing = "up_BSF = self.up(x_BSD) + (x_BSD - x_BSD.detach()).sum() * 0.01"
    path.write_text(source.replace("up_BSF = self.up(x_BSD)", nothing), encoding="utf-8")
    report = diff(one, str(other), gradients=True)
    assert report.gradients is not None and report.gradients.differing
    assert not report.forward.differing and report.differs
    # The last layer's feed-forward is the first that backward comes to: what is behind it has the same gradients.
    differing = [each.name for each in report.gradients.differing]
    assert differing[-1] == "layers.2.swiglu_norm.weight"
    assert not {"norm.weight", "logits.weight", "layers.2.swiglu.up.weight"} & set(differing)


def test_models_of_different_depth_agree_as_far_as_both_go(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "flat").mkdir()
    deep, flat = compiled(PLAIN, tmp_path / "deep"), compiled(PLAIN, tmp_path / "flat", ("layers=2",))
    one, other = make_run(deep, tmp_path / "one"), make_run(flat, tmp_path / "other")
    state = {name: load_model(one, device="cpu")[0].state_dict()[name] for name in flat.model().state_dict()}
    write_checkpoint(RunFolder(other).checkpoints, 0, state)
    report = diff(one, str(other))
    assert first(report) == "model: rms_norm" and not [each for each in report.forward.found if "layers.2" in each.name]
    assert any(name.startswith("layers.2") for name in report.forward.only)


def test_what_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="there is no such run"):
        diff(run, str(tmp_path / "none"))
    with pytest.raises(Problem, match="whose configuration"):
        diff(run, "hf")
    with pytest.raises(Problem, match="no checkpoint map"):
        diff(run, "hf", tmp_path)
    small = compiled(PLAIN.replace("V = 90", "V = 8"), tmp_path)
    with pytest.raises(Problem, match="its vocabulary of 8 does not have the tokens"):
        diff(run, str(make_run(small, tmp_path / "other")))


# What it rests on


def test_every_statement_is_noted_once(small: Small) -> None:
    model = small.model()
    tokens = torch.arange(12).view(1, 12)
    output, operations = trace(model, small.folder, (tokens,))
    (logits,) = [operation.value for operation in operations if (operation.module, operation.name) == ("", "logits")]
    assert torch.equal(output if isinstance(output, torch.Tensor) else output[0], logits)
    assert len({operation.key for operation in operations}) == len(operations)
    given = [operation for operation in operations if not operation.name.startswith(("forward", "hidden"))]
    assert len({operation.value.data_ptr() for operation in given if operation.name in ("embed", "q", "k")}) == 7
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    named = {f"{operation.module}.{operation.name}".removeprefix(".") for operation in operations}
    assert set(linears) <= named
    for kind in ("embed", "rms_norm", "rope"):
        assert any(operation.name == kind for operation in operations), kind


@given(st.lists(st.floats(width=32), min_size=1, max_size=8), st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_difference_against_plain_arithmetic(one: list[float], other: list[float]) -> None:
    a, b = torch.tensor(one), torch.tensor(other)
    found = difference(a, b)
    if len(one) != len(other):
        assert found.relative == math.inf
        return
    same = all(x == y or (x != x and y != y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    assert (found.largest == 0) == (found.relative == 0) == same
    if not same and all(map(math.isfinite, [*one, *other])):
        apart = [abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert found.largest == max(apart)
        norm = math.hypot(*b.tolist())
        assert found.relative == (pytest.approx(math.hypot(*apart) / norm) if norm else math.inf)
