"""The leaf modules that generated models are composed of.

Each owns parameters and calls the operation of `reference` of the same name. Parameters keep the dtype they are stored
in and are cast to that of what they meet. Construction is cheap, also on the meta device; a trainer initialises by its
recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import reference
from .kernels.experts.grouped import grouped_linear
from .kernels.experts.grouped_product import takes
from .kernels.products.fp8_matmul import Scaling, fp8_linear
from .reference import unembed
from .reference.routing import expert_counts
from .reference.state import State
from .spec_module import SpecModule

__all__ = [
    "BalanceBias",
    "BlockLinear",
    "Capacity",
    "Conv",
    "Embed",
    "GroupedLinear",
    "HashExperts",
    "LayerNorm",
    "Linear",
    "Parameter",
    "RMSNorm",
    "SpecModule",
    "unembed",
]

STD = 0.02  # of the normal distribution a weight has before a recipe or a checkpoint sets it


class Linear(nn.Linear):
    """`x @ weight.T + bias` in the dtype of x: [..., inputs] to [..., outputs].

    With `compute` (a router in float32) x and weight are cast to that dtype, and the result stays in it. With `fp8`
    set, "rows" or "blocks", its products are of 8-bit floats, forward and backward, as `fp8_linear` scales them. What
    an adapter makes of x is added.
    """

    fp8: Scaling | None = None
    adapter: nn.Module | None

    def __init__(self, inputs: int, outputs: int, bias: bool = False, compute: torch.dtype | None = None) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.compute = compute
        self.adapter = None

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.fp8 is None:
            y = reference.linear(x, self.weight, self.bias, self.compute)
        else:
            y = fp8_linear(x, self.weight, scaling=self.fp8, gradient="e4m3")
            y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y if self.adapter is None else y + self.adapter(x.to(y.dtype))


class BlockLinear(nn.Module):
    """`blocks` linear maps side by side, each of its part of x: weight [outputs, inputs], where `inputs` is what one
    takes and `outputs` what all of them give."""

    def __init__(self, outputs: int, inputs: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        return reference.block_linear(x, self.weight, self.blocks)

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{self.blocks} x ({inputs} -> {outputs // self.blocks})"


class Embed(nn.Embedding):
    """Rows of weight [vocabulary, width] for tokens (integers, [...]): [..., width], in the weight's dtype."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__(vocabulary, width)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=STD)

    def forward(self, tokens: Tensor) -> Tensor:
        return reference.embed(tokens, self.weight)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) * (offset + weight)` over the last axis; `offset=1.0` is Gemma's form."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.width, self.eps, self.offset = width, eps, offset
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity scale: 1 less the offset."""
        nn.init.constant_(self.weight, 1.0 - self.offset)

    def forward(self, x: Tensor) -> Tensor:
        return reference.rms_norm(x, self.weight, self.eps, self.offset)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}" + (f", offset={self.offset}" if self.offset else "")


class LayerNorm(nn.LayerNorm):
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last axis."""

    def __init__(self, width: int, eps: float, bias: bool = True) -> None:
        super().__init__(width, eps=eps, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return reference.layer_norm(x, self.weight, self.bias, self.eps)


class Parameter(nn.Module):
    """A learned tensor by itself, which begins as `start` says: zeros, ones or normal."""

    def __init__(self, *shape: int, start: str = "zeros") -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.start == "normal":
            nn.init.normal_(self.weight, std=STD)
        else:
            nn.init.constant_(self.weight, float(self.start == "ones"))

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Its numbers in this dtype."""
        return self.weight.to(dtype)

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, start={self.start}"


class Conv(nn.Module):
    """A causal convolution along the sequence for each channel by itself: weight [channels, 1, width], bias
    [channels]."""

    def __init__(self, channels: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_BSC: Tensor, documents_BS: Tensor | None = None, state: State | None = None) -> Tensor:
        """[B, S, C]; with documents each by itself, with a state on from the pass before."""
        return reference.conv(x_BSC, self.weight, self.bias, documents_BS, state)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, width={self.weight.shape[2]}, bias={self.bias is not None}"


class GroupedLinear(nn.Module):
    """`experts` linear layers stacked: weight [experts, outputs, inputs], bias [experts, outputs]."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.experts, self.inputs, self.outputs = experts, inputs, outputs
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(experts, outputs)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_RD: Tensor, offsets_X: Tensor) -> Tensor:
        """Rows [R, inputs] sorted by expert, with where those of each end (int32 [experts]): [R, outputs]."""
        grouped = grouped_linear if takes(x_RD) else reference.grouped_linear
        return grouped(x_RD, self.weight, offsets_X, self.bias)

    def extra_repr(self) -> str:
        return f"{self.experts} x ({self.inputs} -> {self.outputs}), bias={self.bias is not None}"


class BalanceBias(nn.Module):
    """A bias of each expert, [experts] in float32, for `optim.Balance` to move: a buffer, for no gradient reaches it.

    Applied to choices it counts them while training, since the last step. (A layer that backward computes again counts
    all of its own twice, and only the shares of that count matter.)
    """

    bias: Tensor
    load: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(experts, dtype=torch.float32))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64), persistent=False)

    def forward(self, chosen: Tensor) -> Tensor:
        """The choices (int64, any shape) as they are."""
        if self.training:
            self.load += expert_counts(chosen, self.load.shape[0])
        return chosen

    def extra_repr(self) -> str:
        return f"{self.bias.shape[0]}"


class Capacity(nn.Module):
    """While training, experts take no more choices than `factor` times their even share; how many are dropped of each,
    and of how many in all, is counted for `train/dropped.py`.
    """

    dropped: Tensor
    choices: Tensor

    def __init__(self, experts: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("dropped", torch.zeros(experts, dtype=torch.int64), persistent=False)
        self.register_buffer("choices", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, chosen_BSK: Tensor, weight_BSK: Tensor) -> Tensor:
        """The weights of choices [B, S, K], 0 where an expert has no room for one."""
        if not self.training:
            return weight_BSK
        experts = self.dropped.shape[0]
        kept_BSK = reference.within_capacity(chosen_BSK, experts, self.factor)
        count_X = expert_counts(chosen_BSK, experts)
        self.dropped += count_X - expert_counts(chosen_BSK, experts, kept_BSK)
        self.choices += chosen_BSK.numel()
        return weight_BSK.where(kept_BSK, 0.0)

    def extra_repr(self) -> str:
        return f"{self.dropped.shape[0]}, factor={self.factor}"


class HashExperts(nn.Module):
    """The experts of each token by a table [vocabulary, choices] of integers below `experts`, which nothing trains.

    A checkpoint brings its own. Without one it is a hash of the id, and experts far apart from there on, all different
    (hash layers, arXiv:2106.04426, section 3).
    """

    table: Tensor

    def __init__(self, vocabulary: int, choices: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.register_buffer("table", torch.empty(vocabulary, choices, dtype=torch.int64))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """The table of a model that begins from nothing."""
        vocabulary, choices = self.table.shape
        id_V1 = torch.arange(vocabulary, device=self.table.device).unsqueeze(-1)
        first_V1 = (id_V1 * 2_654_435_761 % 2**32 >> 16) % self.experts  # Knuth's multiplicative hash
        apart_K = torch.arange(choices, device=self.table.device) * (self.experts // choices)
        self.table.copy_((first_V1 + apart_K) % self.experts)

    def forward(self, tokens: Tensor) -> Tensor:
        return reference.lookup(tokens, self.table)

    def extra_repr(self) -> str:
        return f"{list(self.table.shape)} of {self.experts}"
