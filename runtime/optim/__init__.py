"""How a model's parameters start, and how they change."""

from .adamw import AdamW
from .balance import Balance
from .clip import clip
from .init import Initialiser, normal
from .lion import Lion
from .schedule import Schedule, constant, cosine, steps

__all__ = ["AdamW", "Balance", "Initialiser", "Lion", "Schedule", "clip", "constant", "cosine", "normal", "steps"]
