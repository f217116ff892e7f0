"""A model's experts as an operation: kernels with the activation that the compiler wrote, or what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..row_kernel import KernelError
from .gated import Function, GatedActivation
from .grouped_product import takes
from .layer import Biases, Weights, experts, experts_reference

Given = Tensor | None


@dataclass(eq=False)
class ExpertsKernel:
    """Gated experts of a model: `down @ activation(gate @ x, up @ x)` of each token's choices, summed by weight.

    name: `model::operation`. value, gradient: the activation in Triton, of one element each: `(gate, up) -> hidden` and
    `(gate, up, grad) -> (grad_gate, grad_up)`, in float32. reference: the same as `value` in PyTorch.
    """

    name: str
    spec: str
    reference: Callable[[Tensor, Tensor], Tensor]
    value: Function
    gradient: Function
    activation: GatedActivation = field(init=False)

    def __post_init__(self) -> None:
        self.activation = GatedActivation(self.name, self.value, self.gradient, self.reference)

    def __call__(
        self,
        x_TD: Tensor,
        chosen_TK: Tensor,
        weight_TK: Tensor,
        gate_XFD: Tensor,
        up_XFD: Tensor,
        down_XDF: Tensor,
        biases: tuple[Given, Given, Given] = (None, None, None),
    ) -> Tensor:
        """What the chosen experts make of each token: shape and dtype of x_TD. See `experts` in `layer.py`.

        biases: of gate, up and down: all or none. Kernels take bf16, fp16 and fp32; of other dtypes, and where kernels
        are not in use, it is the reference's. Raises KernelError, which names the line of the spec.
        """
        gate, up, down = biases
        given = Biases(gate, up, down) if gate is not None and up is not None and down is not None else None
        weights = Weights(gate_XFD, up_XFD, down_XDF)
        if not takes(x_TD):
            return experts_reference(x_TD, chosen_TK, weight_TK, weights, self.activation, given)
        try:
            return experts(x_TD, chosen_TK, weight_TK, *weights, self.activation, given)
        except KernelError as error:
            raise KernelError(f"{self.name} ({self.spec}): {error}") from None
