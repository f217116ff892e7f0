"""What a misspelt word was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate nearest to `word`, or None when none is near. Case does not count.

    Of several that are as near, one with the same letters wins, then one that begins the same.
    """
    lowered = word.lower()
    limit = typo_limit(len(word))
    best: tuple[float, bool, int, int, str] | None = None
    for candidate in candidates:
        if candidate == word:
            continue
        other = candidate.lower()
        distance: float = edit_distance(lowered, other, limit)
        if distance > limit:
            if len(word) < 3 or not (other.startswith(lowered) or _same_words(lowered, other)):
                continue
            distance = limit + 0.5
        elif distance >= min(len(word), len(candidate)):
            continue  # nothing in common
        score = (
            distance,
            sorted(lowered) != sorted(other),
            -_common_prefix(lowered, other),
            abs(len(other) - len(lowered)),
            candidate,
        )
        if best is None or score < best:
            best = score
    return best[-1] if best is not None else None


def looks_like(word: str, other: str) -> bool:
    """Whether one may be the other with some letters wrong."""
    limit = typo_limit(len(word))
    return edit_distance(word.lower(), other.lower(), limit) <= limit


def typo_limit(length: int) -> int:
    """How many letters of a word this long may be wrong."""
    if length < 2:
        return 0
    return 1 if length < 5 else 2 if length < 9 else 3


def _same_words(a: str, b: str) -> bool:
    """`norm_rms` and `rms_norm`: the same words in another order."""
    return "_" in a and sorted(a.split("_")) == sorted(b.split("_"))


def _common_prefix(a: str, b: str) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def edit_distance(a: str, b: str, limit: int) -> int:
    """Damerau-Levenshtein distance in its restricted form (a swap of neighbours counts one); over `limit`: limit + 1.

    Source: F. J. Damerau, "A technique for computer detection and correction of spelling errors", CACM 7(3), 1964.
    """
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return min(row[-1], limit + 1)
