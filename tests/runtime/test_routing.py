"""Routers, the balance of experts and their capacity, against plain PyTorch written from the papers' formulas."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dskc.runtime.modules import BalanceBias, Capacity
from dskc.runtime.optim import Balance
from dskc.runtime.problem import Problem
from dskc.runtime.reference import combine, dispatch, gather, normalize, top_k, within_capacity, z_loss
from dskc.runtime.train.dropped import Dropped

# Few values, so that there are ties, some of them negative; halves are exact in every dtype.
VALUES = st.sampled_from([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


@st.composite
def routers(draw: st.DrawFn) -> tuple[Tensor, int, int, int, int]:
    """Scores [2, X] in float64, and k, groups, keep and how many of a group count."""
    groups, each = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    keep = draw(st.integers(1, groups))
    k = draw(st.integers(1, keep * each))
    best = draw(st.integers(1, min(2, each)))
    rows = draw(st.lists(st.lists(VALUES, min_size=groups * each, max_size=groups * each), min_size=2, max_size=2))
    return torch.tensor(rows, dtype=torch.float64), k, groups, keep, best


def chosen_by_the_formula(score: list[float], k: int, groups: int, keep: int, best: int, other: float) -> list[int]:
    """One row of choices; what is not in the groups that are kept counts as `other`."""
    each = len(score) // groups
    parts = [score[g * each : (g + 1) * each] for g in range(groups)]
    worth = [sum(sorted(part, reverse=True)[:best]) for part in parts]
    kept = sorted(range(groups), key=lambda g: (-worth[g], g))[:keep]
    masked = [value if i // each in kept else other for i, value in enumerate(score)]
    return sorted(range(len(score)), key=lambda i: (-masked[i], i))[:k]


@settings(max_examples=300, deadline=None)
@given(routers())
def test_choices_of_groups_by_the_formula(drawn: tuple[Tensor, int, int, int, int]) -> None:
    score, k, groups, keep, best = drawn
    found = top_k(score, k, groups=groups, keep=keep, group_by=("best", "best_two")[best - 1])
    expected = [chosen_by_the_formula(row, k, groups, keep, best, -torch.inf) for row in score.tolist()]
    assert found.tolist() == expected
    assert found.dtype == torch.int64 and found.is_contiguous()


def test_other_groups_are_out_also_where_scores_are_negative() -> None:
    """Where a selection bias makes every score negative, a mask of 0.0 would choose what is not in the best groups."""
    score = torch.tensor([[-0.1, -0.9, -0.3, -0.3]])
    assert top_k(score, 2, groups=2, keep=1, group_by="best_two").tolist() == [[2, 3]]
    assert chosen_by_the_formula(score[0].tolist(), 2, 2, 1, 2, other=0.0) == [0, 1]
    assert top_k(score, 2, groups=2, keep=1, group_by="best").tolist() == [[0, 1]]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_router_of_deepseek_v3(data: st.DataObject) -> None:
    """arXiv:2412.19437, equations 13 to 16: the bias counts for the choice only, weights are those of the scores."""
    x = torch.tensor(data.draw(st.lists(VALUES, min_size=12, max_size=12)), dtype=torch.float64).view(1, 2, 6)
    bias = torch.tensor(data.draw(st.lists(VALUES, min_size=6, max_size=6)), dtype=torch.float64)
    x.requires_grad_(True)
    score = x.sigmoid()
    chosen = top_k(score + bias, 2, groups=3, keep=2, group_by="best_two")
    weight = 2.5 * normalize(gather(score, chosen))
    for t in range(2):
        expected = chosen_by_the_formula((score[0, t] + bias).tolist(), 2, 3, 2, 2, -torch.inf)
        assert chosen[0, t].tolist() == expected
        picked = score[0, t, expected]
        torch.testing.assert_close(weight[0, t], 2.5 * picked / picked.sum())
    assert torch.autograd.grad(weight[..., 0].sum(), x)[0].abs().sum() > 0


# --- the bias against the load


def test_the_bias_moves_against_the_load_of_the_whole_batch() -> None:
    """Over three steps of two microbatches, against sums by hand; experts of exactly the mean load stay."""
    torch.manual_seed(0)
    router, balance_of = BalanceBias(4).train(), []
    balance = Balance(nn.ModuleList([router]), speed=0.25)
    expected = [0.0] * 4
    for step in range(3):
        microbatches = [torch.randint(0, 4, (2, 3, 2)) for _ in range(2)]
        for chosen in microbatches:
            assert router(chosen) is chosen
        every = torch.cat(microbatches).flatten().tolist()
        for i in range(4):
            load, mean = every.count(i), len(every) / 4
            expected[i] += 0.25 * ((mean > load) - (mean < load))
        balance.step()
        balance_of.append(router.bias.tolist())
        assert router.bias.tolist() == expected, step
        assert router.load.tolist() == [0, 0, 0, 0]
    assert len({tuple(b) for b in balance_of}) > 1


def test_an_expert_with_the_mean_load_stays_and_one_that_takes_all_falls() -> None:
    router = BalanceBias(3).train()
    balance = Balance(router, speed=1.0)
    router(torch.tensor([0, 0, 0, 1, 1, 2]))
    balance.step()
    assert router.bias.tolist() == [-1.0, 0.0, 1.0]
    router(torch.zeros(5, dtype=torch.int64))
    balance.step()
    assert router.bias.tolist() == [-2.0, 1.0, 2.0]
    balance.step()  # nothing was chosen
    router(torch.zeros(5, dtype=torch.int64))
    balance.step(taken=False)
    assert router.bias.tolist() == [-2.0, 1.0, 2.0] and router.load.tolist() == [0, 0, 0]


def test_nothing_is_counted_outside_of_training() -> None:
    router = BalanceBias(3).eval()
    router(torch.tensor([0, 0, 1]))
    assert router.load.tolist() == [0, 0, 0]


def test_the_bias_is_saved_and_is_no_parameter() -> None:
    router = BalanceBias(3)
    assert list(router.state_dict()) == ["bias"] and list(router.parameters()) == []
    assert router.bias.dtype == torch.float32
    with pytest.raises(Problem, match="speed of the balance"):
        Balance(router, speed=-1.0)


def _rank(rank: int, folder: str, queue: multiprocessing.Queue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    router = BalanceBias(3).train()
    balance = Balance(router, speed=1.0)
    router(torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2]][rank]))
    balance.step()
    queue.put((rank, router.bias.tolist()))
    dist.destroy_process_group()


def test_the_load_is_that_of_all_ranks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path), queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    # Loads 3, 1, 4 of 8: the mean is 8 / 3. Alone, rank 0 would have lifted expert 2, and rank 1 expert 0.
    assert found == {0: [-1.0, 1.0, -1.0], 1: [-1.0, 1.0, -1.0]}


# --- capacity


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, int, float]:
    """Choices [B, S, K] of X experts, all of which may fall on one, and a capacity."""
    experts = draw(st.integers(1, 5))
    k = draw(st.integers(1, experts))
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    one = draw(st.booleans())
    rows = [list(range(k)) if one else draw(st.permutations(range(experts)))[:k] for _ in range(batch * length)]
    return torch.tensor(rows).view(batch, length, k), experts, draw(st.sampled_from([0.3, 0.5, 1.0, 1.1, 1.25, 4.0]))


def kept_by_the_formula(chosen_BSK: Tensor, experts: int, factor: str) -> list[bool]:
    numerator, _, decimals = factor.partition(".")
    scale = 10 ** len(decimals)
    room = -(-int(numerator + decimals) * chosen_BSK.numel() // (scale * experts))
    taken, kept = [0] * experts, []
    for expert in chosen_BSK.flatten().tolist():
        kept.append(taken[expert] < room)
        taken[expert] += 1
    return kept


@settings(max_examples=200, deadline=None)
@given(choices())
def test_each_expert_keeps_its_first_choices(drawn: tuple[Tensor, int, float]) -> None:
    chosen, experts, factor = drawn
    kept = within_capacity(chosen, experts, factor)
    expected = kept_by_the_formula(chosen, experts, str(factor))
    assert kept.flatten().tolist() == expected and kept.shape == chosen.shape

    module = Capacity(experts, factor=factor).train()
    weight = torch.rand(chosen.shape, dtype=torch.float64) + 0.1
    torch.testing.assert_close(module(chosen, weight), weight * kept)
    assert int(module.dropped.sum()) == expected.count(False) and int(module.choices) == len(expected)
    dropped = Dropped(nn.ModuleList([module, Capacity(2, factor=1.0)]))
    assert dropped and dropped.take() == pytest.approx(expected.count(False) / len(expected), rel=1e-6)
    assert dropped.take() == 0.0
    assert torch.equal(module.eval()(chosen, weight), weight)
    assert not Dropped(nn.Linear(2, 2))


def test_what_is_dropped_leaves_the_sum_and_has_no_gradient() -> None:
    x = torch.randn(1, 4, 3, dtype=torch.float64)
    chosen = torch.zeros(1, 4, 1, dtype=torch.int64)  # all tokens to one of two experts, which has room for two
    weight = torch.rand(1, 4, 1, dtype=torch.float64, requires_grad=True)
    kept = Capacity(2, factor=1.0).train()(chosen, weight)
    rows = dispatch(x, chosen, 2)
    y = combine(2 * rows.x_RD, rows, kept)
    expected = 2 * x * weight
    torch.testing.assert_close(y[:, :2], expected[:, :2])
    assert not y[:, 2:].any()
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    assert gradient[:, :2].all() and not gradient[:, 2:].any()


# --- the z-loss


def test_z_loss_by_the_formula() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64) * 10
    expected = sum(torch.log(torch.exp(row).sum()) ** 2 for row in logits.flatten(0, 1)) / 6
    torch.testing.assert_close(z_loss(logits), expected)
    assert z_loss(logits.bfloat16()).dtype == torch.float32
