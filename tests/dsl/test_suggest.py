"""Suggestions for misspelt words."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dskc.dsl.suggest import did_you_mean, edit_distance

WORDS = """
    linear embed unembed rms_norm layer_norm silu gelu gelu_tanh sigmoid softmax softcap tanh relu rope attend top_k
    gather normalize experts split concat join shift pool dropout scan balance_bias sequence_balance next_token

    attention swiglu geglu mla mlp deepseek_moe mixtral_moe llama mixtral qwen3 deepseek_v3_hf

    objective tokens batch sequences precision params compute reduce optimizer schedule init save every keep mesh
    shard pipeline memory limit recompute microbatch cache weights balance speed warmup factor decay clip betas

    heads width inner bias theta pairs scaling qk_norm window causal documents blocks groups shared
"""
CANDIDATES = sorted(set(WORDS.split()))


def misspellings(word: str) -> set[str]:
    """Every word that is one slip away: a letter left out, two swapped, one replaced, one too many."""
    letters = string.ascii_lowercase + "_"
    splits = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    deleted = {a + b[1:] for a, b in splits if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in splits if len(b) > 1}
    replaced = {a + c + b[1:] for a, b in splits if b for c in letters}
    inserted = {a + c + b for a, b in splits for c in letters}
    return (deleted | swapped | replaced | inserted) - {word}


def test_single_slips_are_undone() -> None:
    total = right = 0
    for word in CANDIDATES:
        if len(word) < 4:
            continue
        for wrong in sorted(misspellings(word) - set(CANDIDATES))[::12]:  # all 31_000 give 99.7%
            total += 1
            right += did_you_mean(wrong, CANDIDATES) == word
    assert total > 2_000
    assert right / total >= 0.95


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("swigloo", "swiglu"),
        ("SwiGLU", "swiglu"),
        ("RMSNorm", "rms_norm"),
        ("norm_rms", "rms_norm"),
        ("seq", "sequences"),
        ("precison", "precision"),
        ("Heads", "heads"),
        ("x", None),
        ("zzzzzz", None),
        ("", None),
        ("convolution", None),
    ],
)
def test_what_people_write(word: str, expected: str | None) -> None:
    assert did_you_mean(word, CANDIDATES) == expected


def test_the_word_itself_is_no_suggestion() -> None:
    assert did_you_mean("heads", ["heads"]) is None


def test_case_counts_least_and_the_common_beginning_decides() -> None:
    assert did_you_mean("h", ["D", "H"]) == "H"
    assert did_you_mean("cat", ["bat", "car"]) == "car"


def test_the_order_of_candidates_does_not_matter() -> None:
    for word in ("batc", "norm", "kep", "spilt"):
        assert did_you_mean(word, CANDIDATES) == did_you_mean(word, CANDIDATES[::-1])


def plain_distance(a: str, b: str) -> int:
    """The recurrence as the definition has it."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            options = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])]
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                options.append(table[i - 2, j - 2] + 1)
            table[i, j] = min(options)
    return table[len(a), len(b)]


@example("ab", "ba", 2)
@example("xaby", "xbay", 1)
@given(st.text("abc", max_size=7), st.text("abc", max_size=7), st.integers(0, 4))
def test_distance_is_that_of_the_definition_up_to_the_limit(a: str, b: str, limit: int) -> None:
    assert edit_distance(a, b, limit) == min(plain_distance(a, b), limit + 1)
