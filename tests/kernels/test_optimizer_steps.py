"""Steps over all tensors at once against torch's and lion_pytorch's, stochastic rounding, and norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lion_pytorch import Lion as TheirLion
from torch import Tensor

from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.optimizer import steps as optimizer_steps
from dskc.runtime.kernels.optimizer import tensor_table
from dskc.runtime.kernels.optimizer.steps import adamw_step, clip_factor, gradient_norm, lion_step
from dskc.runtime.kernels.tuning import forget, tuning

QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "phases": (Phase.generate,)}
PIECE = tensor_table.PIECE
device = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    forget()
    with use_kernels("triton"):
        yield


def normal(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def zeros(like: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.zeros_like(t, dtype=dtype) for t in like]


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 in another dtype: Triton's interpreter cuts to bf16 where a GPU rounds."""
    if dtype == torch.bfloat16 and device == "cpu":
        value = (value.view(torch.int32) & -65536).view(torch.float32)
    return value.to(dtype)


SHAPES = st.lists(st.sampled_from([(1,), (7,), (16,), (3, 5), (0, 4), (48, 32), ()]), min_size=1, max_size=5)
Optimizer = Callable[[list[Tensor], float], torch.optim.Optimizer]


def stepped(
    shapes: list[tuple[int, ...]], decays: list[float], theirs: type[torch.optim.Optimizer], betas: tuple[float, float]
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters after five steps: ours, theirs."""
    ours = normal(shapes, 0)
    other = [p.clone().requires_grad_() for p in ours]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(other, decays, strict=True)]
    options = {} if theirs is TheirLion else {"eps": 1e-2}
    optimizer = theirs(groups, lr=1e-2, betas=betas, **options)  # type: ignore[call-arg]
    means, squares = zeros(ours), zeros(ours)
    for step in range(1, 6):
        grads = normal(shapes, step)
        for p, grad in zip(other, grads, strict=True):
            p.grad = 0.5 * grad
        optimizer.step()
        factor = torch.full((), 0.5, device=device)
        if theirs is TheirLion:
            lion_step(ours, grads, means, step=step, lr=1e-2, betas=betas, decay=decays, factor=factor)
        else:
            adamw_step(ours, grads, means, squares, step=step, lr=1e-2, betas=betas, decay=decays, factor=factor,
                       **options)  # type: ignore[arg-type] # fmt: skip
    return ours, [p.detach() for p in other]


@settings(max_examples=10, **QUIET)
@given(shapes=SHAPES, decay=st.sampled_from([0.0, 0.1]), theirs=st.sampled_from([torch.optim.AdamW, TheirLion]))
def test_as_others_do_it(shapes: list[tuple[int, ...]], decay: float, theirs: type[torch.optim.Optimizer]) -> None:
    decays = [decay if len(shape) > 1 else 0.0 for shape in shapes]
    for a, b in zip(*stepped(shapes, decays, theirs, (0.9, 0.98)), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("theirs", [torch.optim.AdamW, TheirLion])
def test_tensors_of_several_pieces(theirs: type[torch.optim.Optimizer]) -> None:
    for a, b in zip(*stepped([(PIECE + 5,), (3,), (2, PIECE)], [0.1, 0.0, 0.2], theirs, (0.9, 0.95)), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_parameters_are_what_the_update_in_fp32_rounds_to(name: str, dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = [(5, 16), (33,)]
    narrow, grads = normal(shapes, 0, dtype), normal(shapes, 1, torch.bfloat16)
    wide = [p.float() for p in narrow]
    states = [[zeros(narrow, d), zeros(narrow, d)] for d in (dtype, torch.float32)]
    for parameters, (means, squares) in zip((narrow, wide), states, strict=True):
        if name == "adamw":
            adamw_step(parameters, grads, means, squares, step=1, lr=0.1, decay=0.1)
        else:
            lion_step(parameters, grads, means, step=1, lr=0.1, decay=0.1)
    for a, b in zip([*narrow, *states[0][0], *states[0][1]], [*wide, *states[1][0], *states[1][1]], strict=True):
        assert a.dtype == dtype and torch.equal(a, narrowed(b, dtype))


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_masters_are_what_is_updated(name: str) -> None:
    shapes: list[tuple[int, ...]] = [(5, 16), (33,)]
    masters = normal(shapes, 0)
    wide, narrow = [p.clone() for p in masters], [p.bfloat16() for p in masters]
    states = [[zeros(masters), zeros(masters)] for _ in range(2)]
    for step in (1, 2, 3):
        grads = normal(shapes, step, torch.bfloat16)
        for parameters, (means, squares), own in zip((narrow, wide), states, (masters, None), strict=True):
            options = {"step": step, "lr": 1e-3, "masters": own, "rounding": "stochastic"}
            if name == "adamw":
                adamw_step(parameters, grads, means, squares, **options)  # type: ignore[arg-type]
            else:
                lion_step(parameters, grads, means, **options)  # type: ignore[arg-type]
    assert all(map(torch.equal, masters, wide))
    assert all(torch.equal(p, narrowed(m, p.dtype)) for p, m in zip(narrow, masters, strict=True))


# --- stochastic rounding


def added(by: float, seed: int, step: int = 1, start: float = 1.0, count: int = 20000) -> Tensor:
    """`start` plus `by` in bf16, rounded stochastically at many places."""
    parameter = torch.full((count,), start, device=device, dtype=torch.bfloat16)
    grads = [torch.full((count,), -1.0, device=device)]
    lion_step([parameter], grads, zeros(grads), step=step, lr=by, rounding="stochastic", seed=seed)
    return parameter.float()


@pytest.mark.parametrize("start", [1.0, -1.0, 3e-5, 1e30])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.93])
def test_the_mean_is_what_was_rounded(start: float, part: float) -> None:
    value = torch.tensor(start).bfloat16()
    low, high = float(value), float((value.view(torch.int16) + 1).view(torch.bfloat16))  # its neighbour, outwards
    found = (added(part * (high - low), 7, start=low) - low) / (high - low)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert abs(float(found.mean()) - part) <= 5 * math.sqrt(part * (1 - part) / len(found)) + 1e-3


def test_draws_are_the_seeds_and_the_steps() -> None:
    first = added(1 / 256, 1)
    assert torch.equal(first, added(1 / 256, 1))
    for other in (added(1 / 256, 2), added(1 / 256, 1, step=2)):
        agree = float((first == other).float().mean())
        assert 0.45 < agree < 0.55  # half of the time by chance


def test_places_and_tensors_draw_apart() -> None:
    parameters = [torch.ones(2 * PIECE, device=device, dtype=torch.bfloat16) for _ in range(2)]
    grads = [-torch.ones(2 * PIECE, device=device) for _ in range(2)]
    lion_step(parameters, grads, zeros(grads), step=1, lr=1 / 256, rounding="stochastic")
    pieces = torch.cat(parameters).view(4, PIECE) == 1.0
    for i in range(4):
        for lag in (1, 2, 32, 1024):
            assert abs(float((pieces[i] == pieces[i].roll(lag)).float().mean()) - 0.5) < 0.02
        for j in range(i):
            assert abs(float((pieces[i] == pieces[j]).float().mean()) - 0.5) < 0.02


def test_what_is_not_finite_stays_so() -> None:
    parameter = torch.tensor([float("inf"), float("-inf"), float("nan"), 1.0], device=device, dtype=torch.bfloat16)
    grads = [torch.zeros(4, device=device)]
    lion_step([parameter], grads, zeros(grads), step=1, lr=0.1, rounding="stochastic")
    assert torch.equal(parameter.isnan().cpu(), torch.tensor([False, False, True, False]))
    assert torch.equal(parameter.isinf().cpu(), torch.tensor([True, True, False, False]))


def test_moments_in_bf16_do_not_stand_still() -> None:
    count = 20000
    parameter, grads = torch.ones(count, device=device), [torch.ones(count, device=device)]
    squares = {r: [torch.full((count,), 0.5, device=device, dtype=torch.bfloat16)] for r in ("nearest", "stochastic")}
    for rounding, square in squares.items():
        for step in (1, 2, 3):
            adamw_step([parameter], grads, zeros(grads), square, step=step, lr=0.0, betas=(0.9, 0.9995),
                       rounding=rounding)  # type: ignore[arg-type] # fmt: skip
    assert (squares["nearest"][0] == 0.5).all()
    wanted = 1 - 0.5 * 0.9995**3
    assert abs(float(squares["stochastic"][0].double().mean()) - wanted) < 1e-4


# --- norms


@settings(max_examples=15, **QUIET)
@given(
    shapes=SHAPES, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    size=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e12, 1e30]), mixed=st.booleans(),
)  # fmt: skip
def test_the_norm_of_all(shapes: list[tuple[int, ...]], dtype: torch.dtype, size: float, mixed: bool) -> None:
    size = 1.0 if dtype == torch.float16 else size
    grads = [t.mul(size).to(dtype if i % 2 or not mixed else torch.float32) for i, t in enumerate(normal(shapes, 3))]
    wanted = torch.cat([g.double().flatten() for g in grads]).norm()
    found = gradient_norm(grads)
    assert found.dtype == torch.float32 and found.shape == ()
    assert abs(float(found) - float(wanted)) <= 1e-6 * float(wanted)
    assert torch.equal(found, gradient_norm(grads))


def test_the_norm_of_several_pieces_and_of_magnitudes_far_apart() -> None:
    grads = [torch.full((PIECE + 9,), 1e-25, device=device), torch.full((3 * PIECE,), 1e-3, device=device)]
    assert float(gradient_norm(grads)) == pytest.approx(1e-3 * math.sqrt(3 * PIECE), rel=1e-6)
    grads.append(torch.full((2,), 1e38, device=device))
    assert float(gradient_norm(grads)) == pytest.approx(math.sqrt(2) * 1e38, rel=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_a_number_is_seen(value: float) -> None:
    grads = normal([(5,), (40,)], 0)
    grads[1][3] = value
    found = float(gradient_norm(grads))
    assert math.isnan(found) if math.isnan(value) else found == math.inf


def test_clipping() -> None:
    grads = normal([(40,), (3, 5)], 0)
    norm = gradient_norm(grads)
    for most in (0.5 * float(norm), 2 * float(norm)):
        factor = clip_factor(norm, most)
        clipped = gradient_norm([g * factor for g in grads])
        assert float(clipped) == pytest.approx(min(most, float(norm)), rel=1e-5)
    assert float(gradient_norm([])) == 0.0
    assert float(gradient_norm([torch.zeros(0, device=device)])) == 0.0
    assert float(clip_factor(gradient_norm([torch.zeros(3, device=device)]), 1.0)) == 1.0


# --- calls


def test_the_table_is_sent_again_only_when_addresses_change() -> None:
    parameters, grads = normal([(5,), (16,)], 0), normal([(5,), (16,)], 1)
    means = zeros(parameters)
    tensor_table._tables.clear()
    for step in (1, 2):
        lion_step(parameters, grads, means, step=step, lr=0.1)
    assert len(tensor_table._tables) == 1
    before, other = [p.clone() for p in parameters], normal([(5,), (16,)], 2)
    lion_step(parameters, other, means, step=3, lr=0.1)
    assert len(tensor_table._tables) == 2
    assert not any(map(torch.equal, parameters, before))


def test_gradients_may_lie_anyhow() -> None:
    parameters = [normal([(6, 4)], 0)[0], normal([(3,)], 1)[0]]
    same = [p.clone() for p in parameters]
    grads = [normal([(4, 6)], 2)[0].T, torch.ones((), device=device).expand(3)]
    lion_step(parameters, grads, zeros(parameters), step=1, lr=0.1)
    lion_step(same, [g.contiguous() for g in grads], zeros(same), step=1, lr=0.1)
    assert all(map(torch.equal, parameters, same))
    assert torch.equal(gradient_norm(grads), gradient_norm([g.contiguous() for g in grads]))


def test_a_tensor_at_an_odd_address() -> None:
    parameter, grad = torch.ones(34, device=device)[1:33], torch.ones(33, device=device)[1:]
    adamw_step([parameter], [grad], zeros([grad]), zeros([grad]), step=1, lr=0.1)
    assert torch.allclose(parameter, torch.full((32,), 0.9, device=device))


def test_timing_steps_does_not_step() -> None:
    parameters, grads = normal([(5,), (16,)], 0), normal([(5,), (16,)], 1)
    same, seen = [p.clone() for p in parameters], []
    with tuning(seen.append):
        adamw_step(parameters, grads, zeros(grads), zeros(grads), step=1, lr=0.1)
    adamw_step(same, grads, zeros(grads), zeros(grads), step=1, lr=0.1)
    assert len(seen) >= len(optimizer_steps.TILES) and all(map(torch.equal, parameters, same))


def test_what_cannot_be_taken_is_said() -> None:
    p, g = normal([(4, 6)], 0), normal([(4, 6)], 1)
    m = zeros(p)
    for parameters, grads, means, what in (
        (p, [], m, "there are 0 gradients for 1"),
        (p, [g[0].T], m, r"gradients 0 is \[6, 4\]"),
        ([p[0].T], [g[0].T], [m[0].T], "parameters 0 is not contiguous"),
        (p, [g[0].double()], m, "float64, and kernels take"),
    ):
        with pytest.raises(KernelError, match=what):
            lion_step(parameters, grads, means, step=1, lr=0.1)
    with pytest.raises(KernelError, match="3 decays for 1"):
        lion_step(p, g, m, step=1, lr=0.1, decay=[0.1, 0.2, 0.3])
    with pytest.raises(KernelError, match="neither 'nearest'"):
        lion_step(p, g, m, step=1, lr=0.1, rounding="up")  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="not one number"):
        lion_step(p, g, m, step=1, lr=0.1, factor=torch.ones(2, device=device))
    with pytest.raises(KernelError, match="masters 0 is"):
        lion_step(p, g, m, step=1, lr=0.1, masters=[p[0].bfloat16()])
    with use_kernels("reference"), pytest.raises(KernelError, match="needs a GPU"):
        gradient_norm(g)


@pytest.mark.gpu
@gpu
def test_large_tensors_against_torch() -> None:
    shapes: list[tuple[int, ...]] = [(4096, 4096), (4096,), (11008, 4096), (50257, 513)]
    ours = normal(shapes, 0, torch.bfloat16)
    other = [p.clone().requires_grad_() for p in ours]
    optimizer = torch.optim.AdamW(other, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    means, squares = zeros(ours, torch.bfloat16), zeros(ours, torch.bfloat16)
    for step in (1, 2, 3):
        grads = normal(shapes, step, torch.bfloat16)
        for p, grad in zip(other, grads, strict=True):
            p.grad = grad
        optimizer.step()
        adamw_step(ours, grads, means, squares, step=step, lr=1e-2, decay=0.1)
        wanted = torch.nn.utils.get_total_norm([g.float() for g in grads])
        assert float(gradient_norm(grads)) == pytest.approx(float(wanted), rel=1e-5)
    for a, b in zip(ours, other, strict=True):
        assert (a.float() - b.float()).norm() <= 3e-3 * b.float().norm()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_gpu_than_the_current_one() -> None:
    found = []
    for where in ("cuda:0", "cuda:1"):
        parameters, grads, means = ([t.to(where) for t in normal([(40, 30), (7,)], seed)] for seed in (0, 1, 2))
        squares = zeros(parameters)
        adamw_step(parameters, grads, means, squares, step=1, lr=0.1)
        found.append([*(p.cpu() for p in parameters), gradient_norm(grads).cpu()])
    assert all(map(torch.equal, *found))


@pytest.mark.gpu
@gpu
def test_steps_are_not_captured() -> None:
    grads = normal([(16,)], 0)
    gradient_norm(grads)
    with pytest.raises(KernelError, match="cannot be captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        gradient_norm(grads)


@pytest.mark.gpu
@gpu
def test_streams_have_tables_of_their_own() -> None:
    parameters, grads = normal([(4096, 64)] * 3, 0), normal([(4096, 64)] * 3, 1)
    wanted = float(gradient_norm(grads))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        found = gradient_norm(grads)
        lion_step(parameters, grads, zeros(grads), step=1, lr=0.1)
    side.synchronize()
    assert float(found) == wanted
