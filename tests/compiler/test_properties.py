"""Drawn models: what the compiler predicts of each is what runs, and decoding gives what the whole sequence gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import dskc.runtime.reference.flops  # noqa: F401  (tells torch's counter what our own operators cost)
from dskc.compiler.ir import Graph, Region
from dskc.compiler.ops.experts import Experts
from dskc.compiler.ops.structure import Block, Repeat
from dskc.compiler.parameters import parameters, total_parameters
from dskc.compiler.passes.memory import Saved, flops, memory
from dskc.compiler.passes.recipes import default_train
from dskc.runtime.spec_module import SpecModule

from .drawn_models import CAUSAL, Drawn, models
from .small_models import Small, compiled, decoded, first

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(few, max_examples=400)
LENGTHS = st.integers(4, 10)


def both(check: Callable[..., None], *drawn: st.SearchStrategy) -> tuple[Callable[..., None], Callable[..., None]]:
    """A property over a few examples, and over many."""
    return pytest.mark.slow(few(given(*drawn)(check))), pytest.mark.exhaustive(many(given(*drawn)(check)))


def built(drawn: Drawn) -> Small:
    with tempfile.TemporaryDirectory() as folder:
        return compiled(drawn.text, Path(folder))


def inputs(small: Small, length: int, batch: int = 2, one_document: bool = False) -> tuple[Tensor, ...]:
    """Tokens [B, S], and where the model takes them the documents that they belong to."""
    torch.manual_seed(length)
    vocabulary = sizes(small.graph, 1, 1)["V"]
    tokens_BS = torch.randint(0, vocabulary, (batch, length))
    if "documents" not in small.graph.inputs:
        return (tokens_BS,)
    documents_BS = torch.zeros_like(tokens_BS) if one_document else torch.arange(length).expand(batch, -1) // 3
    return (tokens_BS, documents_BS)


def sizes(graph: Graph, batch: int, length: int) -> dict[str, int]:
    return {**graph.sizes, "B": batch, "S": length}


# --- shapes and parameters


def predicted_shapes(region: Region, numbers: dict[str, int], indices: tuple[int, ...]) -> dict[str, list[tuple]]:
    """The shapes of what each block, layer and group gives, by the path of its module."""
    found: dict[str, list[tuple]] = {}

    def shapes(values: tuple) -> list[tuple]:
        return [tuple(int(a.size.evaluate(numbers)) for a in value.type.axes) for value in values]

    def add(path: str, values: tuple) -> None:
        for index in indices:
            path = path.replace("*", str(index), 1)
        found[path] = shapes(values)

    for op in region.ops:
        if isinstance(op.attributes, Block | Experts):
            add(op.attributes.path, op.results)
            if isinstance(op.attributes, Block):
                found |= predicted_shapes(op.regions[0], numbers, indices)
        elif isinstance(op.attributes, Repeat):
            for i, variant in enumerate(op.attributes.variants):
                inner = op.regions[variant]
                found |= predicted_shapes(inner, numbers, (*indices, i))
                indices = (*indices, i)
                add(f"{op.attributes.path}.*", inner.results)
                indices = indices[:-1]
    return found


def run_shapes(model: SpecModule, given: tuple[Tensor, ...]) -> tuple[object, dict[str, list[tuple]]]:
    found: dict[str, list[tuple]] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: object, arguments: object, output: Tensor | float | tuple) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            found[path] = [tuple(o.shape) if isinstance(o, Tensor) else () for o in outputs]  # no loss is the number 0

        return hook

    for path, module in model.named_modules():
        module.register_forward_hook(note(path))
    return model(*given), found


def shapes_and_parameters(drawn: Drawn, length: int) -> None:
    small = built(drawn)
    model, graph = small.model(), small.graph
    output, run = run_shapes(model, inputs(small, length))
    numbers = sizes(graph, 2, length)
    outputs = output if isinstance(output, tuple) else (output,)
    for value, result in zip(graph.body.results, outputs, strict=True):
        assert tuple(result.shape) == tuple(int(axis.size.evaluate(numbers)) for axis in value.type.axes)
    predicted = predicted_shapes(graph.body, numbers, ())
    assert predicted == {path: run[path] for path in predicted}
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state == {info.name: info.shape for info in parameters(graph)}
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == total_parameters(graph) == sum(info.elements for info in parameters(graph))


test_shapes_and_parameters, test_shapes_and_parameters_of_many = both(shapes_and_parameters, models(), LENGTHS)


# --- floating-point operations

# torch counts no attention on the CPU: the formula is that of its other kernels, which takes no grouped heads.


def cpu_attention_flops(q_shape: tuple, k_shape: tuple, v_shape: tuple, *others: object, **options: object) -> int:
    heads = (q_shape[0], q_shape[1])
    return sdpa_flop_count(q_shape, (*heads, *k_shape[2:]), (*heads, *v_shape[2:]))


COUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention_flops}


def flops_in_full(drawn: Drawn, length: int) -> None:
    small = built(drawn)
    model = small.model()
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter, torch.no_grad():
        model(*inputs(small, length))
    full, causal = flops(small.graph, length, sequences=2)
    assert counter.get_total_flops() == full
    assert causal <= full


test_flops, test_flops_of_many = both(flops_in_full, models(), LENGTHS)


# --- what backward keeps


def kept_bytes(model: SpecModule, given: tuple[Tensor, ...]) -> int:
    """Bytes that autograd saves in a forward pass, each storage once, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too: a freed storage's address would be given out again

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*given)
    assert first(output).requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


def ledger_bytes(graph: Graph, length: int, batch: int, width: int) -> int:
    """What the ledger counts as activations of `width` bytes, before the loss."""
    ledger = memory(graph, replace(default_train(graph, 1), length=length))

    def size(saved: Saved) -> int:
        return saved.compute * width + saved.fp32 * 4 + saved.bytes

    kept = [repeat.count * size(repeat.unfused) for repeat in ledger.repeats]  # as on a CPU, without kernels
    return batch * (size(ledger.rest_unfused) + sum(kept))


# Without dropout in attention: on the CPU torch has no kernel for it that keeps less than all probabilities, while the
# ledger counts for those of GPUs.
def memory_for_backward(drawn: Drawn, length: int, dtype: torch.dtype) -> None:
    small = built(drawn)
    model = small.model(compute=dtype).to(dtype).train()  # no copies of weights, which the ledger has on another line
    ratio = ledger_bytes(small.graph, length, 2, dtype.itemsize) / kept_bytes(model, inputs(small, length))
    assert 0.8 < ratio < 1.25, f"the ledger has {ratio:.3f} of what is kept"


test_memory, test_memory_of_many = both(
    memory_for_backward,
    models(masks=CAUSAL, dropout=False, scale=4),
    st.integers(16, 32),
    st.sampled_from((torch.float32, torch.bfloat16)),
)


# --- decoding


def decoding(drawn: Drawn, chunks: list[int]) -> None:
    small = built(drawn)
    model = small.model(compute=torch.float64).double()
    arguments = inputs(small, sum(chunks), one_document=True)
    with torch.no_grad():
        whole_BSV = first(model(*arguments))
    ends = torch.tensor(chunks).cumsum(0) - 1
    torch.testing.assert_close(decoded(small, model, arguments[0], chunks), whole_BSV[:, ends], rtol=1e-6, atol=1e-6)


test_decoding, test_decoding_of_many = both(
    decoding, models(masks=CAUSAL), st.lists(st.integers(1, 5), min_size=1, max_size=4)
)


# --- gradients


def gradients_reach_all(drawn: Drawn, length: int) -> None:
    small = built(drawn)
    model = small.model().train()
    output = model(*inputs(small, length))
    outputs = output if isinstance(output, tuple) else (output,)
    sum(torch.as_tensor(result).square().sum() for result in outputs).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


test_gradients, test_gradients_of_many = both(gradients_reach_all, models(), LENGTHS)
