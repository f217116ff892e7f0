"""Names that Python and PyTorch have taken: what weights, results and dims of a model cannot be called."""

from __future__ import annotations

from keyword import kwlist

PYTHON = frozenset(kwlist)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The attributes of torch.nn.Module (2.11 to 2.13), and those that generated modules have besides: a submodule of such a
# name would stand in its way. (A test compares them with torch's own.)
MODULE_ATTRIBUTES = _words("""
    T_destination add_module apply bfloat16 buffers call_super_init children compile compute cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad
""")

# The classes that model.py defines or imports besides those of blocks.
CLASSES = _words("""
    BalanceBias Capacity Conv Embed GroupedLinear LayerNorm Linear LinearScaling Llama3Scaling Model NamedTuple Output
    Parameter RMSNorm SpecModule Tensor YarnScaling
""")

# What function bodies call by its bare name: variables without axes, whose names have no suffix, keep off these.
CALLED = _words("""
    attention
    blocks
    cache causal clamp combine concat conv
    dispatch documents dropout
    embed enumerate everything exp
    gated_delta gather gelu gelu_tanh
    i index_keys isinstance
    kernels
    l2_norm layer_norm linear load_balance log
    map_heads
    nn noise normalize
    quantize
    range reference relu rms_norm rope rope_table rows
    self sequence_balance shift sigmoid silu softcap softmax softplus split sqrt
    tanh tl top_k torch training triton
    unembed
    window within_capacity
    z_loss
""")


def module_problem(name: str) -> str | None:
    """Why no module, and so no weight, can be called so; None when it can."""
    if name in PYTHON:
        return f"`{name}` is a word of Python's"
    if name in MODULE_ATTRIBUTES:
        return f"`{name}` is what every module of PyTorch has"
    return "names of weights do not begin with an underscore" if name.startswith("_") else None


def result_problem(name: str) -> str | None:
    """Why no result, loss or input of a model can be called so; None when it can."""
    if name in PYTHON:
        return f"`{name}` is a word of Python's"
    return "names of results do not begin with an underscore" if name.startswith("_") else None


def dim_problem(name: str) -> str | None:
    """Why no dim of a model can be called so; None when it can."""
    if name in PYTHON:
        return f"`{name}` is a word of Python's"
    return f"`{name}` is a class of generated code" if name in CLASSES else None
