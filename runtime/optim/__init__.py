"""How a model's parameters start, and how they change."""

from .adamw import AdamW
from .balance import Balance
from .clip import clip
from .groups import Group
from .init import Initialiser, Normal, Start, Zeros, normal
from .lion import Lion
from .muon import Muon
from .schedule import Schedule, constant, cosine, steps

__all__ = [
    "AdamW", "Balance", "Group", "Initialiser", "Lion", "Muon", "Normal", "Schedule", "Start", "Zeros", "clip",
    "constant", "cosine", "normal", "steps",
]  # fmt: skip
