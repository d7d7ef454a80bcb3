"""A readable console: this package's messages from one process, other packages' warnings only if they matter."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOISY = (
    "DeepSpeed",
    "torch.utils.cpp_extension",
    "torch.distributed",
    "mmengine",
    "xtuner",
    "transformers",
    "numexpr",
    "bitsandbytes",
)


def quieten_imports() -> None:
    """Before torch, DeepSpeed and xtuner are imported: what they announce on import is of no use to a user."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    warnings.filterwarnings("ignore")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).addFilter(_errors_only)  # DeepSpeed sets its own level anew when it is imported


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def muted() -> Iterator[None]:
    """Nothing written to stdout or stderr is shown, not even by subprocesses.

    While DeepSpeed is imported it asks the linker which of its operators could be built, and the linker complains.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as nowhere:
        kept = os.dup(1), os.dup(2)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def set_up(rank: int) -> None:
    """Messages of vesselseg on the console: all of the first process, errors of the others."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    package = logging.getLogger("vesselseg")
    package.handlers = [handler]
    package.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    package.propagate = False


def also_to_file(path: Path) -> None:
    """Append this process's messages to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("vesselseg").addHandler(handler)
