"""Exported models and operations, compiled by IREE for the CPU, against PyTorch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dskc.runtime import reference
from dskc.runtime.export import CpuModule, compile_cpu, load_cpu, prefill, to_aten, to_mlir
from dskc.runtime.problem import Problem
from dskc.runtime.reference import attention, blocks, causal, dispatch, documents, index_keys, window
from dskc.runtime.train.load import load_package

pytest.importorskip("iree.compiler", reason="iree-base-compiler is not installed")
pytest.importorskip("iree.runtime", reason="iree-base-runtime is not installed")

GENERATED = Path(__file__).parents[2] / "generated"
TOLERANCE = 5e-6  # relative, by norm, in float32
SHAPES = ((2, 24), (1, 41), (3, 2))  # batch, length; one program takes them all


def error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of what is expected."""
    assert found.shape == expected.shape and found.dtype == expected.dtype, f"{found.dtype} {list(found.shape)}"
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def tensors(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


# --- models


class Both:
    """A generated model with weights that all matter, and what IREE made of it."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = load_package(GENERATED / name).Model().eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05 + (1.0 if parameter.ndim == 1 else 0.0))
        self.vocabulary = self.model.embed.num_embeddings
        self.compiled: CpuModule = load_cpu(compile_cpu(to_mlir(prefill(self.model))))

    def tokens(self, batch: int, length: int) -> Tensor:
        return torch.randint(0, self.vocabulary, (batch, length))


@pytest.fixture(scope="module", params=["deepseek_nano", "moe_nano"])
def both(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_model(both: Both, shape: tuple[int, int]) -> None:
    tokens_BS = both.tokens(*shape)
    for found, expected in zip(both.compiled(tokens_BS), tensors(both.model(tokens_BS)), strict=True):
        assert error(found, expected) < TOLERANCE


@contextmanager
def changed(parameter: Tensor, index: int) -> Iterator[None]:
    """One element of it is not what it was."""
    before = parameter.clone()
    parameter.view(-1)[index] += 0.1
    yield
    parameter.copy_(before)


def test_one_weight_changed_anywhere_is_seen(both: Both) -> None:
    tokens_BS = both.tokens(4, 24)
    found = both.compiled(tokens_BS)[0]
    assert error(found, tensors(both.model(tokens_BS))[0]) < TOLERANCE
    for name, parameter in both.model.named_parameters():
        used = int(tokens_BS[0, 0]) * parameter.shape[-1] if name == "embed.weight" else 0
        with changed(parameter, used + 1):
            assert error(found, tensors(both.model(tokens_BS))[0]) > 20 * TOLERANCE, name


def test_what_iree_cannot_compile_is_named() -> None:
    text = b"func.func @main(%x: !torch.vtensor<[2],f32>) -> !torch.vtensor<[2],f32> {\n"
    text += b'  %y = torch.operator "torch.aten.no_such"(%x) : (!torch.vtensor<[2],f32>) -> !torch.vtensor<[2],f32>\n'
    text += b"  return %y : !torch.vtensor<[2],f32>\n}\n"
    with pytest.raises(Problem, match=r"(?s)^IREE cannot compile this program:\n.*torch\.aten\.no_such"):
        compile_cpu(text)


# --- operations: each by its name, and what sets one case of it apart from another


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(repr(shape).encode())))


B, S, H, E, X, K, D, F, V = 2, 6, 4, 8, 4, 2, 8, 5, 16
ELEMENTWISE = _normal(3, 7) * 3
TOKENS = torch.arange(B * S).view(B, S) % V
Q, KEYS, VALUES = _normal(B, S, H, E), _normal(B, S, 2, E), _normal(B, S, 2, E) + 1
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
SCORE = torch.softmax(_normal(B, S, X), dim=-1)
CHOSEN = SCORE.topk(K, dim=-1).indices
OFFSETS = torch.tensor([3, 3, 8, 12], dtype=torch.int32)
ROWS, WEIGHT, BIAS = _normal(12, D), _normal(X, F, D), _normal(X, F)
TIES = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
SELECTED = torch.stack([torch.arange(S), torch.arange(S) // 2, torch.full((S,), -1)], dim=-1).expand(B, -1, -1)
FAR = torch.tensor([0, 1, 5, 4096, 100_000, 131_071])


def _table(
    scaling: reference.LinearScaling | reference.Llama3Scaling | reference.YarnScaling | None = None,
) -> Callable:
    return lambda position: reference.rope_table(position, 32, 10_000.0, scaling)


def _experts(x_BSD: Tensor, chosen_BSK: Tensor, weight_BSK: Tensor, weight_XFD: Tensor) -> Tensor:
    rows = dispatch(x_BSD, chosen_BSK, X)
    return reference.combine(reference.grouped_linear(rows.x_RD, weight_XFD, rows.offsets_X), rows, weight_BSK)


def _gated_delta(
    q_BSHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor, gate_BSH: Tensor, beta_BSH: Tensor, ids_BS: Tensor | None = None
) -> Tensor:
    k_BSHE = reference.l2_norm(k_BSHE)
    return reference.gated_delta(q_BSHE, k_BSHE, v_BSHE, -gate_BSH.square(), beta_BSH, ids_BS, chunk=4)


OPERATIONS: dict[str, tuple[Callable, *tuple[Tensor, ...]]] = {
    **{
        name: (getattr(reference, name), ELEMENTWISE)
        for name in ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "relu", "exp", "softmax", "softplus")
    },
    "log": (reference.log, ELEMENTWISE.abs() + 0.1),
    "sqrt": (reference.sqrt, ELEMENTWISE.abs()),
    "clamp": (lambda x: reference.clamp(x, -1.0, None), ELEMENTWISE),
    "quantize": (lambda x: reference.quantize(x, "int8"), ELEMENTWISE),
    "softcap": (lambda x: reference.softcap(x, 3.0), ELEMENTWISE),
    "dropout": (lambda x: reference.dropout(x, 0.1, training=False) + 1, ELEMENTWISE),
    "noise": (lambda x: reference.noise(x, training=False) + 1, ELEMENTWISE),
    "split": (lambda x: tuple(part + 1 for part in reference.split(x, (3, 4))), ELEMENTWISE),
    "concat": (reference.concat, ELEMENTWISE, _normal(3, 2)),
    "conv": (reference.conv, _normal(B, S, D), _normal(D, 1, 3), _normal(D)),
    "conv, of documents": (
        lambda x, weight, ids: reference.conv(x, weight, None, ids),
        _normal(B, S, D),
        _normal(D, 1, 3),
        DOCUMENTS,
    ),
    "gated_delta": (_gated_delta, Q, Q, VALUES.repeat(1, 1, 2, 1), _normal(B, S, H), SCORE),
    "gated_delta, of documents": (_gated_delta, Q, Q, VALUES.repeat(1, 1, 2, 1), _normal(B, S, H), SCORE, DOCUMENTS),
    "gather": (reference.gather, SCORE, CHOSEN),
    "shift": (lambda tokens: (reference.shift(tokens, 1), reference.shift(tokens, -2, fill=7)), TOKENS),
    "attention": (lambda q, k, v: attention(q, k, v, scale=0.3), Q, KEYS, VALUES),
    "attention, softcap": (lambda q, k, v: attention(q, k, v, causal, softcap=1.5), Q, KEYS, VALUES),
    "attention, sinks": (lambda q, k, v, s: attention(q, k, v, causal, sinks=s), Q, KEYS, VALUES, _normal(H)),
    "attention, select": (lambda q, k, v, s: attention(q, k, v, causal, select=s), Q, KEYS, VALUES, SELECTED),
    "everything": (lambda q, k, v: attention(q, k, v, reference.everything), Q, KEYS, VALUES),
    "causal": (lambda q, k, v: attention(q, k, v, causal), Q, KEYS, VALUES),
    "causal, one query": (lambda q, k, v: attention(q, k, v, causal), Q[:, -1:], KEYS, VALUES),
    "causal, the last queries": (lambda q, k, v: attention(q, k, v, causal), Q[:, -2:], KEYS, VALUES),
    "blocks": (lambda q, k, v: attention(q, k, v, causal & blocks(1, 1, 1, 2)), Q, KEYS, VALUES),
    "window": (lambda q, k, v: attention(q, k, v, causal & window(3)), Q, KEYS, VALUES),
    "window, either": (lambda q, k, v: attention(q, k, v, window(2) | causal), Q, KEYS, VALUES),
    "documents": (lambda q, k, v, ids: attention(q, k, v, causal & documents(ids)), Q, KEYS, VALUES, DOCUMENTS),
    "index_keys": (lambda q, k, w: index_keys(q, k, w, 3, causal), Q, _normal(B, S, E), _normal(B, S, H)),
    "index_keys, more than there are": (lambda q, k, w: index_keys(q, k, w, 9), Q, _normal(B, S, E), _normal(B, S, H)),
    "dispatch": (lambda x, chosen: tuple(dispatch(x, chosen, X)), _normal(B, S, D), CHOSEN),
    "combine": (_experts, _normal(B, S, D), CHOSEN, SCORE[..., :K].contiguous(), WEIGHT),
    "grouped_linear": (reference.grouped_linear, ROWS, WEIGHT, OFFSETS),
    "grouped_linear, with biases": (reference.grouped_linear, ROWS, WEIGHT, OFFSETS, BIAS),
    "linear": (reference.linear, _normal(B, S, D), _normal(F, D), _normal(F)),
    "map_heads": (reference.map_heads, Q, _normal(H, F, E)),
    "embed": (reference.embed, TOKENS, _normal(V, D)),
    "unembed": (reference.unembed, _normal(B, S, D), _normal(V, D)),
    "next_token": (reference.next_token, _normal(B, S, V), TOKENS),
    "token_losses": (lambda x, t: reference.token_losses(x, t, 1e-2, 0.1), _normal(B, S, V), TOKENS),
    "l2_norm": (reference.l2_norm, ELEMENTWISE),
    "layer_norm": (reference.layer_norm, _normal(B, S, D), _normal(D), _normal(D)),
    "rms_norm": (lambda x, weight: reference.rms_norm(x, weight, offset=1.0), _normal(B, S, D), _normal(D)),
    "rope": (reference.rope, Q, _normal(S, E // 2), _normal(S, E // 2)),
    "rope, of a part": (reference.rope, Q, _normal(S, 2), _normal(S, 2)),
    "rope, interleaved": (lambda x, c, s: reference.rope(x, c, s, "interleaved"), Q, _normal(S, 4), _normal(S, 4)),
    "rope_table": (_table(), FAR),
    "LinearScaling": (_table(reference.LinearScaling(factor=4.0)), FAR),
    "Llama3Scaling": (_table(reference.Llama3Scaling()), FAR),
    "YarnScaling": (_table(reference.YarnScaling(factor=4.0, original=4096)), FAR),
    "top_k": (lambda score: reference.top_k(score, 4), TIES),
    "top_k, of groups": (
        lambda score: reference.top_k(score, 3, groups=3, keep=2, group_by="best_two"),
        torch.tensor([[-0.1, -0.9, -0.3, -0.3, -0.5, -0.2], [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]]),
    ),
    "within_capacity": (lambda chosen: reference.within_capacity(chosen, X, 0.6), CHOSEN),
    "z_loss": (reference.z_loss, ELEMENTWISE),
    "normalize": (reference.normalize, SCORE),
    "load_balance": (reference.load_balance, SCORE, CHOSEN),
    "sequence_balance": (reference.sequence_balance, SCORE, CHOSEN),
}


class Apply(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*arguments)


@pytest.mark.parametrize("case", OPERATIONS)
def test_an_operation(case: str) -> None:
    function, *arguments = OPERATIONS[case]
    compiled = load_cpu(compile_cpu(to_mlir(to_aten(Apply(function), tuple(arguments)))))
    for found, expected in zip(compiled(*arguments), tensors(function(*arguments)), strict=True):
        if expected.is_floating_point():
            assert error(found, expected) < 1e-6
        else:
            assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_every_operation_is_here() -> None:
    assert {case.partition(",")[0] for case in OPERATIONS} == set(reference.__all__) - {"Mask", "Rows"}
