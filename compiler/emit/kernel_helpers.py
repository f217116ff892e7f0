"""Functions that generated kernels call where Triton's own language has none that also runs in its interpreter.

Each is written into the kernels.py that needs it, so that the file can be read by itself.
"""

from __future__ import annotations

HELPERS = {
    "tanh": '''
@triton.jit
def tanh(x):
    """The hyperbolic tangent, accurate near zero too, where `1 - exp(-2x)` has no digits left."""
    small = tl.abs(x)
    grown = tl.exp(-2.0 * small)
    far = (1.0 - grown) / (1.0 + grown)
    square = x * x
    near = small * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    y = tl.where(small < 0.02, near, far)
    return tl.where(x < 0.0, -y, y)
''',
    "round_even": '''
@triton.jit
def round_even(x):
    """To the nearest integer, of two equally near to the even one."""
    low = tl.floor(x)
    high = (x - low > 0.5) | ((x - low == 0.5) & (low - 2.0 * tl.floor(0.5 * low) == 1.0))
    return tl.where(high, low + 1.0, low)
''',
    "top_k": '''
@triton.jit
def top_k(x_NX, column_X, X: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The columns of each row's K greatest, best first; of equal ones the lower column, and NaN before all."""
    rank_K = tl.arange(0, BLOCK_K)[None, :]
    chosen_NK = tl.zeros((x_NX.shape[0], BLOCK_K), tl.int32)
    x_NX = tl.where(x_NX == x_NX, x_NX, float("inf"))
    free_NX = (column_X < X) & (x_NX == x_NX)
    for k in tl.static_range(K):
        most_N = tl.max(tl.where(free_NX, x_NX, float("-inf")), 1, keep_dims=True)
        best_N = tl.min(tl.where(free_NX & (x_NX == most_N), column_X, X), 1, keep_dims=True)
        chosen_NK = tl.where(rank_K == k, best_N, chosen_NK)
        free_NX = free_NX & (column_X != best_N)
    return chosen_NK
''',
    "gather": '''
@triton.jit
def gather(x_NX, index_NK, column_X, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Each row at the columns that `index_NK` names."""
    rank_K = tl.arange(0, BLOCK_K)[None, :]
    y_NK = tl.zeros((x_NX.shape[0], BLOCK_K), x_NX.dtype)
    for k in tl.static_range(K):
        at_N = tl.sum(tl.where(rank_K == k, index_NK, 0), 1, keep_dims=True)
        y_N = tl.sum(tl.where(column_X == at_N, x_NX, 0.0), 1, keep_dims=True)
        y_NK = tl.where(rank_K == k, y_N, y_NK)
    return y_NK
''',
    "scatter": '''
@triton.jit
def scatter(x_NK, index_NK, column_X, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """For each column the sum of those of `x_NK` whose index names it."""
    rank_K = tl.arange(0, BLOCK_K)[None, :]
    y_NX = tl.zeros((x_NK.shape[0], column_X.shape[1]), x_NK.dtype)
    for k in tl.static_range(K):
        at_N = tl.sum(tl.where(rank_K == k, index_NK, 0), 1, keep_dims=True)
        x_N = tl.sum(tl.where(rank_K == k, x_NK, 0.0), 1, keep_dims=True)
        y_NX += tl.where(column_X == at_N, x_N, 0.0)
    return y_NX
''',
}
