"""The plain PyTorch meaning of every operation: what runs on a CPU, and what every kernel is compared with.

All functions are differentiable and take any floating dtype; sums run in float32 at least, and results have the dtype
of the first argument unless said otherwise. Axes in names: B batch, S sequence, T positions kept so far, H heads, G key
heads, E head width (in rope: pairs), D hidden, F inner, X experts, K chosen experts, R rows = B * S * K, V vocabulary.
"""

from .activation import (
    clamp,
    dropout,
    exp,
    gelu,
    gelu_tanh,
    log,
    noise,
    relu,
    sigmoid,
    silu,
    softcap,
    softmax,
    softplus,
    sqrt,
    tanh,
)
from .arrange import concat, gather, shift, split
from .attention import attention
from .conv import conv
from .delta import gated_delta
from .experts import Rows, combine, dispatch, within_capacity
from .grouped import grouped_linear
from .index import index_keys
from .linear import embed, linear, map_heads, unembed
from .loss import next_token, token_losses
from .mask import Mask, blocks, causal, documents, everything, window
from .norm import l2_norm, layer_norm, rms_norm
from .quantize import quantize
from .rope import rope, rope_table
from .rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from .routing import load_balance, normalize, sequence_balance, top_k, z_loss

__all__ = [
    "LinearScaling",
    "Llama3Scaling",
    "Mask",
    "Rows",
    "YarnScaling",
    "attention",
    "blocks",
    "causal",
    "clamp",
    "combine",
    "concat",
    "conv",
    "dispatch",
    "documents",
    "dropout",
    "embed",
    "everything",
    "exp",
    "gated_delta",
    "gather",
    "gelu",
    "gelu_tanh",
    "grouped_linear",
    "index_keys",
    "l2_norm",
    "layer_norm",
    "linear",
    "load_balance",
    "log",
    "map_heads",
    "next_token",
    "noise",
    "normalize",
    "quantize",
    "relu",
    "rms_norm",
    "rope",
    "rope_table",
    "sequence_balance",
    "shift",
    "sigmoid",
    "silu",
    "softcap",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "tanh",
    "token_losses",
    "top_k",
    "unembed",
    "window",
    "within_capacity",
    "z_loss",
]
