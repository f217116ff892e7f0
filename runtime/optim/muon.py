"""Muon: momentum of hidden matrices, orthogonalised (Keller Jordan et al., 2024; arXiv:2502.16982)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..problem import Problem
from . import check
from .adamw import AdamW
from .fused import Fused
from .groups import Group, is_under, members, parameter_groups, require_members
from .optimizer import Optimizer, States, masters, trainable
from .orthogonalise import orthogonalise
from .rounding import MEAN, Draw, assign, assign_parameter, check_rounding, draw_seed, number_of

AT_ONCE = 1 << 26  # elements of matrices of one shape that are orthogonalised together: 128 MiB in bf16
Scale = Literal["rms", "original"]


class Muon(Optimizer):
    """Muon for hidden matrices, AdamW for all else: embeddings, heads, norms, biases.

    A hidden matrix is a parameter of two axes or more that is not under a path of `adamw_for`; of three axes or more
    it is as many matrices as the leading ones count, such as experts. Its step is that of `torch.optim.Muon`, with
    Nesterov's momentum. scale: of a step of an M x N matrix. "rms" is 0.2 * sqrt(max(M, N)), with which steps are as
    large as AdamW's and the same rate and decay do for both (arXiv:2502.16982, section 2.2); "original" is
    sqrt(max(1, M / N)).
    adamw_lr: AdamW's peak, which follows the same schedule; `lr` when None; adamw_decay likewise. state_dtype,
    rounding, groups, master: as `AdamW` has them; the momentum is one state in state_dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.1,
        scale: Scale = "rms",
        adamw_for: Sequence[str] = (),
        adamw_lr: float | None = None,
        adamw_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        state_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        groups: Sequence[Group] = (),
        master: bool = False,
    ) -> None:
        if not check.rate(lr) > 0:
            raise Problem("the learning rate of Muon is 0: AdamW's follows it, and needs a ratio to it")
        check.between(momentum, 0, 1, "momentum")
        if scale not in get_args(Scale):
            raise Problem(f"the scale of Muon's steps is {scale!r}", "it is `rms` or `original`")
        self.parameters = trainable(model)
        hidden = {name: p for name, p in self.parameters.items() if _is_hidden(name, p, adamw_for)}
        others = {name: p for name, p in self.parameters.items() if name not in hidden}
        if not hidden:
            raise Problem("the model has no hidden matrix for Muon", "train it with `adamw` or `lion`")
        require_members(groups, self.parameters)
        inside, outside = (tuple(g for g in groups if members(g, part)) for part in (hidden, others))
        self.inner = self._muon = _Muon(
            parameter_groups(hidden, decay, inside),
            {"lr": lr, "momentum": momentum, "scale": scale, "weight_decay": 0.0},
        )
        if check_rounding(rounding) == "stochastic":
            self._muon.numbers = {parameter: number_of(name) for name, parameter in hidden.items()}
        for parameter in hidden.values():
            buffer = torch.zeros_like(parameter, dtype=state_dtype or parameter.dtype)
            self.inner.state[parameter] = {"momentum_buffer": buffer} | masters(parameter, master)
        self._adamw = None
        if others:
            peak = lr if adamw_lr is None else check.rate(adamw_lr)
            own = decay if adamw_decay is None else adamw_decay
            self._adamw = AdamW(others, peak, betas, eps, own, state_dtype, rounding, outside, master)
            for group in self._adamw.inner.param_groups:
                group["share"] *= peak / lr

    def _take(self, rate: float, norm: Tensor | None) -> bool:
        fused = self._fused
        factor = fused.factor if fused is not None and norm is not None else None
        finite = norm is None or bool(norm.isfinite())  # waits for the device, before anything is changed
        if finite:
            parts = [self.inner, *([self._adamw.inner] if self._adamw is not None else [])]
            for group in (group for part in parts for group in part.param_groups):
                group["lr"] = rate * group["share"]
            self._muon.update(factor)
            if self._adamw is not None:
                self._adamw.inner.step()
        if fused is not None:
            fused.factor = None
        return finite

    def state_dict(self) -> States:
        own = {} if self._adamw is None else self._adamw.state_dict()
        return {name: own[name] if name in own else dict(self.inner.state[p]) for name, p in self.parameters.items()}

    @property
    def _fused(self) -> Fused | None:
        inner = self._adamw.inner if self._adamw is not None else None
        return inner if isinstance(inner, Fused) else None


def _is_hidden(name: str, parameter: Tensor, adamw_for: Sequence[str]) -> bool:
    matrix = parameter.ndim >= 2 and name.rpartition(".")[2] != "bias"  # biases of stacked experts have two axes
    return matrix and not any(is_under(name, path) for path in adamw_for)


class _Muon(torch.optim.Optimizer):
    """numbers: of parameters, for the draws of stochastic rounding; rounded to the nearest without them."""

    numbers: Mapping[nn.Parameter, int] | None = None

    @torch.no_grad()
    def update(self, factor: Tensor | None) -> None:
        """A step by gradients times this factor, 1 when None."""
        seed = draw_seed() if self.numbers is not None else 0
        for group in self.param_groups:
            for part in _alike(group["params"]):
                self._update(part, group, factor, seed)

    def _update(self, part: Sequence[nn.Parameter], group: dict[str, Any], factor: Tensor | None, seed: int) -> None:
        """Of parameters of one shape and dtype. Between what is read and what is written all is float32."""
        momentum, lr, decay = group["momentum"], group["lr"], group["weight_decay"]
        states = [self.state[parameter] for parameter in part]
        draws = [Draw(seed, 1, self.numbers[p]) if self.numbers is not None else None for p in part]
        grads = torch.stack([p.grad for p in part if p.grad is not None]).float()
        if factor is not None:
            grads *= factor
        buffers = torch.stack([state["momentum_buffer"] for state in states]).float().lerp_(grads, 1 - momentum)
        for state, buffer, draw in zip(states, buffers, draws, strict=True):
            assign(state["momentum_buffer"], buffer, MEAN, draw)
        directions = orthogonalise(grads.lerp_(buffers, momentum))  # Nesterov's: where the next step would look
        lr_scaled = lr * _scale(group["scale"], *directions.shape[-2:])
        for parameter, state, direction, draw in zip(part, states, directions, draws, strict=True):
            value = state.get("master", parameter).float().mul(1 - lr * decay).add_(direction.float(), alpha=-lr_scaled)
            assign_parameter(parameter, value, state, draw)


def _alike(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Those with a gradient, by shape and dtype, as many as are orthogonalised at once."""
    found: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            key = parameter.shape, parameter.dtype, parameter.grad.dtype
            found.setdefault(key, []).append(parameter)
    for same in found.values():
        count = max(1, AT_ONCE // max(1, same[0].numel()))
        yield from (same[i : i + count] for i in range(0, len(same), count))


def _scale(scale: Scale, rows: int, columns: int) -> float:
    if scale == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
