"""Cases that go wrong in each way that a case can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping

from dskc.runtime.bench.case import Case, Run


def cases() -> Iterator[Case]:
    yield Case("rough", "s", 2e9, 1e6, _rough)
    yield Case("unbuilt", "s", 2e9, 1e6, _unbuilt)
    yield Case("smooth", "s", 2e9, 1e6, lambda: {"dskc": _works, "peer": _works})
    yield Case("tiring", "s", 2e9, 1e6, lambda: {"tires": _Tires(), "dskc": _works})


def _rough() -> Mapping[str, Run]:
    runs = {"dskc": _works, "raises": _raises, "exits": lambda: os._exit(3), "killed": _killed}
    return {**runs, "hangs": lambda: time.sleep(600), "behind": _works}


def _works() -> None:
    time.sleep(0.001)


def _raises() -> None:
    raise ValueError("no such thing\nand more of it")


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _unbuilt() -> Mapping[str, Run]:
    raise RuntimeError("no memory")


class _Tires:
    """Fails from its eighth run on."""

    def __init__(self) -> None:
        self.left = 7

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("tired")
