"""Keep the package `kernels` out: with it installed, libraries fetch code from the hub and run it, unasked.

bitsandbytes does so when it is imported on CPUs that compute in bf16, transformers where an attention is named that is
not installed. Nothing of vesselseg uses such kernels.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = "kernels"
# with None in its place, importing the package fails and find_spec says that it is not installed
_ABSENT = None


def keep_hub_kernels_out() -> None:
    """For a process of vesselseg's own (a command, a training), from here on."""
    mute_kernel_hint()
    sys.modules[PACKAGE] = _ABSENT  # type: ignore[assignment]


@contextmanager
def without_hub_kernels() -> Iterator[None]:
    """Around an import, in a process that may be somebody else's, which has its package again afterwards."""
    before = {PACKAGE: sys.modules[PACKAGE]} if PACKAGE in sys.modules else {}
    keep_hub_kernels_out()
    try:
        yield
    finally:
        del sys.modules[PACKAGE]
        sys.modules.update(before)


def mute_kernel_hint() -> None:
    """bitsandbytes says to install the package; its other messages stay."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_kernel_hint)


def _is_no_kernel_hint(record: logging.LogRecord) -> bool:
    return "`pip install kernels`" not in str(record.msg)
