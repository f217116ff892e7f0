"""`python -m tests.fuzz SEED...`: the mutated spec of each seed, and what the compiler says of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dskc.dsl.render import render

from .answer import answer
from .mutations import SPECS, mutation

for seed in map(int, sys.argv[1:]):
    made = mutation(seed)
    print(made)
    with TemporaryDirectory() as folder:
        for path in SPECS.glob("*.dsk"):
            shutil.copy(path, folder)
        given = answer(made, Path(folder))
        print(render(given.found).replace(f"{folder}/", ""))
        print(f"{len(given.found)} problems, {given.seconds:.3f} s")
