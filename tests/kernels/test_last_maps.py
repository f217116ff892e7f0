"""Trainers whose losses apply the last linear map: the same losses and gradients as of logits that are held."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dskc.compiler.compile import compile_spec, write
from dskc.compiler.passes.lift import last_maps, lift
from dskc.compiler.passes.memory import memory
from dskc.compiler.pipeline import lower
from dskc.compiler.verify import verify
from dskc.runtime.data import Batch
from dskc.runtime.kernels import use_kernels
from dskc.runtime.kernels.loss import products as loss_products
from dskc.runtime.kernels.loss.linear_loss import next_token_linear
from dskc.runtime.reference import next_token, token_losses
from dskc.runtime.train import Ledger, LinearLoss, Precision
from dskc.runtime.train.evaluate import evaluate
from dskc.runtime.train.ledger import rows as ledger_rows
from dskc.runtime.train.load import load_package

from ..runtime.test_ledger import peak_of
from .conftest import triton_interprets

V, D = 37, 16
SPEC = """dsk 1

use std {{ generation_head }}

model small(tokens: ids[B, S]) -> {results} {{
  dims {{ V = 37, D = 16 }}
  table = embed(V -> D)
  head  = linear(D -> V) as shared
  x = table(tokens)
  x += linear(rms_norm(x), D -> D) as mix
  {body}
}}

train tiny of small {{
  objective {objective}
  tokens = 1K
  batch {{ sequences = 2, S = 8 }}
  precision {{ params = fp32, compute = fp32, reduce = fp32, optimizer = fp32 }}
}}
"""
LOGITS = "logits: [B, S, V]"
MTP = """logits = head(rms_norm(x) as norm)
  group mtp {
    h    = linear(concat(table(shift(tokens, 1)), x), 2 * D -> D)
    next = softcap(0.5 * head(rms_norm(h)), 2)
  }"""


@dataclass(frozen=True)
class Case:
    """A model and what its trainer must say; `terms`: factor, result, ahead, z and smoothing of each term."""

    body: str
    said: tuple[str, ...]
    objective: str = "next_token(logits)"
    results: str = LOGITS
    terms: tuple[tuple[float, int, int, float, float], ...] = ((1.0, 0, 1, 0.0, 0.0),)


LIFTED = {
    "plain": Case("logits = linear(rms_norm(x) as norm, D -> V)", ("model.logits.weight, batch.targets)",)),
    "bias": Case("logits = linear(rms_norm(x), D -> V, bias: true)", ("bias_V=model.logits.bias",)),
    "tied": Case("logits = unembed(rms_norm(x), table)", ("model.table.weight, batch.targets)",)),
    "softcap": Case("logits = softcap(unembed(rms_norm(x), table), 0.2)", ("softcap=0.2)",)),
    "scales": Case("logits = 3 * head(rms_norm(x)) / 0.5", ("scale=6.0)",)),
    "all": Case(
        "logits = softcap(4 * linear(rms_norm(x), D -> V, bias: true), 0.5)",
        ("bias_V=model.linear.bias", "z=0.01", "smoothing=0.1", "softcap=0.5", "scale=4.0"),
        "0.5 * next_token(logits, z: 0.01, smoothing: 0.1)",
        terms=((0.5, 0, 1, 0.01, 0.1),),
    ),
    "mtp": Case(
        MTP,
        ("out.logits, model.shared.weight", "out.next, model.shared.weight", "ahead=2, softcap=2.0, scale=0.5"),
        "next_token(logits) + 0.3 * next_token(next, ahead: 2)",
        f"{LOGITS}, next: [B, S, V]",
        ((1.0, 0, 1, 0.0, 0.0), (0.3, 1, 2, 0.0, 0.0)),
    ),
    "twice": Case(
        "logits = head(rms_norm(x))",
        ("batch.targets)", "batch.targets, ahead=3)", '"next_token": next_token_logits,', "next_token_logits_2"),
        "next_token(logits) + 2 * next_token(logits, ahead: 3)",
        terms=((1.0, 0, 1, 0.0, 0.0), (2.0, 0, 3, 0.0, 0.0)),
    ),
}  # fmt: skip
HELD = {
    "clamped": Case("logits = clamp(head(rms_norm(x)), min: -1.0, max: 1.0)", ("rows=kernels.",)),
    "scaled behind a softcap": Case("logits = 3 * softcap(head(rms_norm(x)), 0.2)", ("rows=kernels.",)),
    "a number less its scale": Case("logits = 2 / (3 * head(rms_norm(x)))", ("rows=kernels.",)),
    "read again": Case(
        "logits = head(rms_norm(x))\n  sharp = 2 * logits",
        ("rows=kernels.",), results=f"{LOGITS}, sharp: [B, S, V]",
    ),
    "of two maps": Case("logits = head(rms_norm(x)) + unembed(x, table)", ("rows=kernels.",)),
    "in fp32": Case("logits = linear(rms_norm(x), D -> V, compute: fp32)", ("rows=kernels.",)),
    "a block's own": Case("logits = generation_head(x, vocabulary: V) as last", ("rows=kernels.",)),
    "a weight called hidden": Case("logits = linear(rms_norm(x) as hidden, D -> V)", ("rows=kernels.",)),
    "with z and smoothing": Case(
        "logits = clamp(head(rms_norm(x)), min: -2.0, max: 2.0)", ("rows=kernels.",),
        "next_token(logits, z: 0.01, smoothing: 0.1)", terms=((1.0, 0, 1, 0.01, 0.1),),
    ),
}  # fmt: skip
device = "cuda" if torch.cuda.is_available() else "cpu"


def compiled(case: Case, folder: Path) -> Path:
    """The generated package's folder."""
    spec = folder / "small.dsk"
    spec.write_text(SPEC.format(results=case.results, body=case.body, objective=case.objective), encoding="utf-8")
    made, outputs = compile_spec(spec)
    assert not made.problems.has_errors, [(d.title, d.label) for d in made.problems]
    (output,) = outputs
    write(output)
    return output.folder


def loaded(folder: Path) -> tuple[nn.Module, object]:
    """The model in float64 with weights that matter, and its trainer; kernels are interpreted where there is no GPU."""
    with triton_interprets():
        package = load_package(folder)
        __import__(f"{package.__name__}.train")
    torch.manual_seed(0)
    model = package.Model(compute=torch.float64).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(device), sys.modules[f"{package.__name__}.train"]


def batch(rows: int = 2, length: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, V, (rows, length), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[0, 2] = targets[:, -1] = -100
    return Batch(tokens, targets).to(torch.device(device))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def few_logits(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """So many bytes of them at a time."""
    for bound in ("LEAST_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(loss_products, bound, most)


def held(model: nn.Module, case: Case, given: Batch) -> Tensor:
    """The objective of logits that are held, from `forward`."""
    out = model(given.tokens)
    results = (out,) if isinstance(out, Tensor) else out
    terms = [
        factor * next_token(results[i], given.targets, ahead, partial(token_losses, z=z, smoothing=smoothing))
        for factor, i, ahead, z, smoothing in case.terms
    ]
    return sum(terms[1:], terms[0])


@pytest.mark.parametrize("name", [*LIFTED, *HELD])
@pytest.mark.parametrize("mode", ["reference", "triton"])
def test_an_objective_is_that_of_logits(name: str, mode: str, tmp_path: Path) -> None:
    case, given = {**LIFTED, **HELD}[name], batch()
    folder = compiled(case, tmp_path)
    text = (folder / "train.py").read_text(encoding="utf-8")
    assert all(part in text for part in case.said), text.split("def objective")[1].split("def main")[0]
    assert ("def cross_entropy_reference" in (folder / "kernels.py").read_text(encoding="utf-8")) == (name in HELD)
    model, trainer = loaded(folder)
    assert hasattr(model, "hidden") == (name in LIFTED) or name == "a weight called hidden"
    with use_kernels("reference"):
        expected = held(model, case, given)
        wanted = gradients(model, expected)
    with use_kernels(mode):
        found = trainer.objective(model, given)["loss"]  # type: ignore[attr-defined]
        grads = gradients(model, found)
        with torch.no_grad():
            alone = trainer.objective(model, given)["loss"]  # type: ignore[attr-defined]
    assert grads.keys() == wanted.keys()
    if mode == "reference" and name in ("plain", "tied", "softcap", "bias"):
        assert torch.equal(found, expected) and all(torch.equal(grads[key], wanted[key]) for key in wanted)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=1e-7)  # rows in fp32 where held
    torch.testing.assert_close(alone, found, rtol=1e-6, atol=1e-7)
    for key in wanted:
        torch.testing.assert_close(grads[key], wanted[key], rtol=1e-5, atol=1e-7, msg=key)


def test_a_shared_head_moves_out_of_the_block_that_applies_it(tmp_path: Path) -> None:
    folder = compiled(LIFTED["mtp"], tmp_path)
    made, _ = compile_spec(folder.parent.parent / "small.dsk")
    recipe = made.recipes.trains["tiny"]
    before = lower(made.graphs["small"])
    graph = lift(before, recipe.objective)
    verify(graph)
    kinds = [[op.kind for op in one.ops] for one in last_maps(graph, recipe.objective)]
    assert kinds == [["linear"], ["linear", "fused"]]
    assert graph.body.ops[-1].result is graph.body.results[1] is before.body.results[1]
    assert lift(graph, recipe.objective).body.ops[-1].result is graph.body.results[1], "once more changes nothing"
    # What is counted does not depend on where the map stands.
    assert memory(graph, recipe) == memory(before, recipe)
    text = (folder / "model.py").read_text(encoding="utf-8")
    block = text.split("class Mtp")[1].split("class ")[0]
    assert "Linear) ->" not in block, block


@pytest.mark.parametrize("weight", ["norm", "hidden"])
def test_accuracy_is_measured_on_what_the_objective_computes(weight: str, tmp_path: Path) -> None:
    """By `hidden`; or by the model where a weight has that name, and there is no such method."""
    case = Case(
        f"logits = head(rms_norm(x) as {weight})\n  kind = linear(pool(x), D -> 3)",
        (),
        "next_token(logits) + classify(kind)",
        f"{LOGITS}, kind: [B, 3]",
    )
    folder = compiled(case, tmp_path)
    model, trainer = loaded(folder)
    given = batch(rows=6)
    with use_kernels("reference"), torch.no_grad():
        right = model(given.tokens).kind.argmax(-1)
        labels = torch.where(torch.arange(6, device=device) < 4, right, (right + 1) % 3)
        labelled = Batch(given.tokens, given.targets, labels={"kind": labels})
        tasks = trainer.RECIPE.tasks  # type: ignore[attr-defined]
        found = evaluate(model, trainer.objective, [labelled], tasks, torch.device(device))  # type: ignore[attr-defined]
    assert found.accuracy == {"kind": 4 / 6}
    assert "hidden" not in vars(model), "the model is as it was"


def test_errors_of_hidden_end_with_the_line_of_the_spec(tmp_path: Path) -> None:
    model, trainer = loaded(compiled(LIFTED["plain"], tmp_path))
    with pytest.raises((IndexError, RuntimeError)) as caught, use_kernels("reference"):
        trainer.objective(model.cpu(), Batch(torch.full((1, 4), V + 1), torch.zeros(1, 4, dtype=torch.int64)))  # type: ignore[attr-defined]
    assert caught.value.__notes__ == ["  small.dsk:9: x = table(tokens)"]


def test_a_loss_holds_some_logits_and_the_gradients_of_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = loaded(compiled(LIFTED["twice"], tmp_path))
    ledger = trainer.LEDGER  # type: ignore[attr-defined]
    (loss,) = ledger.losses
    assert (loss.logits, loss.input, loss.weight, loss.terms) == (8 * V, 8 * D, V * D, 2)
    bf16, mixed = Precision("bf16", "bf16", "fp32", "bf16"), Precision("fp32", "bf16", "fp32", "bf16")

    def held_bytes(precision: Precision, reference: bool = False) -> int:
        counted = ledger.without_kernels() if reference else ledger
        (row,) = (r for r in ledger_rows(counted, precision, 3, 0, True) if r.name == "logits and loss")
        return row.bytes

    gradients_of_both = 2 * (3 * 8 * D + V * D) * 2
    assert held_bytes(bf16) == 3 * 8 * V * 2 + gradients_of_both
    few_logits(monkeypatch, 100)
    assert held_bytes(bf16) == 100 + gradients_of_both
    assert held_bytes(mixed) == V * D * 2 + gradients_of_both, "one gradient becomes fp32 beside them"
    assert held_bytes(bf16, reference=True) == 3 * 8 * V * 16


def test_no_more_logits_at_a_time_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With logits in parts the trainer's loss and gradients stay the same."""
    case, given = LIFTED["all"], batch()
    model, trainer = loaded(compiled(case, tmp_path))
    with use_kernels("reference"):
        wanted = gradients(model, held(model, case, given))
    few_logits(monkeypatch, 4 * 48 * 8)
    with use_kernels("triton"):
        grads = gradients(model, trainer.objective(model, given)["loss"])  # type: ignore[attr-defined]
    for key in wanted:
        torch.testing.assert_close(grads[key], wanted[key], rtol=1e-6, atol=1e-8, msg=key)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what torch allocates on the CPU")
@pytest.mark.parametrize("most", [1 << 17, 1 << 30])
def test_the_ledger_against_allocations_of_the_loss(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts and at once; what there is before the loss is not counted."""
    few_logits(monkeypatch, most)
    rows, vocabulary = 128, 1008
    x = torch.randn(2, rows // 2, D, requires_grad=True)
    weight = torch.randn(vocabulary, D, requires_grad=True)
    targets = torch.randint(0, vocabulary, (2, rows // 2))
    fp32 = Precision("fp32", "fp32", "fp32", "fp32")
    loss = LinearLoss(rows // 2 * vocabulary, rows // 2 * D, vocabulary * D)
    ledger = Ledger(1, logits=loss.logits, loss_kernel=True, losses=(loss,))
    (row,) = (r for r in ledger_rows(ledger, fp32, 2, 0, True) if r.name == "logits and loss")
    with use_kernels("triton"):
        next_token_linear(x, weight, targets).backward()  # ways are chosen
        x.grad = weight.grad = None
        with torch.profiler.profile(profile_memory=True) as profile:
            next_token_linear(x, weight, targets).backward()
    assert 0.9 * row.bytes < peak_of(profile) < 1.05 * row.bytes + 20_000


def test_recipes_of_one_model_agree_on_what_it_gives(tmp_path: Path) -> None:
    """What another recipe regresses on is held by both."""
    alone = (compiled(LIFTED["plain"], tmp_path) / "model.py").read_text(encoding="utf-8")
    spec = tmp_path / "small.dsk"
    text = spec.read_text(encoding="utf-8")
    other = text[text.index("train tiny") :].replace("tiny", "other")

    def recompiled(objective: str) -> dict[str, str]:
        spec.write_text(text + other.replace("next_token(logits)", objective), encoding="utf-8")
        made, (output,) = compile_spec(spec)
        assert not made.problems.has_errors
        return output.files

    both = recompiled("2 * next_token(logits, z: 0.1)")
    assert "z=0.1" in both["train_other.py"] and "LinearLoss(" in both["train_other.py"]
    assert both["model.py"].split('"""', 1)[1] == alone.split('"""', 1)[1], "but for the header"
    held_by_both = recompiled("regress(logits)")
    assert "def hidden" not in held_by_both["model.py"]
    assert not any("LinearLoss" in held_by_both[file] for file in ("train.py", "train_other.py"))
