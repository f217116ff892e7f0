"""docs/architectures.md lists every shipped spec, with the parameters that it has."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_spec_is_listed_with_its_parameters() -> None:
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    listed = {
        name: int(count.replace(",", "")) for name, count in re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", page, re.M)
    }
    plans = (ROOT / "generated" / path.stem / "plan.json" for path in (ROOT / "specs").glob("*.dsk"))
    found = [json.loads(plan.read_text(encoding="utf-8")) for plan in plans]
    assert listed == {plan["model"]: plan["parameters"] for plan in found}
