"""Progress bars of long loops, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")
_SELDOM = 30.0  # seconds between two states of a bar in a log


def batch_progress(batches: Sequence[Sequence[_Item]], title: str) -> Iterator[Sequence[_Item]]:
    """The batches, with a bar that counts their images."""
    with progress_bar(sum(len(batch) for batch in batches), title, "image") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def progress_bar(total: int, title: str, unit: str, hidden: bool = False) -> tqdm[NoReturn]:
    """A bar on stderr; in a log, which is no terminal, only of what takes long, and drawn every half minute."""
    delay, every = (0.0, 0.1) if sys.stderr.isatty() else (_SELDOM, _SELDOM)
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, delay=delay, mininterval=every)
