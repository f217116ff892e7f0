"""The blocks of the adaptive architecture against their formulas, written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.compiler.passes.memory import memory
from dskc.compiler.passes.recipes import default_train
from dskc.runtime import reference
from dskc.runtime.spec_module import SpecModule

from .small_models import Small, compiled
from .test_properties import kept_bytes

pytestmark = pytest.mark.slow  # together half a minute

D, H, E, X = 12, 3, 4, 5
BODIES = {
    "embedding": "y = dynamic_embedding(x, embed(part_ids([S]), 1 -> D) as kind, inner: 5, context: 3) as it",
    "encoder": """y = moe_encoder(x, heads: H, width: E, kv_heads: 1, num_experts: X, inner: 6, top_k: 2, dropout: 0.5,
                         eps: 1e-3) as it""",
    "attention": """y = adaptive_attention(x, heads: H, width: E, kv_heads: 1, near: causal & window(3),
                                far: causal & blocks(size: 2, window: 1, global: 1, random: 0)) as it""",
    "selection": "y = expert_selection(x, count: X, inner: 6, top: 2, hidden: 7) as it",
    "crowded": "y = expert_selection(x, count: X, inner: 6, top: 2, hidden: 7, expert_capacity: 1) as it",
    "scores": "z = selection_scores(x, count: X, hidden: 7) as it",
    "flattened": "z = selection_scores(x, count: X, hidden: 7, softmax_twice: true) as it",
    "quiet": "z = selection_scores(x, count: X, hidden: 7, noisy: false) as it",
    "compression": "y = residual_compression(x) as it",
    "compressed": "y = residual_compression(x, compressed_only: true) as it",
    "heads": "z = classification_head(x, classes: 4)\n  y = regression_head(x, outputs: 2)",
}
RESULTS = {
    "scores": "z: [B, S, X]",
    "flattened": "z: [B, S, X]",
    "quiet": "z: [B, S, X]",
    "heads": "z: [B, 4], y: [B, 2]",
}


Library = Callable[[str], Small]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A model of one block, compiled when a test asks for it."""

    @cache
    def one(name: str) -> Small:
        text = f"""dsk 1

use std {{
  adaptive_attention, classification_head, dynamic_embedding, expert_selection, moe_encoder, regression_head,
  residual_compression, selection_scores,
}}

model small(x: [B, S, D]) -> {RESULTS.get(name, "y: [B, S, D]")} {{
  dims {{ D = {D}, H = {H}, E = {E}, X = {X} }}
  {BODIES[name]}
}}
"""
        return compiled(text, tmp_path_factory.mktemp(name))

    return one


def double(small: Small) -> SpecModule:
    return small.model(compute=torch.float64).double()


def drawn(length: int, seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


LENGTHS = st.integers(1, 9)
SEEDS = st.integers(0, 10_000)
few = settings(deadline=None, max_examples=20)


# --- the formulas


def linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def swiglu(p: dict[str, Tensor], name: str, x: Tensor, i: int) -> Tensor:
    gate, up, down = (p[f"{name}.{part}.weight"][i] for part in ("gate", "up", "down"))
    gated = x @ gate.T
    return (gated / (1 + (-gated).exp()) * (x @ up.T)) @ down.T


def rms(p: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * p[f"{name}.weight"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attended(p: dict[str, Tensor], name: str, x: Tensor, allowed: Tensor) -> Tensor:
    """[B, S, H, E] of heads that share one key."""
    q = linear(p, f"{name}.q", x).unflatten(-1, (H, E))
    k, v = linear(p, f"{name}.k", x), linear(p, f"{name}.v", x)
    scores = torch.einsum("bshe,bte->bhst", q, k) / math.sqrt(E)
    weights = scores.masked_fill(~allowed, -torch.inf).exp()
    return torch.einsum("bhst,bte->bshe", weights / weights.sum(-1, keepdim=True), v)


def mixed(p: dict[str, Tensor], name: str, x: Tensor, score: Tensor, most: int | None = None) -> Tensor:
    """The best two experts of each token, the lower first where they tie; no expert more than `most` choices."""
    taken = [0] * X
    rows = []
    for token, s in zip(x.flatten(0, 1), score.flatten(0, 1), strict=True):
        best = sorted(range(X), key=lambda i: (-float(s[i]), i))[:2]
        total = s[best].sum()
        row = torch.zeros(D, dtype=x.dtype)
        for i in best:
            if most is None or taken[i] < most:
                row = row + s[i] / total * swiglu(p, f"{name}.experts", token, i)
            taken[i] += 1
        rows.append(row)
    return torch.stack(rows).view(x.shape) if rows else x * 0


def scores(p: dict[str, Tensor], name: str, x: Tensor, noise: Tensor | None = None) -> Tensor:
    score = linear(p, f"{name}.score", gelu(linear(p, f"{name}.gate", x)))
    if noise is not None:
        score = score + noise * (1 + linear(p, f"{name}.spread", x).exp()).log()
    return score.softmax(-1)


def tolerance_of_float32(found: Tensor, expected: Tensor) -> None:
    """Scores run in float32 whatever activations run in (`compute: fp32`)."""
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


# --- dynamic embedding


@few
@given(length=LENGTHS, seed=SEEDS)
def test_dynamic_embedding(small: Library, length: int, seed: int) -> None:
    model, x = double(small("embedding")), drawn(length, seed)
    p = dict(model.state_dict())
    local = linear(p, "it.local", x)
    context = torch.stack([local[:, max(0, i - 2) : i + 1].mean(1) for i in range(length)], dim=1)
    gate = torch.sigmoid(linear(p, "it.mix", context))
    close(first(model(x)), gate * x + (1 - gate) * p["kind.weight"][0])


# --- the encoder block


@few
@given(length=LENGTHS, seed=SEEDS)
def test_the_encoder_block(small: Library, length: int, seed: int) -> None:
    model, x = double(small("encoder")), drawn(length, seed)
    p = dict(model.state_dict())
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    h = attended(p, "it.attention", rms(p, "it.attention_norm", x, 1e-3), causal).flatten(-2)
    y = x + linear(p, "it.attention.out", h)
    n = rms(p, "it.moe_norm", y, 1e-3)
    score = linear(p, "it.moe.router", n).softmax(-1)
    tolerance_of_float32(first(model(x)), y + mixed(p, "it.moe", n, score))


@pytest.mark.parametrize("silent", ["moe.experts.down", "attention.out"])
def test_either_path_has_dropout(small: Library, silent: str) -> None:
    """With the other path silent, each element of what this one adds is dropped, or doubled (p is a half)."""
    model, x = double(small("encoder")), drawn(9, 3)
    with torch.no_grad():
        model.get_parameter(f"it.{silent}.weight").zero_()
    added = (first(model(x)) - x).detach()
    torch.manual_seed(0)
    ratio = (first(model.train()(x)) - x).detach() / added
    dropped, kept = (ratio.abs() < 1e-6), (ratio - 2).abs() < 1e-3
    assert (dropped | kept).all()
    assert 0.3 < float(dropped.double().mean()) < 0.7


# --- adaptive attention


@few
@given(length=LENGTHS, seed=SEEDS)
def test_adaptive_attention(small: Library, length: int, seed: int) -> None:
    model, x = double(small("attention")), drawn(length, seed)
    p = dict(model.state_dict())
    i, j = torch.arange(length)[:, None], torch.arange(length)
    near = (j <= i) & (j > i - 3)
    far = (j <= i) & ((j // 2 == i // 2) | (j // 2 == 0) | (i // 2 == 0))
    choice = p["it.choice.weight"].softmax(-1)
    assert choice.shape == (H, 2)
    of_near, of_far = (attended(p, "it", x, allowed) for allowed in (near, far))
    o = choice[:, 0, None] * of_near + choice[:, 1, None] * of_far
    close(first(model(x)), linear(p, "it.out", o.flatten(-2)))


def test_heads_learn_their_choice(small: Library) -> None:
    model = double(small("attention"))
    first(model(drawn(9, 0))).square().sum().backward()
    assert (model.get_parameter("it.choice.weight").grad != 0).all()


# --- expert selection


@few
@given(length=LENGTHS, seed=SEEDS, tied=st.booleans(), crowd=st.booleans())
def test_expert_selection(small: Library, length: int, seed: int, tied: bool, crowd: bool) -> None:
    """tied: all experts score alike, so the first two are chosen; crowd: all tokens want the last one."""
    model, x = double(small("selection")), drawn(length, seed)
    with torch.no_grad():
        if tied:
            model.get_parameter("it.selection.score.weight").zero_()
            model.get_parameter("it.selection.score.bias").zero_()
        if crowd:
            model.get_parameter("it.selection.score.bias")[X - 1] = 50.0
    p = dict(model.state_dict())
    score = scores(p, "it.selection", x)
    if crowd:
        assert (score.argmax(-1) == X - 1).all()
    tolerance_of_float32(first(model(x)), mixed(p, "it", x, score))


@few
@given(length=st.integers(3, 9), seed=SEEDS)
def test_an_expert_takes_no_more_than_its_capacity(small: Library, length: int, seed: int) -> None:
    """All tokens want the last expert, whose share of 2 * length * 2 choices among five is what it takes."""
    model, x = double(small("crowded")).train(), drawn(length, seed)
    with torch.no_grad():
        model.get_parameter("it.selection.score.bias")[X - 1] = 50.0
        model.get_parameter("it.selection.spread.weight").mul_(0)  # all noise is log 2 wide
    torch.manual_seed(seed)
    found = first(model(x))
    torch.manual_seed(seed)
    noise = torch.randn(2, length, X, dtype=torch.float32)
    p = dict(model.state_dict())
    score = scores(p, "it.selection", x, noise.double())
    expected = mixed(p, "it", x, score, most=math.ceil(2 * length * 2 / X))
    tolerance_of_float32(found, expected)
    assert not torch.allclose(found.double(), mixed(p, "it", x, score)), "nothing was dropped"


@few
@given(length=LENGTHS, seed=SEEDS)
def test_the_scores_and_their_noise(small: Library, length: int, seed: int) -> None:
    x = drawn(length, seed)
    for name in ("scores", "quiet", "flattened"):
        model = double(small(name))
        p = dict(model.state_dict())
        once = scores(p, "it", x)
        tolerance_of_float32(first(model(x)), once.softmax(-1) if name == "flattened" else once)
    model = double(small("scores")).train()
    torch.manual_seed(seed)
    found = first(model(x))
    torch.manual_seed(seed)
    noise = torch.randn(2, length, X, dtype=torch.float32).double()
    tolerance_of_float32(found, scores(dict(model.state_dict()), "it", x, noise))


def test_no_expert_is_left_without_a_chance_by_softmax_of_softmax(small: Library) -> None:
    """The scores of one token are within a factor of e of one another, as the block says."""
    score = first(double(small("flattened"))(100 * drawn(9, 0))).detach()
    assert float((score.amax(-1) / score.amin(-1)).max()) < math.e + 1e-4


# --- residual compression


def compression(p: dict[str, Tensor], x: Tensor) -> Tensor:
    name = "it"
    restored = linear(p, f"{name}.up", gelu(linear(p, f"{name}.down", x)))
    z = x + restored
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return z * p[f"{name}.norm.weight"] + p[f"{name}.norm.bias"]


@few
@given(length=LENGTHS, seed=SEEDS)
def test_residual_compression(small: Library, length: int, seed: int) -> None:
    for name in ("compression", "compressed"):
        model, x = double(small(name)), drawn(length, seed)
        assert model.get_parameter("it.down.weight").shape == (math.floor(0.4 * D), D)
        close(first(model(x)), compression(dict(model.state_dict()), x))


@few
@given(length=LENGTHS, seed=SEEDS)
def test_backward_of_the_compressed_form_is_that_at_what_is_restored(small: Library, length: int, seed: int) -> None:
    model, x = double(small("compressed")), drawn(length, seed).requires_grad_()
    weight = drawn(length, seed + 1)
    (first(model(x)) * weight).sum().backward()

    p = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    h = linear(p, "it.down", x.detach())
    restored = linear(p, "it.up", gelu(h)).detach()
    # The value of h is exact; by what it is derived from, its gradient is that of a map of `restored`.
    at = restored.clone().requires_grad_()
    around = linear(p, "it.down", at)
    around = around + (h - around).detach()
    z = at + linear(p, "it.up", gelu(around))
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    y = z * p["it.norm.weight"] + p["it.norm.bias"]
    (y * weight).sum().backward()
    assert x.grad is not None and at.grad is not None
    close(x.grad, at.grad)
    for name, parameter in model.named_parameters():
        close(parameter.grad, p[name].grad)


def test_backward_is_exact_where_x_is_what_is_restored(small: Library) -> None:
    """x is 1 everywhere, and so is what `up` makes: then nothing is approximate."""
    model, x = double(small("compressed")), torch.ones(2, 3, D, dtype=torch.float64)
    with torch.no_grad():
        model.get_parameter("it.up.weight").zero_()
        model.get_parameter("it.up.bias").copy_(torch.linspace(-1, 1, D))
        x.copy_(model.get_parameter("it.up.bias").expand_as(x))
    x.requires_grad_()
    exact = double(small("compression"))
    exact.load_state_dict(model.state_dict())
    weight = drawn(3, 1)
    (first(model(x)) * weight).sum().backward()
    (grad,) = torch.autograd.grad((first(exact(x)) * weight).sum(), x)
    close(x.grad, grad)


def test_only_the_compressed_form_is_kept(small: Library) -> None:
    """Of the activations of a sequence: 4 * floor(0.4 D) bytes a position, as the ledger says."""
    x = drawn(8, 0, batch=1).float()
    kept = {name: kept_bytes(small(name).model(), (x,)) for name in ("compressed", "compression")}
    width = math.floor(0.4 * D)
    assert kept["compressed"] == 8 * width * 4
    assert kept["compression"] > 8 * 3 * D * 4
    for name in kept:
        recipe = replace(default_train(small(name).graph, 1), length=8)
        assert memory(small(name).graph, recipe).rest_unfused.compute * 4 <= kept[name]
    recipe = default_train(small("compressed").graph, 1)
    assert memory(small("compressed").graph, recipe).rest.compute == recipe.length * width


# --- task heads


@few
@given(length=LENGTHS, seed=SEEDS)
def test_heads(small: Library, length: int, seed: int) -> None:
    model, x = double(small("heads")), drawn(length, seed)
    p = dict(model.state_dict())
    for found, name, layer in zip(model(x), ("z", "y"), ("scores", "values"), strict=True):
        close(found, linear(p, f"{name}.{layer}", rms(p, f"{name}.norm", x, 1e-6).mean(1)))


def test_of_no_position_the_mean_is_zero(small: Library) -> None:
    model = double(small("heads"))
    for found, name in zip(model(drawn(0, 0)), ("z.scores", "y.values"), strict=True):
        close(found, model.get_parameter(f"{name}.bias").expand(2, -1))


# --- what losses of tasks are


@few
@given(rows=st.integers(1, 5), seed=SEEDS)
def test_classify_and_regress(rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scored = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (rows,), generator=generator)
    expected = torch.stack([s.exp().sum().log() - s[i] for s, i in zip(scored, labels, strict=True)]).mean()
    close(reference.classify(scored, labels), expected)
    wanted = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    close(reference.regress(scored, wanted), ((scored - wanted) ** 2).sum() / (4 * rows))
    with pytest.raises(ValueError, match="both have the result's shape"):
        reference.regress(scored, wanted[:, 0])
