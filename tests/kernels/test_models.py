"""Whole models: with kernels as without, each shipped spec at nano size; a user's block; dropout by counter."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from dskc.compiler.compile import compile_spec, write
from dskc.compiler.passes.memory import memory
from dskc.compiler.passes.recipes import default_train
from dskc.compiler.pipeline import lower
from dskc.runtime import reference
from dskc.runtime.kernels import RowKernel, tuning, use_kernels

from ..compiler.test_properties import kept_bytes
from .conftest import triton_interprets
from .drawn_programs import kernels

ROOT = Path(__file__).resolve().parents[2]
LATENT = ("V=97", "D=32", "F=40", "H=4", "Fx=24", "Rc=16", "En=8", "Er=4", "Ev=8")
NANO = {  # settings that make each shipped spec small enough to interpret
    "deepseek_67b": ("V=97", "D=64", "F=40", "H=8"),
    "deepseek_7b": ("V=96", "D=64", "F=40", "H=8"),  # over 8 ranks, as its plan has it
    "deepseek_adaptive": ("V=96", "D=32", "F=16", "H=8", "X=8", "A=4", "M=5", "C=3", "W=3"),
    "deepseek_adaptive_nano": ("V=97", "D=32", "F=12"),
    "deepseek_moe_16b": ("V=97", "D=32", "F=40", "H=4", "X=8", "Fx=24"),
    "deepseek_nano": ("V=97", "D=32", "F=40", "H=4"),
    "deepseek_v2": (*LATENT, "Rq=16", "X=24"),
    "deepseek_v2_lite": (*LATENT, "X=8"),
    "deepseek_v3": (*LATENT, "Rq=16", "X=32"),
    "deepseek_v32": (*LATENT, "Rq=16", "X=32"),
    "deepseek_v4_flash": (
        *("V=97", "D=32", "N=3", "H=4", "E=16", "Er=8", "Rq=24", "G=2", "Ro=12", "X=7", "F=40"),
        *("Mi=2", "Ki=2", "Mh=3", "Hi=4", "Ei=12"),
    ),
    "gated_delta_nano": ("V=97", "D=32", "F=40", "H=4", "G=2", "E=8"),
    "gemma2_2b": ("V=97", "D=32", "F=40", "H=4", "G=2", "E=8"),
    "gemma3_1b": ("V=97", "D=32", "F=40", "H=4", "E=8"),
    "gemma3_270m": ("V=97", "D=32", "F=40", "H=4", "E=8"),
    "gpt_oss_20b": ("V=97", "D=32", "F=40", "H=4", "G=2", "E=8", "X=6"),
    "kimi_k2": (*LATENT, "Rq=16", "X=12"),
    "llama2_7b": ("V=97", "D=32", "F=40", "H=4"),
    "llama31_8b": ("V=97", "D=32", "F=40", "H=4", "G=2"),
    "mistral_7b": ("V=97", "D=32", "F=40", "H=4", "G=2"),
    "mixtral_8x7b": ("V=97", "D=32", "F=40", "H=4", "G=2"),
    "moe_nano": ("V=97", "D=32", "F=40", "H=4", "E=8"),
    "qwen25_7b": ("V=97", "D=32", "F=40", "H=4", "G=2"),
    "qwen3_30b_a3b": ("V=97", "D=32", "F=40", "H=4", "G=2", "E=8", "X=12"),
    "qwen3_8b": ("V=97", "D=32", "F=40", "H=4", "G=2", "E=8"),
    "smollm2_135m": ("V=97", "D=36", "F=40", "H=6", "G=3"),
}


def test_every_shipped_spec_is_there() -> None:
    assert set(NANO) == {path.stem for path in (ROOT / "specs").glob("*.dsk")}


def load(folder: Path, name: str) -> ModuleType:
    """A generated package from a folder, its kernels interpreted where there is no GPU."""
    unique = f"{name}_{abs(hash(str(folder)))}"
    spec = importlib.util.spec_from_file_location(
        unique, folder / name / "__init__.py", submodule_search_locations=[str(folder / name)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    with triton_interprets():
        spec.loader.exec_module(module)
    return module


def compiled(path: Path, out: Path, settings: tuple[str, ...] = ()) -> dict[str, ModuleType]:
    result, outputs = compile_spec(path, out, settings)
    assert not result.problems.has_errors, [d.title for d in result.problems]
    for output in outputs:
        write(output)
    return {output.model: load(out, output.model) for output in outputs}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def losses(module: ModuleType, model: torch.nn.Module, tokens: Tensor, mode: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of random targets and the gradients of all parameters, in float64."""
    model.zero_grad()
    own = sys.modules[f"{module.__name__}.kernels"]  # where a trainer's loss applies no linear map itself
    cross_entropy = getattr(own, "cross_entropy", reference.token_losses)
    with use_kernels(mode):
        out = model(tokens)
        logits = out if isinstance(out, Tensor) else out[0]
        loss = cross_entropy(logits, tokens.roll(-1, 1)).double().mean()
        if not isinstance(out, Tensor):
            loss = loss + sum(0.1 * term.double().mean() for term in out[1:])
        loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def shorten_and_shake(model: torch.nn.Module) -> None:
    """Leaves the first two layers and one of each further kind, with weights that matter."""
    repeat = next(child for child in model.children() if isinstance(child, torch.nn.ModuleList))
    kinds = [type(layer) for layer in repeat]
    for i in reversed(range(2, len(repeat))):
        if kinds.index(kinds[i]) < i:
            del repeat[i]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", sorted(NANO))
def test_the_fused_model_equals_the_unfused(name: str, tmp_path: Path) -> None:
    settings = tuple(f"dims.{setting}" for setting in NANO[name])
    module = compiled(ROOT / "specs" / f"{name}.dsk", tmp_path, settings)[name]
    torch.manual_seed(0)
    model = module.Model(compute=torch.float64).double().to(device())
    if "adaptive" in name:
        model.eval()  # dropout and noise are other numbers in kernels; and what a batch has none of is empty
    shorten_and_shake(model)
    tokens = torch.randint(0, 96, (2, 7), device=device())
    (ours, grads), (theirs, expected) = (losses(module, model, tokens, mode) for mode in ("triton", "reference"))
    # A router computes in fp32 whatever the model is in.
    routed = any(getattr(module, "compute", None) is torch.float32 for module in model.modules())
    tolerance = 1e-5 if routed or "v4" in name or "adaptive" in name else 1e-10
    assert grads.keys() == expected.keys()
    assert (ours - theirs).abs() <= tolerance
    for key, gradient in grads.items():
        assert (gradient - expected[key]).norm() <= tolerance * (1 + expected[key].norm()), key


@pytest.mark.skipif(torch.cuda.is_available(), reason="attention's kernels take no float32 there")
@pytest.mark.parametrize("name", ["deepseek_v2_lite", "gemma2_2b", "gpt_oss_20b", "mixtral_8x7b"])
def test_attention_and_experts_too_in_float32(name: str, tmp_path: Path) -> None:
    """Which kernels do not take float64: of latents, soft-capped, with sinks and windows, of experts with biases."""
    settings = tuple(f"dims.{setting}" for setting in NANO[name])
    module = compiled(ROOT / "specs" / f"{name}.dsk", tmp_path, settings)[name]
    torch.manual_seed(0)
    model = module.Model(compute=torch.float32)
    shorten_and_shake(model)
    tokens = torch.randint(0, 96, (2, 21))
    with choices_made() as made:
        ours, grads = losses(module, model, tokens, "triton")
    assert "attention.forward" in made and "attention.backward" in made
    assert ("experts.down" in made) == (name != "gemma2_2b")
    theirs, expected = losses(module, model, tokens, "reference")
    assert grads.keys() == expected.keys() and (ours - theirs).abs() < 1e-5
    for key, gradient in grads.items():
        assert (gradient - expected[key]).norm() <= 2e-4 * (1e-3 + expected[key].norm()), key


@contextmanager
def choices_made() -> Iterator[set[str]]:
    """The operations that chose among ways within."""
    tuning.forget()
    made: set[str] = set()
    yield made
    made |= {operation for operation, _ in tuning.choices()}


@pytest.mark.parametrize("name", ["deepseek_nano", "moe_nano", "qwen3_8b"])
def test_the_ledger_knows_what_kernels_keep(name: str, tmp_path: Path) -> None:
    settings = tuple(f"dims.{setting}" for setting in NANO[name])
    result, _ = compile_spec(ROOT / "specs" / f"{name}.dsk", tmp_path, settings)
    module = compiled(ROOT / "specs" / f"{name}.dsk", tmp_path, settings)[name]
    graph, length = lower(result.graphs[name]), 16
    ledger = memory(graph, replace(default_train(graph, 1), length=length))
    model = module.Model().train()
    tokens = torch.randint(0, 96, (1, length))
    for mode in ("triton", "reference"):
        with use_kernels(mode):
            kept = kept_bytes(model, (tokens,))
        fused = mode == "triton"
        rest = ledger.rest if fused else ledger.rest_unfused
        counted = [*((r.count, r.saved if fused else r.unfused) for r in ledger.repeats), (1, rest)]
        predicted = sum(n * (4 * saved.compute + 4 * saved.fp32 + saved.bytes) for n, saved in counted)
        assert 0.9 < predicted / kept < 1.1, f"{mode}: the ledger has {predicted / kept:.3f} of what is kept"


USER = """dsk 1

use std { attention }

/// A gate of a user's own, of which the compiler has never heard.
block wavy(x: [.., D], gate: [.., D]) -> [.., D] {
  bent = clamp(gate, min: -3.0, max: 3.0) * sigmoid(1.7 * gate)
  return softcap(bent * (1.0 + x), cap: 4.0) + 0.5 * tanh(x)
}

model mine(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 61, D = 24, H = 3, E = D / H }
  x = embed(tokens, V -> D)
  repeat 2 layers {
    x += attention(rms_norm(x), heads: H, width: E)
    x += wavy(linear(rms_norm(x) as wavy_norm, D -> D) as one, linear(x, D -> D) as two)
  }
  logits = linear(layer_norm(x) as norm, D -> V)
}
"""


def test_a_users_block_is_fused_without_a_change_of_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "mine.dsk").write_text(USER)
    module = compiled(tmp_path / "mine.dsk", tmp_path / "generated")["mine"]
    source = (tmp_path / "generated" / "mine" / "model.py").read_text()
    body = source.split("class Layer")[1].split("class ")[0]
    # One kernel for the whole of it, called after the block, and the residual add with it.
    assert "return kernels.wavy_add(" in body, body
    assert not any(f"{name}(" in body for name in ("clamp", "sigmoid", "softcap", "tanh"))
    torch.manual_seed(0)
    model = module.Model(compute=torch.float64).double().to(device())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = torch.randint(0, 61, (2, 5), device=device())
    (ours, grads), (theirs, expected) = (losses(module, model, tokens, mode) for mode in ("triton", "reference"))
    assert (ours - theirs).abs() <= 1e-10
    assert all((grads[key] - expected[key]).norm() <= 1e-10 * (1 + expected[key].norm()) for key in expected)


DROPPED = """dsk 1

block dropped(x: [.., D], y: [.., D]) -> [.., D] {
  return x + dropout(gelu(y), p: 0.25)
}

model thin(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 11, D = 20 }
  x = embed(tokens, V -> D)
  x = dropped(linear(x, D -> D) as a, linear(x, D -> D) as b)
  logits = linear(x, D -> V)
}
"""


def philox(seed: int, place: np.ndarray) -> np.ndarray:
    """The first word of Philox-4x32-10 (Salmon et al., SC 2011) with counter (place, 0, 0, 0) and a 32-bit key."""
    c = [place.astype(np.uint64), *(np.zeros_like(place, dtype=np.uint64) for _ in range(3))]
    k0, k1, low = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32), np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ k0, b & low, (a >> np.uint64(32)) ^ c[3] ^ k1, a & low]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c[0].astype(np.uint32)


@pytest.fixture
def dropping(tmp_path: Path) -> RowKernel:
    (tmp_path / "thin.dsk").write_text(DROPPED)
    module = compiled(tmp_path / "thin.dsk", tmp_path / "generated")["thin"]
    return next(k for k in kernels(sys.modules[f"{module.__name__}.kernels"]) if k.probabilities)


def test_dropout_is_counted_and_the_same_in_backward(dropping: RowKernel) -> None:
    x, y = (torch.randn(3, 7, 20, dtype=torch.float64, device=device()).requires_grad_() for _ in range(2))
    with use_kernels("triton"):
        torch.manual_seed(5)
        made = dropping(y, x, training=True)  # in the order in which they are read
        torch.manual_seed(5)
        seed = int(torch.randint(1 << 31, (1,), device=device()))
        again: Callable[[], Tensor] = lambda: dropping(y, x, training=True)  # noqa: E731
        torch.manual_seed(5)
        assert torch.equal(made, again()) and not torch.equal(made, again())
        torch.testing.assert_close(dropping(y, x, training=False), dropping.reference(y, x, training=False))
    # Triton's `rand`: the word as a signed number, folded to [0, 1).
    word = philox(seed, np.arange(x.numel())).view(np.int32)
    uniform = np.where(word < 0, -word - 1, word) * 4.6566127342e-10
    kept = torch.from_numpy(uniform >= 0.25).view(x.shape).to(x)
    bent = torch.nn.functional.gelu(y)
    torch.testing.assert_close(made, x + bent * kept / 0.75)
    ours = torch.autograd.grad(made.sum(), (x, y))
    theirs = torch.autograd.grad((x + bent * kept / 0.75).sum(), (x, y))
    torch.testing.assert_close(ours, theirs)
    assert 0.6 < float(kept.mean()) < 0.9
