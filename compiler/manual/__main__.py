"""python -m dskc.compiler.manual [--check]: writes the generated pages and grammars of a checkout of dskc.

With --check nothing is written; the exit code is 1 when something is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .pages import pages

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dskc.compiler.manual", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is stale")
    options = parser.parse_args()
    stale = False
    for path, text in pages(ROOT).items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale = True
        if not options.check:
            path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{path.relative_to(ROOT)} {'is stale: make generate' if options.check else 'written'}")
    sys.exit(1 if options.check and stale else 0)


if __name__ == "__main__":
    main()
