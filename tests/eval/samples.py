"""Small files of questions of each kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

CHOICES = [
    {"question": "Where did the cat sit?", "choices": ["on the mat", "on the hat", "not"], "answer": 0, "topic": "cat"},
    {"question": "What had the dog?", "options": ["a cat", "a hat", "a mat"], "answer": "C", "topic": "dog"},
    {"question": "Who sat?", "choices": ["the cat", "the dog and the cat"], "answer": "the cat", "topic": "cat"},
    {"question": "What was not?", "choices": ["naïve", "wanted", "what the mat had"], "answer": "1", "topic": "cat"},
]
CONTINUED = [
    {"ctx": "the cat sat on", "endings": ["the mat", "what the dog had wanted", "hat"], "label": 1},
    {"ctx": "and the dog", "endings": ["sat on the cat,", "was", "which was not naïve"], "label": 2},
    {"ctx": "said the", "endings": ["hat", "mat and the cat"], "label": 0},
]
ANSWERS = [
    {"question": "How many cats?", "answer": "1,000", "target": "There are 900 and 100. So 1,000"},
    {"question": "How many dogs?", "answer": 3},
    {"question": "How many hats?", "answer": ["4", "four"]},
]
COMPLETIONS = [
    {"context": "the cat sat on the", "completion": " mat"},
    {"context": "which was not what", "completion": " the mat had wanted"},
    {"completion": "the dog — naïve"},
]
TEXTS = [{"text": "the cat sat on the mat and the dog sat on the cat. " * 4}, {"text": "naïve"}]
PROGRAMS = [
    {
        "task_id": "add", "prompt": "def add(a, b):\n", "entry_point": "add",
        "canonical_solution": "    return a + b\n", "test": "def check(f):\n    assert f(1, 2) == 3\n",
    },
    {
        "task_id": "twice", "prompt": "def twice(a):\n", "entry_point": "twice",
        "canonical_solution": "    return 2 * a\n", "test": "def check(f):\n    assert f(2) == 4\n",
    },
]  # fmt: skip


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path
