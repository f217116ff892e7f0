"""What a model that knows only how often each token occurs would lose."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def unigram_entropy(tokens: NDArray[np.integer] | torch.Tensor) -> float:
    """Entropy in nats of the distribution of these ids: the loss of the best predictor that sees no context.

    Negative ids (nothing to predict) do not count. 0 for no tokens.
    """
    ids = np.asarray(tokens).ravel()
    _, counts = np.unique(ids[ids >= 0], return_counts=True)
    share = counts / max(counts.sum(), 1)
    return float(abs(-(share * np.log(share)).sum()))
